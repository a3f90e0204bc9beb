"""Joining a large room: its state is written before the entry of the log that makes it count."""

from collections.abc import AsyncIterator, Iterable

import pytest

from federation.protocol.errors import Unavailable
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID
from federation.rooms import append_join
from federation.rooms.append import Outcome
from federation.rooms.append_join import GivenEntry
from storage import memberships, remote_joins, room_state, rooms, state_ahead
from storage.append_events import RoomEvents
from storage.database import Tx
from storage.memberships import Membership
from storage.remote_joins import RemoteJoin, TakenOver
from storage.rooms import Room as StoredRoom
from tests.federation.processes import Process, a_process
from tests.federation.stored_rooms import ids_of
from tests.federation.test_outliers import hold, known
from tests.protocol.builders import ALICE, BOB, EVE, Room, a_room

MEMBERS = 40
JOIN: JsonObject = {"membership": "join"}


@pytest.fixture
async def process(conninfo: str) -> AsyncIterator[Process]:
    async with a_process(conninfo) as process:
        yield process


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if forty members were very many."""
    monkeypatch.setattr(append_join, "AT_ONCE", 10)
    monkeypatch.setattr(append_join, "CHUNK", 15)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries of rooms' states each batch of the log writes."""
    counts: list[int] = []
    insert_many = RoomEvents.insert_many

    async def counted(tx: Tx, rows: list[tuple[int, RoomEvents]]) -> None:
        counts.append(sum(len(change.state) for _, change in rows))
        await insert_many(tx, rows)

    monkeypatch.setattr(RoomEvents, "insert_many", counted)
    return counts


def a_large_room(members: int = MEMBERS) -> Room:
    """Alice's room, as her server has it: members of another server, and Bob, of ours, who was banned."""
    room = a_room()
    for number in range(members):
        user = UserID(f"@member{number}:other.example")
        room.add("m.room.member", user, JOIN, user)
    room.add("m.room.member", ALICE, {"membership": "ban"}, BOB)
    room.add("m.room.member", ALICE, {"membership": "leave"}, ALICE)
    return room


def entries_of(state: Iterable[tuple[StateKey, VerifiedPDU]]) -> list[GivenEntry]:
    return [GivenEntry(key, pdu.event_id, pdu.membership) for key, pdu in state]


def a_join(room: Room, user: UserID = ALICE) -> VerifiedPDU:
    """Of somebody of ours, built on the room's end, which is not kept as part of it."""
    last = room.events[-1]
    state = dict(room.state)
    join = room.add("m.room.member", user, JOIN, user, prev_events=[last])
    room.events.pop()
    room.state = state
    return join


async def current(process: Process, room: StoredRoom) -> dict[StateKey, EventID]:
    async with process.database.read() as tx:
        return await ids_of(tx, await room_state.current_whole(tx, room.number))


async def rows_of(process: Process, room: StoredRoom) -> int:
    async with process.database.read() as tx:
        row = await tx.fetch_one("select count(*) from room_state where room = %s", (room.number,))
    return 0 if row is None else int(row[0])


async def test_the_log_writes_next_to_nothing_of_a_large_state(
    process: Process, conninfo: str, written: list[int]
) -> None:
    room = a_large_room()
    stored = await known(process, room)
    await hold(process, stored, room.events)
    join = a_join(room)
    async with a_process(conninfo) as other:
        received = await process.writer.append_join(join, entries_of(room.state.items()))
        await other.tail.catch_up()

        assert received.outcome is Outcome.ACCEPTED
        assert other.picture == process.picture
    assert written == [3]  # what became of Bob and Alice, and Alice's join
    assert len(process.picture.trunk) == len(room.state) + 1
    expected = {key: pdu.event_id for key, pdu in room.state.items()}
    assert await current(process, stored) == {**expected, join.state_pair: join.event_id}
    async with process.database.read() as tx:
        row = (await rooms.rows(tx, [stored.number]))[stored.number]
        servers = await memberships.servers_of(tx, stored.number)
    assert (row.joined_members, row.invited_members) == (MEMBERS + 1, 0)
    assert set(servers) == {"example.org", "other.example"}
    assert row.extremities == (join.event_id,)


async def test_nothing_of_it_is_seen_by_users_of_ours_before(process: Process) -> None:
    room = a_large_room()
    stored = await known(process, room)
    await hold(process, stored, room.events)
    seen: list[tuple[object, ...]] = []

    async def look(_: Tx) -> None:
        async with process.database.read() as tx:
            mine = [await memberships.rooms_of(tx, user, list(Membership)) for user in (ALICE, BOB)]
            row = (await rooms.rows(tx, [stored.number]))[stored.number]
            shared = await memberships.share_a_room(tx, ALICE, UserID("@member1:other.example"))
        seen.append((*mine, row.state_version, row.joined_members, shared))

    await process.writer.append_join(a_join(room), entries_of(room.state.items()), look)

    assert len(seen) == 5  # the look at the room, three parts, and the entry
    assert set(map(repr, seen)) == {repr(({}, {}, 0, 0, False))}
    assert (await rows_of(process, stored)) == len(room.state) + 1


async def test_a_room_joined_anew_after_long_is_compared_and_what_was_replaced_is_history(
    process: Process, written: list[int]
) -> None:
    room = a_large_room()
    stored = await known(process, room)
    for pdu in room.events:
        await process.writer.append_remote(pdu)
    async with process.database.read() as tx:
        before = (await rooms.rows(tx, [stored.number]))[stored.number]
        (old,) = (await room_state.at_versions(tx, {stored.number: before.state_version})).values()
    unseen = [room.add("m.room.member", EVE, JOIN, EVE)]
    for number in range(0, MEMBERS, 2):
        user = UserID(f"@member{number}:other.example")
        unseen.append(room.add("m.room.member", user, {"membership": "leave"}, user))
    await hold(process, stored, unseen)
    del room.state["m.room.member", UserID("@member1:other.example")]
    join = a_join(room)
    written.clear()

    await process.writer.append_join(join, entries_of(room.state.items()))

    assert written == [1]
    expected = {key: pdu.event_id for key, pdu in room.state.items()}
    assert await current(process, stored) == {**expected, join.state_pair: join.event_id}
    async with process.database.read() as tx:
        row = (await rooms.rows(tx, [stored.number]))[stored.number]
        (as_it_was,) = (await room_state.at_versions(tx, {stored.number: before.state_version})).values()
    assert as_it_was == old
    assert row.joined_members == before.joined_members + 2 - MEMBERS // 2 - 1


@pytest.mark.parametrize("was_in", [False, True])
async def test_what_a_join_that_broke_off_left_is_not_mixed_with_another_state(
    process: Process, *, was_in: bool
) -> None:
    room = a_large_room()
    stored = await known(process, room)
    if was_in:
        for pdu in room.events:
            await process.writer.append_remote(pdu)
        first_new = room.add("m.room.member", EVE, JOIN, EVE)
        await hold(process, stored, [first_new])
        for number in range(20):
            user = UserID(f"@newcomer{number}:other.example")
            await hold(process, stored, [room.add("m.room.member", user, JOIN, user)])
    else:
        await hold(process, stored, room.events)
    rows_before = await rows_of(process, stored)
    current_before = await current(process, stored)
    calls = 0

    async def break_off(_: Tx) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Unavailable("The server is shutting down")

    join = a_join(room)
    with pytest.raises(Unavailable):
        await process.writer.append_join(join, entries_of(room.state.items()), break_off)
    assert await rows_of(process, stored) == rows_before + 15
    async with process.database.transaction() as tx:
        await state_ahead.discard(tx, stored.number)
    assert await rows_of(process, stored) == rows_before
    assert await current(process, stored) == current_before

    calls = 0
    with pytest.raises(Unavailable):
        await process.writer.append_join(join, entries_of(room.state.items()), break_off)
    other_state = [(key, pdu) for key, pdu in room.state.items() if not key[1].startswith(("@member1", "@newcomer1"))]
    received = await process.writer.append_join(join, entries_of(other_state))

    assert received.outcome is Outcome.ACCEPTED
    expected = {key: pdu.event_id for key, pdu in other_state}
    assert await current(process, stored) == {**expected, join.state_pair: join.event_id}
    async with process.database.read() as tx:
        row = (await rooms.rows(tx, [stored.number]))[stored.number]
    assert row.joined_members == 1 + sum(pdu.membership == "join" for _, pdu in other_state)


async def test_who_lost_the_join_to_another_process_writes_no_more(process: Process) -> None:
    room = a_large_room()
    stored = await known(process, room)
    await hold(process, stored, room.events)
    join = RemoteJoin(room_id=RoomID(stored.room_id), user_id=ALICE, content=JOIN, servers=(), started_ts=1)
    async with process.database.transaction() as tx:
        await remote_joins.insert(tx, join, leased_until_ts=1)
    calls = 0

    async def guard(tx: Tx) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # all is written but the entry
            async with process.database.transaction() as other:
                (taken,) = await remote_joins.take_over(other, now_ts=2, leased_until_ts=3, limit=1)
            assert taken.attempts == 2
        await remote_joins.check_held(tx, join)

    with pytest.raises(TakenOver):
        await process.writer.append_join(a_join(room), entries_of(room.state.items()), guard)

    assert calls == 5
    assert process.picture.events == []
    async with process.database.transaction() as tx:
        assert not await remote_joins.delete(tx, join)
