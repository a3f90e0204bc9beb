"""Joins that are not let in: by the room, its access control list and its conditions, or because they are forged."""

from typing import Any

import pytest
import pytest_asyncio

from federation.protocol import canonical_json, signatures
from federation.protocol.errors import MatrixError
from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject
from tests.client import Client, Server
from tests.federation.handshakes import (
    VERSIONS,
    a_public_room,
    joined,
    make,
    member_event,
    membership_in,
    path_for,
    refusal,
    send_join,
)
from tests.federation.peer import Peer, path_of
from tests.homeserver.syncs import sync
from tests.rooms import create_room, join, put_state, state_of

INVALID = (400, "M_INVALID_PARAM")
FORBIDDEN = (403, "M_FORBIDDEN")


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


async def ban(owner: Client, room_id: str, user_id: str) -> None:
    await owner.ok("POST", f"/v3/rooms/{room_id}/ban", {"user_id": user_id})


# --- templates


async def test_rooms_that_are_not_here(server: Server, alice: Client, peer: Peer) -> None:
    assert refusal(await make(peer, "!nothing:hearth.test")) == (404, "M_NOT_FOUND")
    room_id = await a_public_room(alice)
    await joined(peer, room_id)
    await alice.ok("POST", f"/v3/rooms/{room_id}/leave", {})  # now it is the peer's alone
    assert refusal(await make(peer, room_id)) == (404, "M_NOT_FOUND")
    assert refusal(await make(peer, room_id, "leave")) == (404, "M_NOT_FOUND")


async def test_the_version_must_be_known_to_who_asks(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice, "10")

    for versions in (["1", "9", "11"], []):
        answer = await make(peer, room_id, ver=versions)
        assert refusal(answer) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
        assert answer.body["room_version"] == "10"
    first = await a_public_room(alice, "1")
    assert (await make(peer, first, ver=[])).status == 200


async def test_a_server_asks_for_its_own_users_alone(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)

    for user_id in (alice.user_id, "@eve:elsewhere.test", "eve"):
        for membership in ("join", "leave", "knock"):
            path = path_of(f"/v1/make_{membership}/{{}}/{{}}", room_id, user_id)
            assert refusal(await peer.request("GET", path, ver=VERSIONS)) == FORBIDDEN


async def test_who_is_banned_or_not_invited_stays_out(server: Server, alice: Client, peer: Peer) -> None:
    private = await create_room(alice, preset="private_chat")
    assert refusal(await make(peer, private)) == FORBIDDEN
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)
    await ban(alice, room_id, peer.user())

    assert refusal(await make(peer, room_id)) == FORBIDDEN
    assert refusal(await send_join(peer, room_id, event)) == FORBIDDEN
    assert await membership_in(server, room_id, peer.user()) == "ban"


async def test_who_is_shut_out_by_the_access_control_list(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)
    await put_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": [peer.name.upper()]})

    assert refusal(await make(peer, room_id)) == FORBIDDEN
    assert refusal(await make(peer, room_id, "leave")) == FORBIDDEN
    assert refusal(await make(peer, room_id, "knock")) == FORBIDDEN
    for what in ("v1/send_join", "v2/send_join", "v1/send_leave", "v2/send_leave", "v1/send_knock"):
        assert refusal(await peer.request("PUT", path_for(peer, room_id, event, what=what), event)) == FORBIDDEN


async def test_a_room_that_is_closed_to_other_servers(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice, creation_content={"m.federate": False})

    assert refusal(await make(peer, room_id)) == FORBIDDEN


# --- forged events

CHANGES: dict[str, dict[str, Any]] = {
    "another type": {"type": "m.room.name"},
    "another membership": {"content": {"membership": "leave"}},
    "an invite": {"content": {"membership": "invite"}},
    "no membership": {"content": {}},
    "a membership that is none": {"content": {"membership": {}}},
    "no state": {"state_key": None},
    "of nobody": {"state_key": ""},
    "another room": {"room_id": "!other:hearth.test"},
    "another server's user": {"sender": "@eve:elsewhere.test", "state_key": "@eve:elsewhere.test"},
    "our own user": {"sender": "@alice:hearth.test", "state_key": "@alice:hearth.test"},
    "another target": {"state_key": "@mallory:elsewhere.test"},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_no_join_of_the_peers_user_is_not_written(
    server: Server, alice: Client, peer: Peer, change: str
) -> None:
    room_id = await a_public_room(alice)
    before = await state_of(server, room_id)
    event = await member_event(peer, room_id, **CHANGES[change])

    answer = refusal(await send_join(peer, room_id, event))
    assert answer == ((400, "M_BAD_JSON") if change in ("of nobody", "a membership that is none") else INVALID)
    assert await state_of(server, room_id) == before


def forged(peer: Peer, event: JsonObject) -> dict[str, Any]:
    """Ways in which an event does not hold, or is none."""
    rules = get_rules("11")
    other = {**event, "signatures": {"elsewhere.test": event["signatures"][peer.name]}}
    return {
        "a wrong signature": {**event, "signatures": {peer.name: {peer.key.key_id: "A" * 86}}},
        "no signature": {**event, "signatures": {}},
        "another server's signature": other,
        "an unknown key": {**event, "signatures": {peer.name: {"ed25519:x": "A" * 86}}},
        "changed after signing": {**event, "depth": event["depth"] + 1},
        "a wrong hash": {**event, "content": {**event["content"], "displayname": "Mallory"}},
        "no hash": {**event, "hashes": {}},
        "a float": peer.sign({**event, "content": {**event["content"], "x": 0.5}}, rules),
        "a huge number": {**event, "depth": 2**63},
        "too large": peer.sign({**event, "content": {**event["content"], "x": "x" * 70_000}}, rules),
        "many previous events": peer.sign({**event, "prev_events": [f"${n:043}" for n in range(21)]}, rules),
        "unknown previous events": peer.sign({**event, "prev_events": ["$" + "p" * 43]}, rules),
        "unknown auth events": peer.sign({**event, "auth_events": ["$" + "a" * 43]}, rules),
        "no auth events": peer.sign({**event, "auth_events": []}, rules),
        "references that are none": peer.sign({**event, "prev_events": [5]}, rules),
        "no time": {key: value for key, value in event.items() if key != "origin_server_ts"},
        "nothing": {},
    }


DAMAGES = (
    "a wrong signature",
    "no signature",
    "another server's signature",
    "an unknown key",
    "changed after signing",
    "a wrong hash",
    "no hash",
    "a float",
    "a huge number",
    "too large",
    "many previous events",
    "unknown previous events",
    "unknown auth events",
    "no auth events",
    "references that are none",
    "no time",
    "nothing",
)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_does_not_hold_is_not_written(server: Server, alice: Client, peer: Peer, damage: str) -> None:
    room_id = await a_public_room(alice)
    before = await state_of(server, room_id)
    event = await member_event(peer, room_id)
    bad = forged(peer, event)[damage]
    assert list(forged(peer, event)) == list(DAMAGES)

    try:
        path = path_for(peer, room_id, bad)
    except (ValueError, LookupError, TypeError, MatrixError):
        path = path_for(peer, room_id, event)
    answer = await peer.request("PUT", path, bad)
    assert 400 <= answer.status < 500, answer.body
    assert await state_of(server, room_id) == before
    assert len((await sync(alice))["rooms"]["join"]) == 1
    assert (await send_join(peer, room_id, event)).status == 200  # which the damaged one does not keep out


async def test_a_join_that_is_too_large_with_our_signature_is_not_written(
    server: Server, alice: Client, peer: Peer
) -> None:
    room_id = await a_public_room(alice)

    async def of_size(size: int) -> JsonObject:
        small = await member_event(peer, room_id, content={"membership": "join", "x": ""})
        missing = size - len(canonical_json.encode(small))
        return peer.finish(small, get_rules("11"), content={"membership": "join", "x": "x" * missing}, signatures=None)

    assert refusal(await send_join(peer, room_id, await of_size(65_536))) == INVALID
    assert await membership_in(server, room_id, peer.user()) is None
    assert (await send_join(peer, room_id, await of_size(65_300))).status == 200


async def test_path_and_body_must_agree(server: Server, alice: Client, peer: Peer) -> None:
    room_id, other = await a_public_room(alice), await a_public_room(alice)
    event, another = await member_event(peer, room_id), await member_event(peer, other)

    for path in (path_for(peer, other, event), path_for(peer, room_id, another)):
        assert refusal(await peer.request("PUT", path, event)) == INVALID
    assert await membership_in(server, room_id, peer.user()) is None


async def test_nobody_brings_another_servers_join(server: Server, alice: Client, peer: Peer) -> None:
    room_id, other = await a_public_room(alice), await Peer(server).trust()
    event = await member_event(peer, room_id)

    answer = await other.request("PUT", path_for(peer, room_id, event), event)
    assert refusal(answer) == INVALID
    assert await membership_in(server, room_id, peer.user()) is None


async def test_a_join_that_came_to_nothing_is_not_kept(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)
    await put_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})

    assert refusal(await send_join(peer, room_id, event)) == FORBIDDEN
    async with server.application.database.read() as tx:
        assert await tx.fetch("select from events where event_id = %s", (peer.id_of(event, get_rules("11")),)) == []


# --- restricted rooms


async def a_restricted_room(owner: Client, *allowed: str, version: str = "10", rule: str = "restricted") -> str:
    allow = [{"type": "m.room_membership", "room_id": room_id} for room_id in allowed]
    content = {"join_rule": rule, "allow": allow}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": content}]
    return await create_room(owner, room_version=version, initial_state=state)


RESTRICTED = [("8", "restricted"), ("9", "restricted"), ("10", "knock_restricted"), ("12", "restricted")]


@pytest.mark.parametrize(("version", "rule"), RESTRICTED)
async def test_who_meets_a_condition_is_let_in(
    server: Server, alice: Client, peer: Peer, version: str, rule: str
) -> None:
    space = await a_public_room(alice)
    room_id = await a_restricted_room(alice, space, version=version, rule=rule)
    await joined(peer, space)
    event = await member_event(peer, room_id, version)
    assert event["content"]["join_authorised_via_users_server"] == alice.user_id

    answer = await send_join(peer, room_id, event, version)
    assert answer.status == 200, answer.body
    assert set(answer.body["event"]["signatures"]) == {peer.name, server.name}
    assert await membership_in(server, room_id, peer.user()) == "join"
    assert set((await state_of(server, room_id))["m.room.member", peer.user()]["signatures"]) == {
        peer.name,
        server.name,
    }


async def test_who_meets_no_condition_stays_out(server: Server, alice: Client, peer: Peer) -> None:
    space, other = await a_public_room(alice), await a_public_room(alice)
    room_id, open_room = await a_restricted_room(alice, space), await a_public_room(alice, "10")
    await joined(peer, other)

    assert refusal(await make(peer, room_id)) == FORBIDDEN
    template = await member_event(peer, open_room, "10")
    content = {"membership": "join", "join_authorised_via_users_server": alice.user_id}
    state = await state_of(server, room_id)
    cited = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")]
    changes = {
        "room_id": room_id,
        "content": content,
        "prev_events": [state["m.room.join_rules", ""]["event_id"]],
        "auth_events": [state[key]["event_id"] for key in (*cited, ("m.room.member", alice.user_id))],
    }
    event = peer.finish(
        {key: value for key, value in template.items() if key != "signatures"}, get_rules("10"), **changes
    )
    assert refusal(await send_join(peer, room_id, event, "10")) == FORBIDDEN
    assert await membership_in(server, room_id, peer.user()) is None


async def test_conditions_that_we_cannot_check(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_restricted_room(alice, "!space:elsewhere.test")
    assert refusal(await make(peer, room_id)) == (400, "M_UNABLE_TO_AUTHORISE_JOIN")
    nowhere = await a_restricted_room(alice)
    assert refusal(await make(peer, nowhere)) == FORBIDDEN


async def test_nobody_here_may_let_anybody_in(server: Server, alice: Client, bob: Client, peer: Peer) -> None:
    space = await a_public_room(alice)
    room_id = await a_restricted_room(alice, space)
    await joined(peer, space)
    await join(bob, space)
    await join(bob, room_id)
    await put_state(alice, room_id, "m.room.power_levels", {"users": {alice.user_id: 100}, "invite": 50})
    await alice.ok("POST", f"/v3/rooms/{room_id}/leave", {})

    assert refusal(await make(peer, room_id)) == (400, "M_UNABLE_TO_GRANT_JOIN")


@pytest.mark.parametrize("change", ["left", "lost power"])
async def test_who_vouches_may_not_any_more_when_the_join_comes(
    server: Server, alice: Client, bob: Client, peer: Peer, change: str
) -> None:
    space = await a_public_room(alice)
    room_id = await a_restricted_room(alice, space)
    await joined(peer, space)
    await join(bob, space)
    await join(bob, room_id)
    event = await member_event(peer, room_id, "10")
    assert event["content"]["join_authorised_via_users_server"] == alice.user_id
    if change == "lost power":
        await put_state(alice, room_id, "m.room.power_levels", {"users": {alice.user_id: 49}, "invite": 50})
    else:
        await alice.ok("POST", f"/v3/rooms/{room_id}/leave", {})

    assert refusal(await send_join(peer, room_id, event, "10")) == (400, "M_UNABLE_TO_GRANT_JOIN")
    assert await membership_in(server, room_id, peer.user()) is None


async def test_who_is_invited_needs_nobody_to_vouch(server: Server, alice: Client, peer: Peer) -> None:
    space = await a_public_room(alice)
    room_id = await a_restricted_room(alice, space)
    await joined(peer, space)
    await joined(peer, room_id, "10")

    again = await make(peer, room_id)  # a member's new profile, say
    assert again.body["event"]["content"] == {"membership": "join"}


async def test_another_server_may_vouch_but_has_to_sign(server: Server, alice: Client, peer: Peer) -> None:
    space, voucher = await a_public_room(alice), await Peer(server).trust()
    room_id = await a_restricted_room(alice, space)
    for each in (peer, voucher):
        await joined(each, space)
    await joined(voucher, room_id, "10")
    state = await state_of(server, room_id)
    cited = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")]
    event = await member_event(
        peer,
        room_id,
        "10",
        content={"membership": "join", "join_authorised_via_users_server": voucher.user()},
        auth_events=[state[key]["event_id"] for key in (*cited, ("m.room.member", voucher.user()))],
    )

    assert refusal(await send_join(peer, room_id, event, "10")) == INVALID
    forged = {**event["signatures"], voucher.name: {voucher.key.key_id: "A" * 86}}
    assert refusal(await send_join(peer, room_id, {**event, "signatures": forged}, "10")) == INVALID
    signed = signatures.sign_event(event, get_rules("10"), voucher.name, voucher.key)
    assert (await send_join(peer, room_id, signed, "10")).status == 200
    assert set((await state_of(server, room_id))["m.room.member", peer.user()]["signatures"]) == {
        peer.name,
        voucher.name,
        server.name,
    }
