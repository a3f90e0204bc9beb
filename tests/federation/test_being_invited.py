"""Users of ours are invited by other servers: what is signed, what is refused, what their clients see."""

from typing import Any

import pytest
import pytest_asyncio

from federation.protocol import event_format, signatures
from federation.protocol.room_versions import ROOM_VERSIONS, get_rules
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import JsonObject, RoomID, ServerName
from tests.clients import Client, Server, unique
from tests.federation.peer import Peer, path_of
from tests.homeserver.syncs import sync
from tests.servers import SIGNING_KEY

VERSIONS = list(ROOM_VERSIONS)


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


class TheirRoom:
    """A room that is on the peer alone."""

    def __init__(self, peer: Peer, version: str = "11") -> None:
        self.peer = peer
        self.rules = get_rules(version)
        self.room_id = RoomID(f"!{unique('room')}:{peer.name}")
        self.state: dict[tuple[str, str], JsonObject] = {}
        create: JsonObject = {"room_version": version, "creator": peer.user(), "test": self.room_id}
        event = self.add("m.room.create", create)
        if self.rules.room_id_is_create_hash:
            self.room_id = RoomID("!" + peer.id_of(event, self.rules)[1:])
        self.add("m.room.member", {"membership": "join"}, peer.user())
        self.add("m.room.name", {"name": "Elsewhere"})

    def make(self, event_type: str, content: JsonObject, state_key: str | None = "", **changes: Any) -> JsonObject:
        template: JsonObject = {
            "type": event_type,
            "sender": self.peer.user(),
            "state_key": state_key,
            "content": content,
            "room_id": self.room_id,
            "depth": 5,
            "prev_events": [],
            "auth_events": [self.reference(event) for event in self.state.values()][:3],
        }
        if event_type == "m.room.create" and self.rules.room_id_is_create_hash:
            del template["room_id"]
        return self.peer.finish(template, self.rules, **changes)

    def reference(self, event: JsonObject) -> Any:
        event_id = self.peer.id_of(event, self.rules)
        return [event_id, {"sha256": "x"}] if self.rules.references_carry_hashes else event_id

    def add(self, event_type: str, content: JsonObject, state_key: str = "") -> JsonObject:
        event = self.state[event_type, state_key] = self.make(event_type, content, state_key)
        return event

    def invite(self, target: str, **changes: Any) -> JsonObject:
        return self.make("m.room.member", **{"content": {"membership": "invite"}, "state_key": target, **changes})

    def body(self, event: JsonObject, **changes: Any) -> JsonObject:
        told = [event for key, event in self.state.items() if key[0] != "m.room.member"]
        return {"room_version": self.rules.version, "event": event, "invite_room_state": told, **changes}

    def path(self, event: JsonObject, api: str = "v2") -> str:
        return path_of(f"/{api}/invite/{{}}/{{}}", self.room_id, self.peer.id_of(event, self.rules))

    async def send(self, event: JsonObject, **changes: Any) -> Any:
        return await self.peer.request("PUT", self.path(event), self.body(event, **changes))


def told(user: Client, room: TheirRoom) -> list[Any]:
    """What an invited user is told of the room."""
    return [
        *(
            {name: event[name] for name in ("type", "state_key", "sender", "content")}
            for key, event in room.state.items()
            if key[0] != "m.room.member"
        ),
        {
            "type": "m.room.member",
            "state_key": user.user_id,
            "sender": room.peer.user(),
            "content": {"membership": "invite"},
        },
    ]


def is_signed_by_us(server: Server, event: JsonObject, room: TheirRoom) -> bool:
    name, key = ServerName(server.name), VerifyKey(public_key=SIGNING_KEY.public_key)
    pdu = event_format.parse(event, room.rules)
    return signatures.is_signed_with(pdu, name, SIGNING_KEY.key_id, key.public_key)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_invite_is_signed_and_told(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room = TheirRoom(peer, version)
    before = await sync(alice)
    invite = room.invite(alice.user_id)

    answer = await room.send(invite)
    assert answer.status == 200, answer.body
    signed = answer.body["event"]
    assert is_signed_by_us(server, signed, room)
    assert {**signed, "signatures": None} == {**invite, "signatures": None}
    answer = await sync(alice, since=before["next_batch"])
    assert answer["rooms"] == {"invite": {room.room_id: {"invite_state": {"events": told(alice, room)}}}}


@pytest.mark.parametrize("version", ["1", "2"])
async def test_old_servers_are_answered_in_an_array(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room = TheirRoom(peer, version)
    invite = room.invite(alice.user_id)
    state = [event for key, event in room.state.items() if key[0] != "m.room.member"]

    code, answer = await peer.ok("PUT", room.path(invite, "v1"), {**invite, "unsigned": {"invite_room_state": state}})
    assert code == 200
    assert is_signed_by_us(server, answer["event"], room)
    assert (await sync(alice))["rooms"]["invite"][room.room_id]["invite_state"]["events"] == told(alice, room)


async def test_an_invite_that_is_repeated_is_told_once(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)
    invite = room.invite(alice.user_id)
    await room.send(invite)
    before = await sync(alice)

    assert (await room.send(invite)).status == 200
    assert "rooms" not in await sync(alice, since=before["next_batch"])


async def refused(room: TheirRoom, alice: Client, event: JsonObject, **changes: Any) -> tuple[int, str]:
    """How an invite is refused, of which nobody hears."""
    answer = await room.send(event, **changes)
    assert answer.status >= 400, answer.body
    assert "rooms" not in await sync(alice)
    return answer.status, answer.body["errcode"]


async def test_who_takes_no_invites_gets_none(server: Server, alice: Client, peer: Peer) -> None:
    path = f"/v3/user/{alice.user_id}/account_data/m.invite_permission_config"
    await alice.ok("PUT", path, {"default_action": "block"})
    room = TheirRoom(peer)

    assert await refused(room, alice, room.invite(alice.user_id)) == (403, "M_INVITE_BLOCKED")


async def test_who_is_not_here_cannot_be_invited(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)

    assert await refused(room, alice, room.invite(f"@nobody:{server.name}")) == (403, "M_FORBIDDEN")
    assert await refused(room, alice, room.invite("@bob:elsewhere.test")) == (400, "M_INVALID_PARAM")


async def test_who_is_gone_cannot_be_invited(server: Server, alice: Client, bob: Client, peer: Peer) -> None:
    await bob.ok("POST", "/v3/account/deactivate", {"auth": bob.password_auth()})
    room = TheirRoom(peer)

    assert await refused(room, alice, room.invite(bob.user_id)) == (403, "M_FORBIDDEN")


async def test_a_room_version_that_nobody_knows(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)
    answer = await room.send(room.invite(alice.user_id), room_version="org.example.future")

    assert (answer.status, answer.body["errcode"]) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer.body["room_version"] == "org.example.future"


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"membership": "join"}},
        {"content": {"membership": "knock"}},
        {"content": {}},
        {"type": "m.room.name"},
        {"room_id": "!other:elsewhere.test"},
        {"sender": "@eve:elsewhere.test"},
        {"state_key": None},
    ],
)
async def test_what_is_no_invite_is_not_signed(
    server: Server, alice: Client, peer: Peer, changes: dict[str, Any]
) -> None:
    room = TheirRoom(peer)

    assert await refused(room, alice, room.invite(alice.user_id, **changes)) == (400, "M_INVALID_PARAM")


async def test_an_invite_that_was_tampered_with_is_not_signed(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)
    invite = room.invite(alice.user_id)

    unsigned = {**invite, "signatures": {peer.name: {peer.key.key_id: "x" * 86}}}
    assert await refused(room, alice, unsigned) == (400, "M_INVALID_PARAM")
    longer = {**invite, "content": {**invite["content"], "reason": "added"}}  # the signature covers what is redacted
    assert await refused(room, alice, longer) == (400, "M_INVALID_PARAM")
    assert await refused(room, alice, {**invite, "hashes": {"sha256": "x"}}) == (400, "M_INVALID_PARAM")


async def test_an_invite_that_the_path_does_not_name_is_not_signed(server: Server, alice: Client, peer: Peer) -> None:
    room, other = TheirRoom(peer), TheirRoom(peer)
    invite, another = room.invite(alice.user_id), room.invite(alice.user_id, depth=7)

    for path in (other.path(invite), room.path(another)):
        answer = await peer.request("PUT", path, room.body(invite))
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert "rooms" not in await sync(alice)


async def test_a_server_brings_invites_of_its_own_users_alone(server: Server, alice: Client, peer: Peer) -> None:
    other = await Peer(server).trust()
    room = TheirRoom(peer)
    invite = room.invite(alice.user_id)

    answer = await other.request("PUT", room.path(invite), room.body(invite))
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert "rooms" not in await sync(alice)


# --- what is told of the room


def damaged(room: TheirRoom) -> dict[str, list[Any]]:
    """Ways in which `invite_room_state` does not hold, from room version 12 on."""
    create, name = room.state["m.room.create", ""], room.state["m.room.name", ""]
    stripped = {key: name[key] for key in ("type", "sender", "state_key", "content")}
    return {
        "no create": [name],
        "nothing": [],
        "stripped": [create, stripped],
        "unsigned": [create, {**name, "signatures": {}}],
        "not its signature": [create, {**name, "origin_server_ts": 1}],
        "another room's": [create, TheirRoom(room.peer, "12").state["m.room.name", ""]],
        "another room's create": [TheirRoom(room.peer, "12").state["m.room.create", ""]],
        "no object": [create, "m.room.name"],
        "no state": [create, room.peer.sign({k: v for k, v in name.items() if k != "state_key"}, room.rules)],
        "many": [create] * 101,
    }


DAMAGES = (
    "no create",
    "nothing",
    "stripped",
    "unsigned",
    "not its signature",
    "another room's",
    "another room's create",
    "no object",
    "no state",
    "many",
)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_is_told_must_hold_from_version_12(server: Server, alice: Client, peer: Peer, damage: str) -> None:
    room = TheirRoom(peer, "12")
    state = damaged(room)[damage]

    answer = await refused(room, alice, room.invite(alice.user_id), invite_room_state=state)
    assert answer == (400, "M_INVALID_PARAM")


async def test_old_rooms_are_told_of_as_far_as_it_makes_sense(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer, "10")
    name = {key: room.state["m.room.name", ""][key] for key in ("type", "sender", "state_key", "content")}
    deep: Any = {}
    for _ in range(500):
        deep = {"a": deep}
    state = [
        {**name, "unsigned": {"age": 1}, "extra": True},
        {**name, "type": 5},
        {**name, "type": "m.room.topic", "content": None},
        {**name, "type": "m.room.topic", "content": deep},
        {**name, "type": "m.room.topic", "room_id": "!other:elsewhere.test"},
        {**name, "type": "m.room.member", "state_key": alice.user_id, "content": {"membership": "join"}},
        None,
    ]

    assert (await room.send(room.invite(alice.user_id), invite_room_state=state)).status == 200
    events = (await sync(alice))["rooms"]["invite"][room.room_id]["invite_state"]["events"]
    assert events == [name, told(alice, room)[-1]]
