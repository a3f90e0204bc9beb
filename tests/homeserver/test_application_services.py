"""Application services as clients (Application Service API, "Client-Server API Extensions")."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from federation.protocol.types import ServerName
from homeserver.services import application_service_client
from homeserver.services.application_services import ApplicationServiceError, load_all, parse
from tests.client import PASSWORD, Answer, Client, Server, quote, unique
from tests.listening_service import ListeningService
from tests.rooms import create_room, pdus_of
from tests.servers import running

REGISTRATION: dict[str, Any] = {
    "id": "irc",
    "url": None,
    "as_token": "the token of irc",
    "hs_token": "the server's token",
    "sender_localpart": "_irc_bot",
    "namespaces": {
        "users": [
            {"exclusive": True, "regex": "@_irc_.*"},
            {"exclusive": False, "regex": "@shared-.*"},
        ],
        "aliases": [{"exclusive": True, "regex": "#irc_.*"}],
    },
}
TYPE = "m.login.application_service"


@pytest_asyncio.fixture(scope="session")
async def bridged(databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with an application service."""
    file = tmp_path_factory.mktemp("bridge") / "irc.yaml"
    file.write_text(yaml.safe_dump(REGISTRATION))
    async with running(databases("bridged"), application_service_files=(file,)) as server:
        yield server


@pytest.fixture
def service(bridged: Server) -> Client:
    """The application service as a client."""
    client = bridged.anonymous.anonymous()
    client.access_token = REGISTRATION["as_token"]
    return client


async def a_ghost(service: Client) -> str:
    """A user of the service, newly made."""
    body = {"type": TYPE, "username": unique("_irc_ghost"), "inhibit_login": True}
    user_id: str = (await service.ok("POST", "/v3/register", body))["user_id"]
    return user_id


async def test_a_service_acts_as_its_own_user(bridged: Server, service: Client) -> None:
    assert await service.ok("GET", "/v3/account/whoami") == {
        "user_id": f"@_irc_bot:{bridged.name}",
        "is_guest": False,
    }


async def test_a_service_acts_as_users_it_made(service: Client) -> None:
    ghost = await a_ghost(service)

    assert (await service.get("/v3/account/whoami", user_id=ghost)).body == {"user_id": ghost, "is_guest": False}


async def test_a_service_does_not_act_as_others(bridged: Server, service: Client) -> None:
    alice = await bridged.register()
    for user_id in (alice.user_id, f"@_irc_unknown:{bridged.name}", "@_irc_x:elsewhere.test", "nonsense"):
        status, error = await service.get("/v3/account/whoami", user_id=user_id)
        assert (status, error["errcode"]) == (403, "M_FORBIDDEN"), user_id


async def test_a_service_names_a_device(service: Client) -> None:
    ghost = await a_ghost(service)
    status, error = await service.get("/v3/account/whoami", user_id=ghost, device_id="BRIDGE")
    assert (status, error["errcode"]) == (400, "M_UNKNOWN_DEVICE")

    made = await service.put("/v3/devices/BRIDGE", {"display_name": "bridge"}, user_id=ghost)
    known = await service.put("/v3/devices/BRIDGE", {}, user_id=ghost)

    assert (made.status, known.status) == (201, 200)
    whoami = await service.get("/v3/account/whoami", user_id=ghost, device_id="BRIDGE")
    assert (whoami.status, whoami.body["device_id"]) == (200, "BRIDGE")
    assert (await service.delete("/v3/devices/BRIDGE", user_id=ghost)).status == 200
    assert (await service.get("/v3/account/whoami", user_id=ghost, device_id="BRIDGE")).status == 400


async def test_a_service_logs_its_users_in(bridged: Server, service: Client) -> None:
    ghost = await a_ghost(service)
    body = {"type": TYPE, "identifier": {"type": "m.id.user", "user": ghost}, "device_id": "GHOST"}

    tokens = await service.ok("POST", "/v3/login", body)

    whoami = await bridged.anonymous.logged_in(tokens).ok("GET", "/v3/account/whoami")
    assert (whoami["user_id"], whoami["device_id"]) == (ghost, "GHOST")
    assert {"type": TYPE} in (await bridged.anonymous.get("/v3/login")).body["flows"]


async def test_outside_its_namespaces_a_service_makes_nobody(bridged: Server, service: Client) -> None:
    alice = await bridged.register()
    for path, body in (
        ("/v3/register", {"type": TYPE, "username": unique("human")}),
        ("/v3/login", {"type": TYPE, "user": alice.user_id}),
    ):
        status, error = await service.post(path, body)
        assert (status, error["errcode"]) == (400, "M_EXCLUSIVE")
    status, error = await service.post("/v3/login", {"type": TYPE, "user": "_irc_nobody_yet"})
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_only_a_service_uses_its_login_type(bridged: Server) -> None:
    alice = await bridged.register()
    for client, errcode in ((bridged.anonymous, "M_MISSING_TOKEN"), (alice, "M_UNKNOWN_TOKEN")):
        for path in ("/v3/register", "/v3/login"):
            body = {"type": TYPE, "username": unique("_irc_x"), "user": "_irc_x"}
            status, error = await client.post(path, body)
            assert (status, error["errcode"]) == (401, errcode)


async def test_people_stay_out_of_exclusive_namespaces(bridged: Server) -> None:
    for name in (unique("_irc_human"), "_irc_bot"):
        answer = await bridged.anonymous.get("/v3/register/available", username=name)
        assert (answer.status, answer.body["errcode"]) == (400, "M_EXCLUSIVE")
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        answer = await bridged.anonymous.post("/v3/register", body)
        assert (answer.status, answer.body["errcode"]) == (400, "M_EXCLUSIVE")
    assert (await bridged.register("shared")).user_id.startswith("@shared-")


async def test_a_deactivated_user_is_not_acted_as(service: Client) -> None:
    ghost = await a_ghost(service)
    assert (await service.get("/v3/account/whoami", user_id=ghost)).status == 200

    assert (await service.post("/v3/account/deactivate", {}, user_id=ghost)).status == 200

    assert (await service.get("/v3/account/whoami", user_id=ghost)).status == 401


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": None}, "id is required"),
        ({"as_token": ""}, "as_token is required"),
        ({"url": "irc.test"}, "url must be"),
        ({"sender_localpart": "A b"}, "sender_localpart"),
        ({"namespaces": []}, None),
        ({"namespaces": "users"}, "namespaces must be"),
        ({"namespaces": {"users": [{"regex": "("}]}}, "no regex"),
        ({"namespaces": {"users": ["@x"]}}, "needs a regex"),
        ({"namespaces": {"rooms": {}}}, None),
        ({"namespaces": {"rooms": "x"}}, "must be a list"),
        ({"rate_limited": "no"}, "rate_limited must be"),
        ({"protocols": [1]}, "protocols must be"),
    ],
)
def test_a_registration_is_checked(changes: dict[str, Any], complaint: str | None) -> None:
    data = {**REGISTRATION, **changes}
    if complaint is None:
        parse(data, ServerName("hearth.test"))
        return
    with pytest.raises(ApplicationServiceError, match=complaint):
        parse(data, ServerName("hearth.test"))


def test_two_services_share_no_token(tmp_path: Path) -> None:
    files = (tmp_path / "one.yaml", tmp_path / "two.yaml")
    for number, file in enumerate(files):
        file.write_text(yaml.safe_dump({**REGISTRATION, "id": f"service {number}"}))

    with pytest.raises(ApplicationServiceError, match="the same as_token"):
        load_all(files, ServerName("hearth.test"))


def test_a_file_that_is_no_registration_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("{")

    with pytest.raises(ApplicationServiceError, match=r"broken\.yaml"):
        load_all((file,), ServerName("hearth.test"))


async def test_only_the_service_makes_aliases_of_its_namespace(bridged: Server, service: Client) -> None:
    alice = await bridged.register()
    room_id = await create_room(alice)
    name = unique("irc_channel")
    path = f"/v3/directory/room/{quote(f'#{name}:{bridged.name}')}"

    for answer in (
        await alice.put(path, {"room_id": room_id}),
        await alice.post("/v3/createRoom", {"room_alias_name": name}),
    ):
        assert (answer.status, answer.body["errcode"]) == (400, "M_EXCLUSIVE")
    await service.ok("PUT", path, {"room_id": room_id})
    assert (await alice.ok("GET", path))["room_id"] == room_id


async def test_a_service_sends_with_the_time_of_elsewhere(bridged: Server, service: Client) -> None:
    room_id = await create_room(service)
    path = f"/v3/rooms/{room_id}/send/m.room.message"

    await service.put(f"{path}/t1", {"body": "old"}, ts="1534535223283")
    await service.put(f"{path}/t1", {"body": "old"}, ts="1534535223283")

    messages = await pdus_of(bridged, room_id, "m.room.message")
    assert [message["origin_server_ts"] for message in messages] == [1534535223283]


async def test_nobody_else_gives_a_time(bridged: Server) -> None:
    alice = await bridged.register()
    room_id = await create_room(alice)

    await alice.put(f"/v3/rooms/{room_id}/send/m.room.message/t1", {"body": "new"}, ts="1")

    assert (await pdus_of(bridged, room_id))[-1]["origin_server_ts"] > 1


async def test_a_network_has_a_directory_of_its_own(bridged: Server, service: Client) -> None:
    alice = await bridged.register()
    name = unique("channel")
    room_id = await create_room(service, preset="public_chat", name=name)
    path = f"/v3/directory/list/appservice/libera/{quote(room_id)}"

    await service.ok("PUT", path, {"visibility": "public"})

    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"third_party_instance_id": "irc|libera"}, True),
        ({"third_party_instance_id": "irc|other"}, False),
        ({"include_all_networks": True}, True),
    ]
    for body, is_listed in cases:
        found = await alice.ok("POST", "/v3/publicRooms", {**body, "filter": {"generic_search_term": name}})
        chunk = found["chunk"]
        assert (room_id in [room["room_id"] for room in chunk]) is is_listed
    assert (await alice.put(path, {"visibility": "private"})).status == 403


# --- pings


@pytest_asyncio.fixture
async def pinged() -> AsyncIterator[ListeningService]:
    """Something that listens where the service should."""
    service = ListeningService()
    async with service.listening():
        yield service


async def ping(conninfo: str, tmp_path: Path, url: str | None, body: Any = None, **changes: Any) -> Answer:
    """What a service of this URL is told when it asks to be pinged."""
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump({**REGISTRATION, "url": url}))
    async with running(conninfo, application_service_files=(file,)) as server:
        client = server.anonymous.anonymous()
        client.access_token = changes.get("token", REGISTRATION["as_token"])
        if client.access_token == "":
            client = await server.register("somebody")
        return await client.post(f"/v1/appservice/{changes.get('name', 'irc')}/ping", body or {})


async def test_a_service_that_hears_is_told_how_soon(conninfo: str, tmp_path: Path, pinged: ListeningService) -> None:
    status, answer = await ping(conninfo, tmp_path, pinged.url + "/", {"transaction_id": "one"})

    assert status == 200
    assert 0 <= answer["duration_ms"] < 10_000
    (request,) = pinged.requests
    assert (request.path, request.headers["Authorization"]) == ("/_matrix/app/v1/ping", "Bearer the server's token")
    assert request.body == {"transaction_id": "one"}


async def test_a_service_that_answers_otherwise_is_told_what(
    conninfo: str, tmp_path: Path, pinged: ListeningService
) -> None:
    pinged.status, pinged.text = 401, "who are you?"
    status, answer = await ping(conninfo, tmp_path, pinged.url)

    assert (status, answer["errcode"]) == (502, "M_BAD_STATUS")
    assert (answer["status"], answer["body"]) == (401, "who are you?")
    assert pinged.requests[0].body == {}


async def test_a_service_that_is_not_there_is_told_so(conninfo: str, tmp_path: Path) -> None:
    status, answer = await ping(conninfo, tmp_path, "http://127.0.0.1:9")
    assert (status, answer["errcode"]) == (502, "M_CONNECTION_FAILED")


@pytest.mark.one_process("its patience is shortened here")
async def test_a_service_that_takes_too_long_is_told_so(
    conninfo: str, tmp_path: Path, pinged: ListeningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application_service_client, "PING_SECONDS", 0.2)
    pinged.seconds = 5.0
    status, answer = await ping(conninfo, tmp_path, pinged.url)
    assert (status, answer["errcode"]) == (504, "M_CONNECTION_TIMEOUT")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"url": None}, (400, "M_URL_NOT_SET")),
        ({"name": "other"}, (403, "M_FORBIDDEN")),
        ({"token": ""}, (403, "M_FORBIDDEN")),
        ({"token": "nobody's"}, (401, "M_UNKNOWN_TOKEN")),
        ({"body": {"transaction_id": 1}}, (400, "M_BAD_JSON")),
    ],
)
async def test_a_ping_that_cannot_be(
    conninfo: str, tmp_path: Path, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    answer = await ping(conninfo, tmp_path, **{"url": "http://127.0.0.1:9", **changes})
    assert (answer.status, answer.body["errcode"]) == expected
