"""What an event refers to and is not here is fetched; who makes hostile gaps only harms themselves."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.inbound import transactions
from federation.protocol.types import ServerName
from federation.rooms import given_states, receive
from storage import dead_letters
from tests.client import Client
from tests.federation.answering_peer import AnsweringPeer, answering_peer
from tests.federation.authority import Authority
from tests.federation.remote_room import RemoteRoom, join_room, joined_room
from tests.federation.servers import Pair
from tests.homeserver.syncs import ids, sync, timeline
from tests.rooms import pdus_of, put_state, send, state_of


@pytest_asyncio.fixture
async def alice(pair: Pair) -> Client:
    return await pair.near.register("alice")


@pytest_asyncio.fixture
async def peer(pair: Pair, authority: Authority) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(pair.near, pair.authority) as peer:
        yield peer


async def a_room(alice: Client, peer: AnsweringPeer, version: str = "11") -> RemoteRoom:
    room = await joined_room(alice, peer, version)
    peer.rooms.append(room)
    return room


async def stored(pair: Pair, room: RemoteRoom) -> list[Any]:
    return [pdu["event_id"] for pdu in await pdus_of(pair.near, room.room_id)]


async def test_a_small_gap_is_filled(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    since = (await sync(alice))["next_batch"]
    events = room.messages(10)
    assert await room.push(events[-1:]) == {room.id_of(events[-1]): {}}

    shown = timeline(await sync(alice, since=since), room.room_id)
    assert ids(shown) == [room.id_of(event) for event in events]
    assert peer.asked == {"get_missing_events": 1}


async def test_a_gap_of_several_questions_is_filled(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    events = room.messages(100)
    await room.push(events[-1:])

    assert (await stored(pair, room))[-100:] == [room.id_of(event) for event in events]
    assert peer.asked == {"get_missing_events": 5}


async def test_across_a_large_gap_the_state_is_taken(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    room.add("m.room.member", {"membership": "join", "displayname": "In the gap"}, state_key=room.user_id)
    room.messages(300)
    last = room.add()
    since = (await sync(alice))["next_batch"]
    assert await room.push([last]) == {room.id_of(last): {}}

    member = (await state_of(pair.near, room.room_id))["m.room.member", room.user_id]
    assert member["content"]["displayname"] == "In the gap"
    assert peer.asked.keys() == {"get_missing_events", "event_auth", "state_ids"}
    assert peer.asked["state_ids"] == 1
    assert sum(peer.asked.values()) < 20
    answer = await sync(alice, since=since)
    assert ids(timeline(answer, room.room_id))[-1] == room.id_of(last)


@pytest.mark.one_process("a limit is lowered here")
async def test_states_that_differ_much_are_taken_seldom(
    pair: Pair, alice: Client, peer: AnsweringPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_states, "MAX_DIFFERENCES", 1)
    monkeypatch.setattr(given_states, "PER_SECOND", 0.001)
    room = await a_room(alice, peer)
    results = []
    for number in range(3):
        if number < 2:
            room.add("m.room.member", {"membership": "join", "displayname": str(number)}, state_key=room.user_id)
        room.messages(300)
        last = room.add()
        results.append((await room.push([last]))[room.id_of(last)])

    assert results[0] == {}
    assert "differ too much" in results[1]["error"]
    async with pair.near.application.database.read() as tx:
        kept = [letter for letter in await dead_letters.listed(tx, 1000) if letter.room_id == room.room_id]
    assert len(kept) == 2


async def test_what_authorises_an_event_is_fetched(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    names = [
        room.add("m.room.member", {"membership": "join", "displayname": str(number)}, state_key=room.user_id)
        for number in range(3)
    ]
    fork = room.make(prev=[room.id_of(names[0])])  # it cites the newest, which it does not follow
    room.keep(fork)
    await room.push(names[:1])
    assert await room.push([fork]) == {room.id_of(fork): {}}

    assert room.id_of(fork) in await stored(pair, room)
    assert peer.asked["event_auth"] == 1


async def test_events_of_an_unknown_fork_join_the_room(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    start = room.last
    branch = [room.make(content={"body": str(number)}, prev=start) for number in range(5)]
    for event in branch:
        room.keep(event)
    merge = room.add(prev=[room.id_of(event) for event in branch])
    await room.push([merge])

    assert {room.id_of(event) for event in (*branch, merge)} <= set(await stored(pair, room))
    await send(alice, room.room_id, "an answer")
    assert (await pdus_of(pair.near, room.room_id))[-1]["prev_events"] == [room.id_of(merge)]


@pytest.mark.one_process("its patience is shortened here")
@pytest.mark.parametrize("is_back", [True, False])
async def test_once_a_server_is_back_what_it_has_is_looked_for_again(
    pair: Pair, alice: Client, peer: AnsweringPeer, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    monkeypatch.setattr(receive, "RESTED_SECONDS", 0)
    room = await a_room(alice, peer)
    missing, event = room.messages(2)
    answers = dict(peer.answers)
    peer.answers.clear()
    assert "error" in (await room.push([event]))[room.id_of(event)]
    peer.answers.update(answers)
    availability = pair.near.application.outbound.availability
    if is_back:
        availability.failed(ServerName("elsewhere.test"), "it is away")
        availability.alive(ServerName("elsewhere.test"))
    results = await room.push([event])

    assert ("error" in results[room.id_of(event)]) is not is_back
    assert (room.id_of(missing) in await stored(pair, room)) is is_back


# --- hostile gaps


async def test_a_peer_without_the_events_costs_little(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    peer.answers.clear()
    lost, found = room.make(prev=["$" + "x" * 43]), room.make()
    answer = await room.push([lost, found])

    assert "error" in answer[room.id_of(lost)]
    assert answer[room.id_of(found)] == {}
    assert sum(peer.asked.values()) <= 4


async def test_endless_history_costs_bounded_requests(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    made: list[Any] = []

    def endless(_path: Any, _query: Any, body: Any) -> Any:
        """Always one more event before the oldest: made backwards, its hash is not what was referred to."""
        made.append(room.make(content={"body": str(len(made))}, prev=["$" + f"{len(made)}".rjust(43, "y")]))
        return {"events": made}

    peer.answers["get_missing_events"] = endless
    event = room.add(prev=["$" + "x" * 43])
    await room.push([event])

    assert peer.asked["get_missing_events"] == 1  # nothing in the answer is before the event
    assert not {room.id_of(each) for each in made}.intersection(await stored(pair, room))


async def test_a_thousand_forks_cost_bounded_requests(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    forks = [
        room.make(content={"body": str(number)}, prev=["$" + f"{number}".rjust(43, "z")]) for number in range(1_000)
    ]
    for event in forks:
        room.keep(event)
    heads = [room.make(prev=[room.id_of(each) for each in forks[start : start + 20]]) for start in range(0, 1_000, 20)]
    for event in heads:
        room.keep(event)
    peer.answers["get_missing_events"] = lambda _path, _query, _body: {"events": [*forks, *heads]}
    started = time.monotonic()
    await room.push(heads)

    assert time.monotonic() - started < 30
    assert sum(peer.asked.values()) < 500, peer.asked
    async with pair.near.application.database.read() as tx:
        row = await tx.fetch_one("select cardinality(extremities) from rooms where room_id = %s", (room.room_id,))
    assert row is not None
    assert row[0] <= 60
    await send(alice, room.room_id, "still here")


async def test_a_silent_peer_does_not_stall_the_room(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    async with answering_peer(pair.near, pair.authority) as honest:
        theirs = await join_room(honest, room.room_id)
        peer.pause_seconds = 600.0
        hanging = asyncio.create_task(room.push([room.make(prev=["$" + "x" * 43])]))
        await asyncio.sleep(0.5)
        event = theirs.add()
        assert await theirs.push([event]) == {theirs.id_of(event): {}}
        await send(alice, room.room_id, "going on")
        assert not hanging.done()
        peer.release.set()
        await hanging


async def test_a_slow_room_does_not_keep_a_server_waiting(
    pair: Pair, alice: Client, peer: AnsweringPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "ROOM_SECONDS", 0.5)
    slow, quick = await a_room(alice, peer), await a_room(alice, peer)
    peer.pause_seconds = 600.0
    waiting = [slow.make(prev=["$" + "x" * 43]), slow.make()]
    event = quick.add()
    answer = await quick.push([*waiting, event])

    assert answer[quick.id_of(event)] == {}
    assert quick.id_of(event) in await stored(pair, quick)
    async with pair.near.application.database.read() as tx:
        kept = {letter.event_id for letter in await dead_letters.listed(tx, 1000)}
    missing = {slow.id_of(each) for each in waiting} - set(await stored(pair, slow))
    assert missing
    assert missing <= kept


async def test_a_state_with_a_forged_event_is_taken_without_it(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    await put_state(alice, room.room_id, "m.room.name", {"name": "True"})
    forged = room.make("m.room.name", {"name": "Forged"}, state_key="", sender=alice.user_id)
    room.keep(forged)
    last = room.add(prev=["$" + "x" * 43])
    await room.push([last])

    assert room.id_of(forged) not in await stored(pair, room)
    assert ("m.room.name", "") not in await state_of(pair.near, room.room_id) or (
        await state_of(pair.near, room.room_id)
    )["m.room.name", ""]["content"] == {"name": "True"}


async def test_a_state_without_the_creation_is_refused(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    last = room.add(prev=["$" + "x" * 43])
    peer.answers["state_ids"] = lambda _path, _query, _body: {"pdu_ids": [], "auth_chain_ids": []}
    before = await state_of(pair.near, room.room_id)
    answer = await room.push([last])

    assert "error" in answer[room.id_of(last)]
    assert await state_of(pair.near, room.room_id) == before


async def test_circles_are_dropped(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer, "1")
    first, second = (f"$circle{name}{time.monotonic_ns()}:{peer.name}" for name in "ab")
    events = [room.make(prev=[second], event_id=first), room.make(prev=[first], event_id=second)]
    itself = room.make(prev=[f"$self{time.monotonic_ns()}:{peer.name}"])
    itself = room.peer.sign({**itself, "prev_events": [[itself["event_id"], {"sha256": "h" * 43}]]}, room.rules)
    good = room.add()
    answer = await room.push([*events, itself, good])

    assert answer[room.id_of(good)] == {}
    assert all("error" in answer[room.id_of(event)] for event in (*events, itself))


async def test_what_one_server_withholds_is_looked_for_at_another(
    pair: Pair, alice: Client, peer: AnsweringPeer
) -> None:
    room = await a_room(alice, peer)
    async with answering_peer(pair.near, pair.authority) as honest:
        theirs = await join_room(honest, room.room_id)
        honest.rooms.append(theirs)
        lost, last = theirs.messages(2)
        peer.answers = {}
        poisoned = room.make(prev=[theirs.id_of(lost)])
        assert "error" in (await room.push([poisoned]))[room.id_of(poisoned)]

        assert await theirs.push([last]) == {theirs.id_of(last): {}}

        assert theirs.id_of(lost) in await stored(pair, room)


async def test_what_nobody_has_is_asked_for_once(pair: Pair, alice: Client, peer: AnsweringPeer) -> None:
    room = await a_room(alice, peer)
    create, levels = (room.state[key, ""] for key in ("m.room.create", "m.room.power_levels"))
    event = room.make(auth=[create, levels, "$" + "w" * 43])
    answer = await room.push([event])

    assert "error" in answer[room.id_of(event)]
    assert peer.asked == {"event_auth": 1, "event": 1}
