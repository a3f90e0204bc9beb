"""Rooms with a policy server (Server-Server API v1.18, "Policy Servers"): events of other servers there."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.event_hashes import encode_base64
from federation.protocol.types import JsonObject
from tests.client import Client
from tests.federation.answering_peer import AnsweringPeer, answering_peer
from tests.federation.peer import Peer, path_of
from tests.federation.policy_peer import OTHER_KEY, PolicyPeer, guarded_room
from tests.federation.remote_room import RemoteRoom, join_room
from tests.federation.servers import Pair
from tests.homeserver.syncs import ids, sync, timeline
from tests.rooms import membership_of, pdus_of, put_state, send, state_of

VERSIONS = ["1", "3", "10", "11", "12"]


@pytest_asyncio.fixture
async def alice(pair: Pair) -> Client:
    return await pair.near.register("alice")


@pytest_asyncio.fixture
async def guest(pair: Pair) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(pair.near, pair.authority) as peer:
        yield peer


async def guest_room(alice: Client, policy: PolicyPeer, guest: AnsweringPeer, version: str = "11") -> RemoteRoom:
    """A room with a policy server, as a guest's server has it whose user joined with that server's signature."""
    guarded = await guarded_room(alice, policy, version)
    room = await join_room(guest, guarded.room_id, version)
    guest.rooms.append(room)
    policy.asked.clear()
    return room


async def shown(alice: Client, room: RemoteRoom) -> list[str]:
    """The IDs of the room's messages that a client sees."""
    answer = await sync(alice, filter={"room": {"timeline": {"limit": 50, "types": ["m.room.message"]}}})
    return ids(timeline(answer, room.room_id))


async def stored(pair: Pair, room: RemoteRoom, event: JsonObject) -> Any:
    """The event as it is kept."""
    event_id = room.id_of(event)
    return next(pdu for pdu in await pdus_of(pair.near, room.room_id) if pdu["event_id"] == event_id)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_bears_its_signature_is_accepted(
    alice: Client, policy: PolicyPeer, guest: AnsweringPeer, version: str
) -> None:
    room = await guest_room(alice, policy, guest, version)
    events = [policy.recommend(event) for event in room.messages(3)]
    beside = policy.recommend(room.make(prev=room.prev_of(room.last[0])))
    assert await room.push([*events, beside]) == {room.id_of(event): {} for event in (*events, beside)}

    assert await shown(alice, room) == [room.id_of(event) for event in (*events, beside)]
    assert policy.asked == []


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_it_does_not_recommend_is_soft_failed(
    pair: Pair, alice: Client, policy: PolicyPeer, guest: AnsweringPeer, version: str
) -> None:
    room = await guest_room(alice, policy, guest, version)
    start = room.last
    policy.judge = policy.refuse_any
    spam = room.add()
    topic = room.make("m.room.topic", {"topic": "spam"}, prev=start, state_key="")
    assert await room.push([spam, topic]) == {room.id_of(spam): {}, room.id_of(topic): {}}
    assert len(policy.asked) >= 1
    good = policy.recommend(room.add())
    await room.push([good])

    assert await shown(alice, room) == [room.id_of(good)]
    assert ("m.room.topic", "") not in await state_of(pair.near, room.room_id)
    policy.judge = policy.sign_any
    await send(alice, room.room_id, "an answer")
    newest = (await pdus_of(pair.near, room.room_id))[-1]
    assert newest["prev_events"] == room._references([room.id_of(good)])
    assert await guest.ok("GET", path_of("/v1/event/{}", room.id_of(spam)))  # soft-failed events are given to servers


async def test_what_lacks_its_signature_gets_it(
    pair: Pair, alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    unsigned, other, member = room.add(), room.add(), {"membership": "join", "displayname": "G"}
    renamed = room.add("m.room.member", member, state_key=room.user_id)
    wrongly = policy.recommend(other, OTHER_KEY)
    await room.push([unsigned, wrongly, renamed])

    assert await shown(alice, room) == [room.id_of(unsigned), room.id_of(other)]
    for event in (unsigned, other, renamed):
        assert (await stored(pair, room, event))["signatures"] == policy.recommend(event)["signatures"]
    assert [room.id_of(event) for event in policy.asked] == [room.id_of(event) for event in (unsigned, other, renamed)]


async def test_while_it_is_away_what_is_not_signed_is_soft_failed(
    alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    await policy.stop()
    unsigned = room.messages(20)
    signed = policy.recommend(room.add())
    started = time.monotonic()
    answer = await room.push([*unsigned, signed])

    assert answer == {room.id_of(event): {} for event in (*unsigned, signed)}
    assert await shown(alice, room) == [room.id_of(signed)]
    assert time.monotonic() - started < 8


async def test_a_signature_of_another_event_will_not_do(
    alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    policy.judge = policy.refuse_any
    other = policy.recommend(room.make(content={"body": "harmless"}))
    event = room.add()
    event["signatures"][policy.name] = other["signatures"][policy.name]
    await room.push([event])
    assert await shown(alice, room) == []


async def test_the_policy_needs_no_signature_and_counts_for_what_follows(
    pair: Pair, alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    levels = (await state_of(pair.near, room.room_id))["m.room.power_levels", ""]["content"]
    levels = {**levels, "users": {**levels["users"], room.user_id: 50}}
    event_id = await put_state(alice, room.room_id, "m.room.power_levels", levels)
    pdus = {pdu["event_id"]: pdu for pdu in await pdus_of(pair.near, room.room_id)}
    room.keep({key: value for key, value in pdus[event_id].items() if key != "event_id"})
    policy.judge = policy.refuse_any
    with_old_key = policy.recommend(room.add())
    content = {**policy.content, "public_keys": {"ed25519": encode_base64(OTHER_KEY.public_key)}}
    changed = room.add("m.room.policy", content, state_key="")
    with_new_key = policy.recommend(room.add(), OTHER_KEY)
    too_late = policy.recommend(room.add())
    await room.push([with_old_key, changed, with_new_key, too_late])

    assert (await state_of(pair.near, room.room_id))["m.room.policy", ""]["event_id"] == room.id_of(changed)
    assert await shown(alice, room) == [room.id_of(with_old_key), room.id_of(with_new_key)]


async def test_events_across_a_gap_are_held_to_it(alice: Client, policy: PolicyPeer, guest: AnsweringPeer) -> None:
    room = await guest_room(alice, policy, guest)
    policy.judge = policy.refuse_any
    signed, unsigned = policy.recommend(room.add()), room.add()
    room.events[room.id_of(signed)] = signed
    last = policy.recommend(room.add())
    await room.push([last])
    assert await shown(alice, room) == [room.id_of(signed), room.id_of(last)]
    assert [room.id_of(event) for event in policy.asked] == [room.id_of(unsigned)]


async def test_its_own_users_events_bear_both_signatures(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    room.last = [(await pdus_of(pair.near, room.room_id))[-1]["event_id"]]
    event = policy.recommend(room.add(depth=50))
    unsigned = room.add(depth=51)
    await room.push([event, unsigned])
    assert await shown(alice, room) == [room.id_of(event), room.id_of(unsigned)]
    kept = await stored(pair, room, unsigned)
    assert set(kept["signatures"][policy.name]) == {policy.key.key_id, "ed25519:policy_server"}

    only = policy.recommend({**room.add(depth=52), "signatures": {}})
    assert "not signed by" in (await room.push([only]))[room.id_of(only)]["error"]


async def test_joins_by_way_of_us_are_shown_to_it(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    guarded = await guarded_room(alice, policy)
    peer = await Peer(pair.near).trust()
    path = path_of("/v1/make_join/{}/{}", guarded.room_id, peer.user())
    template = await peer.ok("GET", path, ver=["11"])
    event = peer.finish(template["event"], guarded.rules)
    path = path_of("/v2/send_join/{}/{}", guarded.room_id, guarded.id_of(event))
    policy.judge = policy.refuse_any
    answer = await peer.request("PUT", path, event)
    assert (answer.status, answer.body) == policy.refuse_any({})
    member = Client("", alice.session, peer.user())
    assert await membership_of(pair.near, guarded.room_id, member) is None

    policy.judge = policy.sign_any
    answer = await peer.ok("PUT", path, event)
    assert policy.signed(answer["event"])
    assert await membership_of(pair.near, guarded.room_id, member) == "join"
    asked = len(policy.asked)
    await peer.ok("PUT", path, event)
    assert len(policy.asked) == asked
    await policy.until(lambda: [pdu for pdu in policy.pdus if policy.signed(pdu) and pdu["sender"] == peer.user()])


async def test_an_event_that_it_would_make_too_large_is_soft_failed(
    alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    size = len(str(room.make(content={"body": ""})))
    large = room.add(content={"body": "x" * (65_536 - size)})
    answer = await room.push([large])
    assert answer == {room.id_of(large): {}}
    assert await shown(alice, room) == []


async def test_without_a_policy_server_nothing_is_asked(
    alice: Client, policy: PolicyPeer, guest: AnsweringPeer
) -> None:
    room = await guest_room(alice, policy, guest)
    await put_state(alice, room.room_id, "m.room.policy", {})
    unsigned = room.messages(3)
    await room.push(unsigned)
    assert await shown(alice, room) == [room.id_of(event) for event in unsigned]
    assert policy.asked == []
