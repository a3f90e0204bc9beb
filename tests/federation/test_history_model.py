"""Random graphs fetched backwards, stretch by stretch, beside a model that keeps whole states."""

import os
import random

import pytest

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID
from federation.rooms.append_join import GivenEntry
from federation.rooms.history import HistoryAppender
from federation.rooms.ordering import cited_by, in_order, prev_of
from storage import event_pages, events, history, room_state, rooms
from storage.append_events import RoomEvents
from storage.database import Memory
from storage.events import Flag
from storage.history import Gap
from storage.rooms import Room
from storage.schema import metadata
from tests.federation.processes import Process, a_process
from tests.federation.random_rooms import RandomRoom
from tests.federation.room_model import RoomModel, State
from tests.federation.stored_rooms import ids_of

SEEDS = int(os.environ.get("HEARTH_GRAPH_SEEDS", "3"))
FIRST = int(os.environ.get("HEARTH_GRAPH_FIRST", "0"))
STEPS = 45
ROOM_TABLES = [table.name for table in metadata.tables.values() if table.name == "rooms" or "room" in table.columns]


class Fetching:
    """A room of which the newest event is here, and history is being fetched."""

    def __init__(self, process: Process, model: RoomModel, room: Room, chance: random.Random) -> None:
        self.process = process
        self.model = model
        self.room = room
        self.chance = chance
        self.appender = HistoryAppender(process.database)

    async def hold(self, state: State) -> None:
        """Have the events of a state, with what authorises them."""
        wanted: dict[EventID, VerifiedPDU] = {}
        frontier = list(state.values())
        while frontier:
            pdu = self.model.pdus[frontier.pop()]
            if pdu.event_id not in wanted:
                wanted[pdu.event_id] = pdu
                frontier.extend(cited_by(pdu))
        await self.process.writer.append_outliers(self.room, list(wanted.values()))

    async def join(self, pdu: VerifiedPDU) -> None:
        """The event by which we came."""
        before = self.model.before[pdu.event_id]
        await self.hold({**before, **{("cited", each): each for each in cited_by(pdu)}})
        state = [GivenEntry(key, event_id, self.model.pdus[event_id].membership) for key, event_id in before.items()]
        await self.process.writer.append_join(pdu, state)

    async def gap(self) -> Gap:
        async with self.process.database.read() as tx:
            (gap,) = await history.gaps(tx, self.room.number)
        return gap

    async def in_the_log(self, upto: int) -> list[EventID]:
        """The events that a process is told of which reads the log from its beginning."""
        async with self.process.database.read() as tx:
            changes = await RoomEvents.read_range(tx, 0, upto)
        return [event.event_id for _, change in changes for event in change.stored]

    async def fetch_stretch(self, gap: Gap) -> None:
        """Some of what precedes the gap, with the states before its loose ends."""
        async with self.process.database.read() as tx:
            known = await events.flags_of(tx, self.model.pdus)
        placed = {event_id for event_id, (_, flags) in known.items() if not flags & Flag.OUTLIER}
        stretch: dict[EventID, VerifiedPDU] = {}
        frontier = list(gap.frontier)
        size = self.chance.randint(1, 12)
        while frontier and len(stretch) < size:
            frontier.sort(key=lambda event_id: self.model.pdus[event_id].depth)
            pdu = self.model.pdus[frontier.pop()]
            if pdu.event_id not in stretch and pdu.event_id not in placed:
                stretch[pdu.event_id] = pdu
                frontier.extend(pdu.prev_event_ids)
        pdus = in_order(sorted(stretch.values(), key=lambda pdu: pdu.depth), prev_of)
        states = {
            pdu.event_id: self.model.before[pdu.event_id]
            for pdu in pdus
            if not {*placed, *stretch}.issuperset(pdu.prev_event_ids)
        }
        for state in states.values():
            await self.hold(state)
        await self.hold({("cited", each): each for pdu in pdus for each in cited_by(pdu) if each not in stretch})
        await self.appender.append(self.room, gap, pdus, states, first_place=gap.bottom - len(pdus))


@pytest.mark.parametrize("version", ["1", "2", "6", "11", "12"])
async def test_fetched_history_is_as_the_model_has_it(conninfo: str, version: str) -> None:
    stretches, forked, moved = 0, 0, 0
    async with a_process(conninfo) as process:
        for seed in range(FIRST, FIRST + SEEDS):
            chance = random.Random(f"{version} {seed}")  # a test's own
            source = RandomRoom(version, chance)
            source.grow(STEPS)
            model = source.world
            async with process.database.transaction() as tx:
                await tx.execute(f"truncate {', '.join(ROOM_TABLES)}")
                process.database.memory = Memory()
                room = await rooms.create(tx, source.room.events[0].room_id, source.room.rules)
            newest = [pdu for pdu in model.pdus.values() if pdu.state_key is not None and not model.flags[pdu.event_id]]
            fetching = Fetching(process, model, room, chance)
            await fetching.join(newest[-1])
            position, heard = process.tail.position, list(process.picture.events)
            in_the_log = await fetching.in_the_log(position)
            gap = await fetching.gap()
            while gap.frontier:
                await fetching.fetch_stretch(gap)
                before, gap = gap, await fetching.gap()
                assert gap != before
                stretches += 1
            await process.tail.catch_up()
            assert process.picture.events == heard  # it is no news
            assert await fetching.in_the_log(position) == in_the_log  # nor for who reads the log only now
            ancestors = {newest[-1].event_id}
            for pdu in sorted(model.pdus.values(), key=lambda pdu: -pdu.depth):
                if pdu.event_id in ancestors:
                    ancestors.update(pdu.prev_event_ids)
            async with process.database.read() as tx:
                stored = await event_pages.preceding(tx, room.number, position, 1_000)
                assert {event.event_id for event in stored} == ancestors
                assert len(stored) == len(ancestors)
                for event in stored:
                    is_rejected = bool(event.flags & Flag.REJECTED)
                    assert is_rejected == bool(model.flags[event.event_id] & Flag.REJECTED)
                    points = [(event.line, event.version), event.point_after]
                    states = await room_state.at(tx, room.number, points)
                    assert await ids_of(tx, states[points[0]]) == model.before[event.event_id]
                    assert await ids_of(tx, states[points[1]]) == model.after[event.event_id]
                    forked += len(event.json["prev_events"]) > 1
                    moved += event.other_place is not None
                assert await tx.fetch("select * from missing_events") == []
    assert stretches
    assert forked
    assert moved
