"""Rooms that are left with many forward extremities are merged, by an event of a user who may send one."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from federation.rooms import merging
from federation.rooms.merging import EVENT_TYPE, MANY, Merger
from tests.client import Client, Server, quote
from tests.federation.peer import Peer
from tests.federation.remote_room import RemoteRoom, joined_room
from tests.homeserver.syncs import sync, timeline
from tests.rooms import pdus_of, put_state, send, state_of

pytestmark = pytest.mark.one_process("each merges what it has forked")


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


async def fork(room: RemoteRoom, ends: int) -> set[str]:
    """Give the room so many ends: their IDs."""
    events = [room.make(content={"body": str(number)}, prev=room.last) for number in range(ends)]
    await room.push(events)
    return {room.id_of(event) for event in events}


async def ends_of(server: Server, room: RemoteRoom) -> set[str]:
    async with server.application.database.read() as tx:
        row = await tx.fetch_one("select extremities from rooms where room_id = %s", (room.room_id,))
    assert row is not None
    return set(row[0])


@pytest.fixture(autouse=True)
def looks_when_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server outlives a test, and looks each minute by itself: not in the midst of these."""

    async def not_now() -> int:
        return 0

    monkeypatch.setattr(server.application.reception.merger, "merge", not_now)


async def merged(server: Server, room: RemoteRoom) -> list[Any]:
    """Look once; the events that were sent into the room to merge it, ever."""
    await Merger.merge(server.application.reception.merger)
    return await pdus_of(server, room.room_id, EVENT_TYPE)


@pytest.mark.parametrize("version", ["1", "11", "12"])
async def test_many_ends_become_one(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room = await joined_room(alice, peer, version)
    ends = await fork(room, MANY)
    assert await ends_of(server, room) == ends

    (event,) = await merged(server, room)
    assert (event["sender"], event["content"]) == (alice.user_id, {})
    assert {each if isinstance(each, str) else each[0] for each in event["prev_events"]} == ends
    assert await ends_of(server, room) == {event["event_id"]}
    assert len(await merged(server, room)) == 1


async def test_very_many_ends_take_an_event_a_look(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await fork(room, 45)
    assert len(await merged(server, room)) == 1
    assert len(await ends_of(server, room)) == 26
    assert len(await merged(server, room)) == 2
    assert len(await ends_of(server, room)) == 7
    assert len(await merged(server, room)) == 2


async def test_a_few_ends_wait_for_somebody_to_speak(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    ends = await fork(room, MANY - 1)
    assert await merged(server, room) == []
    assert await ends_of(server, room) == ends


async def test_whoever_spoke_has_merged_it(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await fork(room, MANY)
    event_id = await send(alice, room.room_id, "hello")
    assert await merged(server, room) == []
    assert await ends_of(server, room) == {event_id}


async def test_it_is_sent_for_a_user_who_may(server: Server, alice: Client, bob: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await bob.ok("POST", f"/v3/join/{quote(room.room_id)}", {})
    levels = (await state_of(server, room.room_id))["m.room.power_levels", ""]["content"]
    levels = {**levels, "users": {alice.user_id: 100, bob.user_id: 60}, "events": {EVENT_TYPE: 60}}
    await put_state(alice, room.room_id, "m.room.power_levels", levels)
    await alice.ok("POST", f"/v3/rooms/{quote(room.room_id)}/leave", {})
    pdus = await pdus_of(server, room.room_id)
    room.last = [pdus[-1]["event_id"]]
    for pdu in pdus:
        room.keep({name: value for name, value in pdu.items() if name != "event_id"})
    await fork(room, MANY)
    (event,) = await merged(server, room)
    assert event["sender"] == bob.user_id


async def test_where_nobody_may_nothing_is_sent(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    levels = (await state_of(server, room.room_id))["m.room.power_levels", ""]["content"]
    levels = {**levels, "users": {alice.user_id: 59}, "events": {EVENT_TYPE: 60}}
    await put_state(alice, room.room_id, "m.room.power_levels", levels)
    other = await joined_room(alice, peer)
    for each in (room, other):
        await fork(each, MANY)
    assert await merged(server, room) == []
    assert len(await merged(server, other)) == 1


async def test_it_looks_by_itself(server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "INTERVAL_SECONDS", 0.01)
    room = await joined_room(alice, peer)
    await fork(room, MANY)
    since = (await sync(alice))["next_batch"]
    monkeypatch.delattr(server.application.reception.merger, "merge")
    looking = asyncio.create_task(server.application.reception.merger.run())
    answer = await sync(alice, since, timeout=10_000)
    looking.cancel()
    assert [event["type"] for event in timeline(answer, room.room_id)] == [EVENT_TYPE]
