"""Users of ours are invited by other servers: what is signed, what is refused, what their clients see."""

from typing import Any

import pytest

from federation.protocol import event_format, signatures
from federation.protocol.room_versions import ROOM_VERSIONS, get_rules
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import JsonObject, ServerName
from federation.rooms import invited
from homeserver.config import RateLimit, RateLimits
from tests.client import Client, Server
from tests.federation.handshakes import a_public_room, joined
from tests.federation.peer import Peer, path_of
from tests.federation.remote_room import joined_room
from tests.federation.their_room import TheirRoom
from tests.homeserver.syncs import sync, timeline
from tests.rooms import put_state
from tests.servers import SIGNING_KEY, running

VERSIONS = list(ROOM_VERSIONS)


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


@pytest.mark.one_process("a limit is lowered here")
async def test_one_server_has_no_invites_without_end(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invited, "MAX_PENDING", 2)
    rooms = [TheirRoom(peer) for _ in range(3)]
    answers = [(await room.send(room.invite(alice.user_id))).status for room in rooms]
    assert answers == [200, 200, 403]

    another = TheirRoom(await Peer(server).trust())
    assert (await another.send(another.invite(alice.user_id))).status == 200
    await alice.ok("POST", f"/v3/rooms/{rooms[0].room_id}/leave", {})
    assert (await rooms[2].send(rooms[2].invite(alice.user_id))).status == 200


@pytest.mark.one_process("a limit is lowered here")
async def test_the_invites_of_one_server_tell_not_too_much(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invited, "MAX_PENDING_BYTES", 3_000)
    rooms = [TheirRoom(peer) for _ in range(3)]
    told = {"type": "m.room.topic", "state_key": "", "sender": peer.user(), "content": {"topic": "x" * 2_000}}
    answers = [(await room.send(room.invite(alice.user_id), invite_room_state=[told])).status for room in rooms]
    assert answers == [200, 200, 403]


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


@pytest.mark.parametrize("version", ["10", "12"])
async def test_of_much_that_is_told_a_part_is_kept(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room = TheirRoom(peer, version)
    room.add("m.room.topic", {"topic": "x" * 60_000})
    room.add("m.room.avatar", {"url": "x" * 60_000})
    room.add("m.room.canonical_alias", {"alias": "#x:y"})

    assert (await room.send(room.invite(alice.user_id))).status == 200
    events = (await sync(alice))["rooms"]["invite"][room.room_id]["invite_state"]["events"]
    kept = ["m.room.create", "m.room.name", "m.room.topic", "m.room.canonical_alias", "m.room.member"]
    assert [event["type"] for event in events] == kept


async def test_odd_numbers_in_an_old_invite(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer, "5")
    content = {"membership": "invite", "x": 2**62, "y": 0.5}

    assert (await room.send(room.invite(alice.user_id, content=content))).status == 200
    assert list((await sync(alice))["rooms"]["invite"]) == [room.room_id]


# --- what becomes of invites


def an_end(room: TheirRoom, target: str, invite: JsonObject, membership: str = "leave", **changes: Any) -> JsonObject:
    """The peer's user takes an invite back."""
    cited = [room.reference(room.state["m.room.create", ""]), room.reference(invite)]
    template = room.make("m.room.member", {"membership": membership}, target)
    return room.peer.finish(template, room.rules, **{"auth_events": cited, **changes})


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_an_invite_that_is_taken_back_is_a_room_that_was_left(
    server: Server, alice: Client, peer: Peer, version: str, membership: str
) -> None:
    room = TheirRoom(peer, version)
    invite = room.invite(alice.user_id)
    await room.send(invite)
    before = await sync(alice)
    end = an_end(room, alice.user_id, invite, membership)

    assert await room.push(end) == {peer.id_of(end, room.rules): {}}
    told = (await sync(alice, since=before["next_batch"]))["rooms"]
    assert list(told) == ["leave"]
    assert timeline({"rooms": told}, room.room_id, "leave")[0]["content"] == {"membership": membership}
    assert "rooms" not in await sync(alice)


async def test_an_invite_is_not_ended_by_who_does_not_know_it(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)
    invite = room.invite(alice.user_id)
    await room.send(invite)
    state = room.reference(room.state["m.room.create", ""])
    ends = {
        "another invite": an_end(room, alice.user_id, room.invite(alice.user_id, depth=9)),
        "no invite": an_end(room, alice.user_id, invite, auth_events=[state]),
        "a join": an_end(room, alice.user_id, invite, "join"),
        "by the user": an_end(room, alice.user_id, invite, sender=alice.user_id),
        "unsigned": {**an_end(room, alice.user_id, invite), "signatures": {}},
        "changed": {**an_end(room, alice.user_id, invite), "origin_server_ts": 1},
        "of another": an_end(room, f"@nobody:{server.name}", invite),
    }

    for name, end in ends.items():
        assert {} not in (await room.push(end)).values(), name
    assert list((await sync(alice))["rooms"]["invite"]) == [room.room_id]


async def test_an_invite_follows_another(server: Server, alice: Client, peer: Peer) -> None:
    room = TheirRoom(peer)
    first = room.invite(alice.user_id)
    await room.send(first)
    await room.push(an_end(room, alice.user_id, first))
    before = await sync(alice)

    assert (await room.send(room.invite(alice.user_id, depth=9))).status == 200
    assert list((await sync(alice, since=before["next_batch"]))["rooms"]["invite"]) == [room.room_id]


async def test_who_left_a_room_with_our_server_is_invited_back(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    told = await joined(peer, room_id)
    await alice.ok("POST", f"/v3/rooms/{room_id}/leave", {})
    before = await sync(alice)
    template = {key: told["event"][key] for key in ("auth_events", "prev_events", "depth", "room_id", "type")}
    content = {"membership": "invite"}
    rules = get_rules("11")
    invite = peer.finish({**template, "sender": peer.user(), "state_key": alice.user_id, "content": content}, rules)

    body = {"room_version": "11", "event": invite, "invite_room_state": told["state"]}
    path = path_of("/v2/invite/{}/{}", room_id, peer.id_of(invite, rules))
    assert (await peer.request("PUT", path, body)).status == 200
    assert list((await sync(alice, since=before["next_batch"]))["rooms"]) == ["invite"]
    first = await sync(alice, filter={"room": {"include_leave": True}})
    assert list(first["rooms"]) == ["invite"]
    body["room_version"] = "10"
    answer = await peer.request("PUT", path, body)
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("api", ["v1", "v2"])
async def test_a_server_that_is_shut_out_of_our_room_invites_nobody_to_it(
    server: Server, alice: Client, bob: Client, peer: Peer, api: str
) -> None:
    room = await joined_room(alice, peer, "2")
    invite = room.make("m.room.member", {"membership": "invite"}, state_key=bob.user_id)
    path = path_of(f"/{api}/invite/{{}}/{{}}", room.room_id, room.id_of(invite))
    body = {"room_version": "2", "event": invite, "invite_room_state": []} if api == "v2" else invite
    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [peer.name]})

    answer = await peer.request("PUT", path, body)

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    assert "rooms" not in await sync(bob)
    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"]})
    assert (await peer.request("PUT", path, body)).status == 200


async def test_a_server_that_invites_without_end_is_told_to_wait(conninfo: str) -> None:
    limits = RateLimits(invites=RateLimit(per_second=0.001, burst=2))
    async with running(conninfo, rate_limits=limits) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        peer, other = await Peer(server).trust(), await Peer(server).trust()
        rooms = [TheirRoom(each) for each in (peer, peer, peer, other)]

        answers = [await room.send(room.invite(alice.user_id)) for room in rooms]
        to_bob = await rooms[0].send(rooms[0].invite(bob.user_id))
        assert len((await sync(alice))["rooms"]["invite"]) == 3

    assert [answer.status for answer in answers] == [200, 200, 429, 200]
    assert to_bob.status == 200
