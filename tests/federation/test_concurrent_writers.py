"""Several processes writing to one room at once: nothing is lost, and the graph is as the rules want it."""

import asyncio
import os
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import psycopg
import pytest

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.errors import MatrixError
from federation.protocol.pdu import Draft
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID
from federation.rooms.append import Outcome
from federation.rooms.heads import to_pdu
from storage import events, room_state, rooms
from storage.database import Tx
from storage.events import StoredEvent
from storage.log_entries import Change, Conflict, Entry
from storage.rooms import Room
from storage.shelf import MAX_BYTES, Shelf, ShelfCarrier, shared_memory
from tests.federation.processes import Process, a_process
from tests.federation.room_model import RoomModel
from tests.federation.stored_rooms import ids_of, newest_events, stored_events
from tests.protocol.builders import ALICE, BOB, EVE, NOW, a_signed_event

SENDERS = 5
SENDS = 8


def a_draft(room: Room, sender: str, event_type: str, content: JsonObject, state_key: str | None = None) -> Draft:
    return Draft(
        room_id=room.room_id,
        type=event_type,
        sender=ALICE if sender == ALICE else BOB,
        content=content,
        state_key=state_key,
    )


async def a_new_room(process: Process, version: str) -> Room:
    """A room that Alice made, with Bob and, of another server, Eve in it."""
    rules = get_rules(version)
    create: JsonObject = {"room_version": version}
    if not rules.implicit_creator:
        create["creator"] = ALICE
    users: JsonObject = {BOB: 50} if rules.creators_have_infinite_power else {ALICE: 100, BOB: 50}
    first: list[tuple[str, str, JsonObject, str | None]] = [
        ("m.room.create", ALICE, create, ""),
        ("m.room.member", ALICE, {"membership": "join"}, ALICE),
        ("m.room.power_levels", ALICE, {"users": users}, ""),
        ("m.room.join_rules", ALICE, {"join_rule": "public"}, ""),
        ("m.room.member", BOB, {"membership": "join"}, BOB),
    ]
    nowhere = Room(0, RoomID(""), rules)
    drafts = [a_draft(nowhere, sender, event_type, content, key) for event_type, sender, content, key in first]
    room_id = None if rules.room_id_is_create_hash else RoomID("!shared:example.org")
    room, _ = await process.writer.create_room(rules, drafts, room_id=room_id)
    return room


class RemoteServer:
    """Eve's server, which builds on what it happens to have seen."""

    def __init__(self, process: Process, room: Room, seed: random.Random) -> None:
        self.process = process
        self.room = room
        self.random = seed
        self.sent = 0
        self.joined_at: StoredEvent | None = None

    async def newest(self) -> StoredEvent:
        """The room's newest event."""
        async with self.process.database.read() as tx:
            return (await newest_events(tx, self.room, 1))[0]

    async def send(
        self, event_type: str, content: JsonObject, state_key: str | None = None, *, ts: int | None = None
    ) -> EventID:
        """An event after one of the newest events, citing the state after that."""
        rules = self.room.rules
        async with self.process.database.read() as tx:
            newest = await newest_events(tx, self.room, 1 if self.joined_at is None else 6)
            keys = auth_keys_for(event_type, EVE, state_key, content, rules)
            states = await room_state.at(tx, self.room.number, [event.point_after for event in newest], keys)
            if self.joined_at is not None:
                newest = [event for event in newest if ("m.room.member", EVE) in states[event.point_after]]
                newest = newest or [self.joined_at]
                states = await room_state.at(tx, self.room.number, [event.point_after for event in newest], keys)
            prev = self.random.choice(newest)
            state = states[prev.point_after]
            cited = await ids_of(tx, state)
        self.sent += 1
        pdu = a_signed_event(
            rules.version,
            type=event_type,
            sender=EVE,
            content=content,
            state_key=state_key,
            room_id=self.room.room_id,
            prev_events=[prev.event_id],
            auth_events=list(cited.values()),
            depth=prev.json["depth"] + 1,
            origin_server_ts=NOW + self.random.randrange(10**9) if ts is None else ts,
            event_id_localpart=f"remote{self.sent}",
        )
        while True:
            try:
                received = await self.process.writer.append_remote(pdu)
                break
            except Conflict:  # told to come again later, it does
                continue
        assert received.outcome is Outcome.ACCEPTED
        if self.joined_at is None:
            async with self.process.database.read() as tx:
                self.joined_at = (await events.by_id(tx, [pdu.event_id]))[pdu.event_id]
        return pdu.event_id


async def send_locally(process: Process, room: Room, seed: random.Random) -> list[EventID]:
    sent: list[EventID] = []
    for _ in range(SENDS):
        sender = seed.choice((ALICE, BOB))
        if seed.random() < 0.3:
            draft = a_draft(room, sender, seed.choice(("m.room.topic", "m.room.name")), {"x": seed.random() < 2}, "")
        else:
            draft = a_draft(room, sender, "m.room.message", {"body": "hello"})
        while True:
            try:
                done = await process.writer.append([draft])
                break
            except Conflict:  # told to come again later, the client does
                continue
        sent += [pdu.event_id for pdu in done.events]
        await asyncio.sleep(seed.random() * 0.01)
    return sent


async def send_remotely(server: RemoteServer) -> list[EventID]:
    sent = [await server.send("m.room.member", {"membership": "join"}, EVE)]
    for number in range(SENDS):
        if server.random.random() < 0.3:
            content: JsonObject = {"membership": "join", "displayname": f"{number}"}
            sent.append(await server.send("m.room.member", content, EVE))
        else:
            sent.append(await server.send("m.room.message", {"body": "hello"}))
        await asyncio.sleep(server.random.random() * 0.01)
    return sent


async def modelled(process: Process, room: Room) -> RoomModel:
    """What the rules make of the events in the order of the log; storage has just that."""
    model = RoomModel(room.rules)
    async with process.database.read() as tx:
        stored = await stored_events(tx, room)
        by_point = await room_state.at(tx, room.number, {(event.line, event.version) for event in stored})
        for event in stored:
            assert model.receive(to_pdu(event, room)) == 0
            assert await ids_of(tx, by_point[event.line, event.version]) == model.before[event.event_id]
        row = (await rooms.rows(tx, [room.number]))[room.number]
        assert set(row.extremities) == model.extremities()
        assert await ids_of(tx, await room_state.current_whole(tx, room.number)) == model.current
    return model


@pytest.mark.parametrize("version", ["2", "11", "12"])
async def test_two_processes_and_another_server_write_to_one_room(conninfo: str, version: str) -> None:
    seed = random.Random(version)
    async with a_process(conninfo) as one, a_process(conninfo) as two:
        room = await a_new_room(one, version)
        server = RemoteServer(two, room, seed)
        tasks = [send_locally(process, room, seed) for process in (one, two) for _ in range(SENDERS)]
        sent = [each for batch in await asyncio.gather(send_remotely(server), *tasks) for each in batch]
        await one.tail.catch_up()
        await two.tail.catch_up()

        assert one.picture == two.picture
        async with one.database.read() as tx:
            assert sorted(sent) == sorted(event.event_id for event in (await stored_events(tx, room))[5:])
            row = (await rooms.rows(tx, [room.number]))[room.number]
            assert row.joined_members == 3
        model = await modelled(one, room)
        key: StateKey = ("m.room.topic", "")
        for process in (one, two):  # their heads stand where the room stands
            head = await process.heads.load(room, [key])
            assert (head.version, set(head.extremities)) == (row.state_version, set(row.extremities))
            topic = head.state[key]
            assert topic is not None
            assert topic.event_id == model.current[key]


@contextmanager
def held_up(connection: psycopg.Connection) -> Iterator[None]:
    """Nobody's entries are written until the end of the block; then they are, in the order in which they came.

    The row is locked and not written: those who wait for a row that was written race for its new version.
    """
    with connection.transaction():
        connection.execute("select from log_head for update")
        yield


async def until_waiting(connection: psycopg.Connection, count: int) -> None:
    """Return when so many logs wait for their turn."""
    waiting = 0
    while waiting < count:
        await asyncio.sleep(0.05)
        connection.execute("select pg_stat_clear_snapshot()")
        found = connection.execute(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            " and query like '%log_head%'"
        ).fetchone()
        waiting = 0 if found is None else found[0]


async def a_room_with_a_topic_from_the_future(process: Process) -> Room:
    """One that wins against every later topic that does not follow it in a line."""
    room = await a_new_room(process, "11")
    server = RemoteServer(process, room, random.Random(1))
    await server.send("m.room.member", {"membership": "join"}, EVE)
    await process.writer.append(
        [
            a_draft(room, ALICE, "m.room.power_levels", {"users": {ALICE: 100, EVE: 50}}, ""),
            a_draft(room, ALICE, "m.room.message", {"body": "x"}),
        ]
    )
    await server.send("m.room.topic", {"topic": "future"}, "", ts=4 * NOW)
    return room


@pytest.mark.parametrize("is_remote", [False, True])
async def test_a_state_event_is_weighed_against_the_message_that_came_first(
    conninfo: str, connection: psycopg.Connection, *, is_remote: bool
) -> None:
    async with a_process(conninfo, follows=False) as one, a_process(conninfo, follows=False) as two:
        room = await a_room_with_a_topic_from_the_future(one)
        await one.writer.append([a_draft(room, ALICE, "m.room.message", {"body": "x"})])
        server = RemoteServer(one, room, random.Random(2))
        server.joined_at = await server.newest()
        with held_up(connection):
            message = a_draft(room, ALICE, "m.room.message", {"body": "first"})
            first = asyncio.create_task(two.writer.append([message]))
            await until_waiting(connection, 1)
            if is_remote:
                second = asyncio.create_task(server.send("m.room.topic", {"topic": "now"}, ""))
            else:
                draft = a_draft(room, ALICE, "m.room.topic", {"topic": "now"}, "")
                second = asyncio.create_task(_send(one, draft))
            await until_waiting(connection, 2)
        await first
        topic = await second

        model = await modelled(one, room)
        # Ours was made anew behind the message. Theirs stands beside it, and the other topic is the later one.
        assert (model.current["m.room.topic", ""] == topic) is not is_remote


async def _send(process: Process, draft: Draft) -> EventID:
    return (await process.writer.append([draft])).events[0].event_id


async def test_a_head_is_moved_once_by_each_event(conninfo: str) -> None:
    async with a_process(conninfo, follows=False) as one, a_process(conninfo, follows=False) as two:
        room = await a_new_room(one, "11")
        await _send(two, a_draft(room, BOB, "m.room.message", {"body": "x"}))
        one.heads.drop(await one.heads.load(room, ()))
        head = await one.heads.load(room, ())  # it holds what the tail has not brought yet
        await _send(one, a_draft(room, ALICE, "m.room.message", {"body": "y"}))
        last = await _send(one, a_draft(room, ALICE, "m.room.topic", {"topic": "z"}, ""))

        assert one.heads.find(room) is head
        assert set(head.extremities) == {last}


class Failing:
    """A change that can never be written."""

    kind: ClassVar[int] = 1 << 20
    width = 3
    rooms: Collection[int] = ()
    users: Collection[UserID] = ()

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Change]]) -> None:
        raise ZeroDivisionError

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, "Failing"]]:
        return []


async def test_state_points_to_its_event_although_its_batch_was_split(conninfo: str) -> None:
    async with a_process(conninfo) as process:
        room = await a_new_room(process, "11")
        topic_draft = a_draft(room, ALICE, "m.room.topic", {"topic": "x"}, "")
        await _send(process, topic_draft)  # the next one is enqueued at once, in one batch with what fails
        sending = asyncio.create_task(_send(process, topic_draft))
        failing = process.log.enqueue(Entry(changes=[Failing()]))
        topic, failed = await asyncio.gather(sending, failing, return_exceptions=True)

        assert isinstance(failed, MatrixError)
        model = await modelled(process, room)
        assert model.current["m.room.topic", ""] == topic


async def test_what_another_process_put_beside_the_end_is_followed_without_looking_it_up(conninfo: str) -> None:
    async with a_process(conninfo) as one, a_process(conninfo, follows=False) as other:
        room = await a_new_room(one, "12")
        await other.tail.catch_up()
        await other.writer.append([a_draft(room, ALICE, "m.room.message", {"body": "both know of this"})])
        await one.tail.catch_up()
        mine = (await one.writer.append([a_draft(room, ALICE, "m.room.message", {"body": "mine"})])).events[0]
        theirs = (await other.writer.append([a_draft(room, BOB, "m.room.message", {"body": "beside it"})])).events[0]
        await one.tail.catch_up()

        head = one.heads.find(room)
        assert head is not None
        merging = (await one.writer.append([a_draft(room, ALICE, "m.room.message", {"body": "after both"})])).events[0]

        assert theirs.prev_event_ids == mine.prev_event_ids
        assert set(merging.prev_event_ids) == {mine.event_id, theirs.event_id}
        async with one.database.read() as tx:
            row = (await rooms.rows(tx, [room.number]))[room.number]
        assert set(row.extremities) == {merging.event_id}


@pytest.mark.parametrize("version", ["1", "11"])
async def test_a_damaged_event_of_another_process_does_not_end_the_tail(
    conninfo: str, connection: psycopg.Connection, version: str
) -> None:
    async with a_process(conninfo, follows=False) as one, a_process(conninfo, follows=False) as other:
        room = await a_new_room(one, version)
        await other.writer.append([a_draft(room, ALICE, "m.room.message", {"body": "it has a head now"})])
        damaged = await _send(one, a_draft(room, ALICE, "m.room.message", {"body": "to be damaged"}))
        connection.execute("update events set json = '{\"depth\":[]}' where event_id = %s", (damaged,))
        await _send(one, a_draft(room, ALICE, "m.room.message", {"body": "after it"}))
        await other.tail.catch_up()
        await _send(other, a_draft(room, BOB, "m.room.message", {"body": "last"}))

        assert other.tail.position == one.tail.position + 1


async def test_what_is_too_much_for_the_bus_is_taken_from_memory(conninfo: str) -> None:
    one_shelf, other_shelf = a_pair_of_shelves()
    async with (
        a_process(conninfo, carrier=ShelfCarrier(one_shelf)) as one,
        a_process(conninfo, carrier=ShelfCarrier(other_shelf)) as other,
    ):
        other.bus.carried_bytes = one.bus.carried_bytes = 100
        room = await a_new_room(one, "11")
        while other.tail.figures()["tail_changes_carried_total"] == 0:  # until it listens
            await _send(one, a_draft(room, ALICE, "m.room.message", {"body": "x"}))
            await other.tail.wait_beyond(one.tail.position - 1, 0.2)
        before = other.tail.figures()
        messages = [a_draft(room, ALICE, "m.room.message", {"body": "x" * 1000}) for _ in range(20)]
        await asyncio.gather(*(_send(one, message) for message in messages))
        while other.tail.position < one.tail.position:
            assert await other.tail.wait_beyond(other.tail.position, 10)

        after = other.tail.figures()
        assert after["tail_changes_read_total"] == before["tail_changes_read_total"]
        assert after["tail_changes_carried_total"] != before["tail_changes_carried_total"]
        assert other.picture.events == one.picture.events


async def test_what_is_no_longer_in_memory_is_read(conninfo: str) -> None:
    one_shelf, other_shelf = a_pair_of_shelves()
    async with (
        a_process(conninfo, carrier=ShelfCarrier(one_shelf)) as one,
        a_process(conninfo, carrier=ShelfCarrier(other_shelf)) as other,
    ):
        one.bus.carried_bytes = 100
        room = await a_new_room(one, "11")
        async with other.tail.reading:  # it hears, and comes to nothing
            for number in range(12):
                await _send(one, a_draft(room, ALICE, "m.room.message", {"body": f"{number}"}))
                if number == 8:
                    for _ in range(5):
                        one_shelf.lay(b"x" * MAX_BYTES)
            await asyncio.sleep(0.1)
        await other.tail.catch_up(one.tail.position)

        assert other.picture.events == one.picture.events


def a_pair_of_shelves() -> tuple[Shelf, Shelf]:
    descriptor = shared_memory(2)
    try:
        return Shelf(descriptor, 0, 2), Shelf(descriptor, 1, 2)
    finally:
        os.close(descriptor)
