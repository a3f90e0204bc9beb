"""Identity servers: binding, unbinding, and inviting people by e-mail address (Client-Server API, "Third-party
invites"), with one on loopback."""

import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
import pytest_asyncio

from federation.protocol.request_signing import SignedRequest, parse_header, verify
from federation.protocol.types import ServerName, UserID
from homeserver.config import ExistingFile, Federation, Identifiers
from homeserver.services import identity_servers
from storage import identifiers as stored_identifiers
from tests.client import Client, Server, quote
from tests.federation.authority import Authority
from tests.federation.https_servers import Request, Write, https_server, json_answer
from tests.rooms import create_room
from tests.servers import SIGNING_KEY, running

PEPPER = "pepper"
ADDRESS = "carol@example.org"
TOKEN = "user's token"
STORED = {
    "token": "promise",
    "display_name": "c...@e...",
    "public_keys": [
        {"public_key": "a2V5", "key_validity_url": "https://id.test/isvalid", "other": 1},
        {"public_key": "b3RoZXI", "key_validity_url": "https://id.test/ephemeral"},
    ],
}


@dataclass(slots=True)
class IdentityServer:
    """Answers what a test says, by path."""

    name: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, Request]] = field(default_factory=list)

    async def answer(self, request: Request, write: Write) -> None:
        path = request.path.removeprefix("/_matrix/identity/v2/")
        self.asked.append((path, request))
        status, body = self.answers.get(path, (404, {"errcode": "M_UNRECOGNIZED", "error": "?"}))
        await json_answer(body, status=status)(request, write)

    def bodies(self, path: str) -> list[Any]:
        return [orjson.loads(request.body) for asked, request in self.asked if asked == path]

    def knows(self, users: dict[str, str]) -> None:
        """Whose the addresses are."""
        self.answers["hash_details"] = (200, {"algorithms": ["none", "sha256"], "lookup_pepper": PEPPER})
        mappings = {hashed(address): user_id for address, user_id in users.items()}
        self.answers["lookup"] = (200, {"mappings": mappings})


def hashed(address: str) -> str:
    digest = hashlib.sha256(f"{address} email {PEPPER}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


@dataclass(slots=True)
class Scene:
    server: Server
    id_server: IdentityServer
    alice: Client

    @property
    def credentials(self) -> dict[str, str]:
        return {"sid": "1", "client_secret": "secret", "id_server": self.id_server.name, "id_access_token": TOKEN}

    @property
    def invite(self) -> dict[str, str]:
        return {
            "medium": "email",
            "address": ADDRESS.upper(),
            "id_server": self.id_server.name,
            "id_access_token": TOKEN,
        }


@pytest_asyncio.fixture(scope="session")
async def asking(
    databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Server, IdentityServer]]:
    """A server that trusts the identity server on loopback."""
    authority, id_server = Authority(tmp_path_factory.mktemp("authority")), IdentityServer()
    settings = Federation(
        allowed_ranges=(ip_network("127.0.0.0/8"),), certificate_authorities=(ExistingFile(authority.certificate),)
    )
    identifiers = Identifiers(identity_servers=("127.0.0.1", "localhost"))
    async with (
        https_server(authority, "127.0.0.1", answer=id_server.answer) as place,
        running(databases("identity"), federation=settings, identifiers=identifiers) as server,
    ):
        id_server.name = f"127.0.0.1:{place.port}"
        yield server, id_server


@pytest_asyncio.fixture
async def scene(asking: tuple[Server, IdentityServer]) -> Scene:
    server, id_server = asking
    id_server.answers.clear()
    id_server.asked.clear()
    return Scene(server, id_server, await server.register("alice"))


# --- binding


@pytest.mark.one_process("a limit is lowered here")
async def test_an_identity_server_ends_no_session_here_and_fills_no_table(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_servers, "MAX_BINDINGS", 2)
    alice, id_server = scene.alice, scene.id_server
    id_server.answers["3pid/bind"] = (401, {"errcode": "M_UNKNOWN_TOKEN", "error": "expired"})
    answer = await alice.post("/v3/account/3pid/bind", scene.credentials)
    for number in range(5):
        id_server.answers["3pid/bind"] = (200, {"medium": "email", "address": f"{number}@example.org"})
        await alice.ok("POST", "/v3/account/3pid/bind", scene.credentials)

    assert (answer.status, answer.body["errcode"]) == (403, "M_UNAUTHORIZED")
    async with scene.server.application.database.read() as tx:
        assert len(await stored_identifiers.list_bindings(tx, UserID(alice.user_id))) == 2


async def test_what_is_bound_is_unbound_where_it_was(scene: Scene) -> None:
    alice, id_server = scene.alice, scene.id_server
    id_server.answers["3pid/bind"] = (200, {"medium": "email", "address": ADDRESS, "mxid": alice.user_id})
    id_server.answers["3pid/unbind"] = (200, {})

    assert await alice.ok("POST", "/v3/account/3pid/bind", scene.credentials) == {}
    [body] = id_server.bodies("3pid/bind")
    assert body == {"sid": "1", "client_secret": "secret", "mxid": alice.user_id}
    assert id_server.asked[0][1].headers["authorization"] == f"Bearer {TOKEN}"
    identifier = {"medium": "email", "address": ADDRESS}
    unbound = await alice.ok("POST", "/v3/account/3pid/unbind", identifier)

    assert unbound == {"id_server_unbind_result": "success"}
    path, request = id_server.asked[-1]
    assert path == "3pid/unbind"
    assert orjson.loads(request.body) == {"mxid": alice.user_id, "threepid": identifier}
    signed = SignedRequest(
        method="POST",
        uri=request.path,
        origin=ServerName(scene.server.name),
        destination=ServerName(id_server.name),
        content=request.body,
    )
    verify(parse_header(request.headers["authorization"]), signed, bytes(SIGNING_KEY.public_key))
    again = await alice.ok("POST", "/v3/account/3pid/unbind", identifier)
    assert again == {"id_server_unbind_result": "no-support"}


async def test_an_account_that_ends_is_bound_nowhere(scene: Scene) -> None:
    alice, id_server = scene.alice, scene.id_server
    id_server.answers["3pid/bind"] = (200, {"medium": "email", "address": ADDRESS})
    id_server.answers["3pid/unbind"] = (200, {})
    await alice.ok("POST", "/v3/account/3pid", {"three_pid_creds": scene.credentials})

    ended = await alice.ok("POST", "/v3/account/deactivate", {"auth": alice.password_auth()})

    assert ended == {"id_server_unbind_result": "success"}
    assert len(id_server.bodies("3pid/unbind")) == 1


async def test_a_server_that_refuses_is_told_of(scene: Scene) -> None:
    alice, id_server = scene.alice, scene.id_server
    id_server.answers["3pid/bind"] = (403, {"errcode": "M_THREEPID_AUTH_FAILED", "error": "Sign them"})
    id_server.answers["3pid/unbind"] = (501, {"errcode": "M_UNRECOGNIZED", "error": "Not here"})

    status, error = await alice.post("/v3/account/3pid/bind", scene.credentials)
    assert (status, error["errcode"], error["error"]) == (403, "M_THREEPID_AUTH_FAILED", "Sign them")
    body = {"medium": "email", "address": ADDRESS, "id_server": id_server.name}
    assert await alice.ok("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "no-support"}


@pytest.mark.parametrize(
    ("changes", "status", "errcode"),
    [
        ({"id_server": "elsewhere.test"}, 400, "M_SERVER_NOT_TRUSTED"),
        ({"id_server": "127.0.0.1/x?"}, 400, "M_INVALID_PARAM"),
        ({"id_server": "localhost:1"}, 502, "M_UNKNOWN"),
        ({"id_server": None}, 400, "M_MISSING_PARAM"),
        ({"id_access_token": "a\r\nb: c"}, 400, "M_INVALID_PARAM"),
        ({"id_access_token": None}, 400, "M_MISSING_PARAM"),
    ],
)
async def test_a_server_that_may_not_be_asked_is_not(
    scene: Scene, changes: dict[str, object], status: int, errcode: str
) -> None:
    answer = await scene.alice.post("/v3/account/3pid/bind", {**scene.credentials, **changes})

    assert (answer.status, answer.body["errcode"]) == (status, errcode)
    assert scene.id_server.asked == []


@pytest.mark.parametrize("answer", [(200, []), (200, "x"), (500, {"errcode": "M_UNKNOWN"}), (302, {}), (400, {})])
async def test_a_senseless_answer_is_none(scene: Scene, answer: tuple[int, Any]) -> None:
    scene.id_server.answers["3pid/bind"] = answer

    status, error = await scene.alice.post("/v3/account/3pid/bind", scene.credentials)

    assert (status, error["errcode"]) == (502, "M_UNKNOWN")


# --- inviting


async def test_whoever_is_known_by_an_address_is_invited(scene: Scene) -> None:
    carol = await scene.server.register("carol")
    scene.id_server.knows({ADDRESS: carol.user_id})
    room = await create_room(scene.alice)

    await scene.alice.ok("POST", f"/v3/rooms/{quote(room)}/invite", scene.invite)

    invited = (await carol.ok("GET", "/v3/sync"))["rooms"]["invite"]
    assert room in invited
    assert scene.id_server.bodies("lookup") == [
        {"addresses": [hashed(ADDRESS)], "algorithm": "sha256", "pepper": PEPPER}
    ]
    assert scene.id_server.bodies("store-invite") == []


async def test_whoever_is_not_is_promised_an_invite(scene: Scene) -> None:
    scene.id_server.knows({})
    scene.id_server.answers["store-invite"] = (200, STORED)
    await scene.alice.put(f"/v3/profile/{quote(scene.alice.user_id)}/displayname", {"displayname": "Alice"})
    room = await create_room(scene.alice, name="Tea")

    await scene.alice.ok("POST", f"/v3/rooms/{quote(room)}/invite", scene.invite)

    path = f"/v3/rooms/{quote(room)}/state/m.room.third_party_invite/promise"
    keys = [
        {"public_key": "a2V5", "key_validity_url": "https://id.test/isvalid"},
        {"public_key": "b3RoZXI", "key_validity_url": "https://id.test/ephemeral"},
    ]
    assert await scene.alice.ok("GET", path) == {"display_name": "c...@e...", "public_keys": keys, **keys[0]}
    [told] = scene.id_server.bodies("store-invite")
    assert told["address"] == ADDRESS
    assert (told["room_id"], told["sender"]) == (room, scene.alice.user_id)
    assert (told["room_name"], told["sender_display_name"], told["room_join_rules"]) == ("Tea", "Alice", "invite")


async def test_nobody_hears_of_an_invite_that_may_not_be(scene: Scene) -> None:
    room, mallory = await create_room(scene.alice), await scene.server.register("mallory")
    scene.id_server.knows({})
    path = f"/v3/rooms/{quote(room)}/invite"

    status, error = await mallory.post(path, scene.invite)
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")
    for changes in ({"medium": "msisdn"}, {"address": "nobody"}, {"id_server": "elsewhere.test"}):
        assert (await scene.alice.post(path, {**scene.invite, **changes})).status == 400
    assert scene.id_server.asked == []


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {**STORED, "public_keys": []},
        {**STORED, "public_keys": ["x"]},
        {**STORED, "public_keys": [{"public_key": 1}]},
        {**STORED, "token": "x" * 300},
        {**STORED, "display_name": None},
    ],
)
async def test_a_promise_that_makes_no_sense_is_none(scene: Scene, stored: dict[str, Any]) -> None:
    scene.id_server.knows({})
    scene.id_server.answers["store-invite"] = (200, stored)
    room = await create_room(scene.alice)

    status, _ = await scene.alice.post(f"/v3/rooms/{quote(room)}/invite", scene.invite)

    assert status == 502
    state = await scene.alice.ok("GET", f"/v3/rooms/{quote(room)}/state")
    assert not [event for event in state if event["type"] == "m.room.third_party_invite"]


async def test_a_new_room_invites_by_address(scene: Scene) -> None:
    scene.id_server.knows({})
    scene.id_server.answers["store-invite"] = (200, STORED)

    created = await scene.alice.ok("POST", "/v3/createRoom", {"invite_3pid": [scene.invite]})

    path = f"/v3/rooms/{quote(created['room_id'])}/state/m.room.third_party_invite/promise"
    assert (await scene.alice.ok("GET", path))["display_name"] == "c...@e..."
    too_many = {"invite_3pid": 21 * [scene.invite]}
    assert (await scene.alice.post("/v3/createRoom", too_many)).status == 400
