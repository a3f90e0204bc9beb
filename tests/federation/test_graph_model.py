"""Random graphs through storage, beside a model that keeps whole states and resolves them in full."""

import os
import random
from collections.abc import Iterable, Sequence

import pytest

from federation.protocol.history_visibility import get_visibility, may_server_see, may_user_see
from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, ServerName, StateKey, UserID
from federation.rooms.append import Outcome
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.server_access import ServerAccess
from storage import outliers, room_state, rooms
from storage.database import Memory, Tx
from storage.events import Flag, StoredEvent
from storage.rooms import Room
from storage.schema import metadata
from tests.federation.processes import Process, a_process
from tests.federation.random_rooms import USERS, RandomRoom
from tests.federation.room_model import RoomModel, State
from tests.federation.stored_rooms import ids_of, stored_events
from tests.protocol.builders import HOME, OTHER

SEEDS = int(os.environ.get("HEARTH_GRAPH_SEEDS", "2"))
FIRST = int(os.environ.get("HEARTH_GRAPH_FIRST", "0"))
STEPS = 45
OUTCOMES = {
    Flag.NONE: Outcome.ACCEPTED,
    Flag.SOFT_FAILED: Outcome.SOFT_FAILED,
    Flag.REJECTED: Outcome.REJECTED,
}


class Delivery:
    """A random room on its way into storage and into the model."""

    def __init__(self, process: Process, source: RandomRoom, room: Room) -> None:
        self.process = process
        self.source = source
        self.room = room
        self.model = RoomModel(source.room.rules)
        self.currents: dict[int, State] = {0: {}}
        self.versions: dict[EventID, int] = {}
        self.gaps = 0
        self.outliers = 0
        self.entered = 0
        """Outliers that came to stand at the room's end."""

    async def deliver_all(self, follower: Process) -> None:
        """Bring in every event; what cannot be judged yet waits."""
        waiting: list[VerifiedPDU] = []
        for pdu in self.source.arrivals():
            waiting.append(pdu)
            progress = True
            while progress:
                progress = False
                for each in list(waiting):
                    if await self._deliver(each):
                        waiting.remove(each)
                        progress = True
                        if self.source.random.random() < 0.3:
                            await follower.tail.catch_up()
        assert not waiting

    async def _deliver(self, pdu: VerifiedPDU) -> bool:
        """Whether the event has its place now, or never gets one."""
        if self.source.random.random() < 0.1:
            await self._hold([pdu.event_id])
        if self.model.flags.get(pdu.event_id) == Flag.OUTLIER:
            return await self._deliver_held(pdu)
        state_before: State | None = None
        needed = [*pdu.auth_event_ids]
        if self.model.missing(pdu):
            state_before = self.source.state_before(pdu)
            needed += state_before.values()
            if self.source.random.random() < 0.3:
                await self._hold(needed)
        if any(
            self.model.flags.get(event_id, Flag.REJECTED) & Flag.REJECTED
            for event_id in needed[len(pdu.auth_event_ids) :]
        ):
            return False
        if any(event_id not in self.model.pdus for event_id in pdu.auth_event_ids):
            return False
        self.gaps += state_before is not None
        received = await self.process.writer.append_remote(pdu, state_before=state_before)
        flags = self.model.receive(pdu, state_before)
        assert received.outcome is OUTCOMES[flags], received
        await self._check_row(pdu)
        return True

    async def _deliver_held(self, pdu: VerifiedPDU) -> bool:
        """An outlier comes by itself: at the room's end it counts as any other; of others see test_append_remote.py."""
        model = self.model
        if model.missing(pdu):
            return True
        before = model.state_after(pdu.prev_event_ids)
        followed = {prev for event_id in model.after for prev in model.pdus[event_id].prev_event_ids}
        ends = [*self.currents.values(), *(model.after[event_id] for event_id in model.extremities())]
        is_there = pdu.state_key is not None and any(state.get(pdu.state_pair) == pdu.event_id for state in ends)
        if is_there or pdu.event_id in followed or model.judge(pdu, before):
            return True
        received = await self.process.writer.append_remote(pdu)
        assert received.outcome is Outcome.ACCEPTED, received
        assert received.position
        model.receive(pdu)
        self.entered += 1
        await self._check_row(pdu)
        return True

    async def _hold(self, event_ids: Iterable[EventID]) -> None:
        """Bring in events without a place, after those that authorise them."""
        world = self.source.world
        wanted: dict[EventID, None] = {}
        frontier = list(event_ids)
        while frontier:
            event_id = frontier.pop()
            wanted[event_id] = None
            frontier += world.pdus[event_id].auth_event_ids
        for pdu in [pdu for pdu in world.pdus.values() if pdu.event_id in wanted]:
            if pdu.event_id in self.model.pdus or world.flags[pdu.event_id] & Flag.REJECTED:
                continue
            async with self.process.database.transaction() as tx:
                reserved = await outliers.reserve(tx, self.room, 1)
            async with self.process.database.transaction() as tx:
                await outliers.insert(tx, self.room, reserved, [pdu])
            self.model.hold(pdu)
            self.outliers += 1

    async def _check_row(self, pdu: VerifiedPDU) -> None:
        async with self.process.database.read() as tx:
            row = (await rooms.rows(tx, [self.room.number]))[self.room.number]
            assert set(row.extremities) == self.model.extremities()
            assert row.joined_members == self.model.count("join")
            assert row.invited_members == self.model.count("invite")
            current = await room_state.current_whole(tx, self.room.number)
            assert await ids_of(tx, current) == self.model.current
            self.currents.setdefault(row.state_version, self.model.current)
            assert self.currents[row.state_version] == self.model.current
            self.versions[pdu.event_id] = row.state_version


async def check_states(tx: Tx, delivery: Delivery, stored: Sequence[StoredEvent]) -> None:
    """The state before and after every event is the model's."""
    points = {(event.line, event.version) for event in stored} | {event.point_after for event in stored}
    states = await room_state.at(tx, delivery.room.number, points)
    by_point = {point: await ids_of(tx, state) for point, state in states.items()}
    for event in stored:
        if event.flags & Flag.OUTLIER:
            continue
        assert by_point[event.line, event.version] == delivery.model.before[event.event_id]
        assert by_point[event.point_after] == delivery.model.after[event.event_id]
        assert event.trunk_version == delivery.versions[event.event_id]
        keys: list[StateKey] = [("m.room.topic", ""), ("m.room.member", USERS[1])]
        point = (event.line, event.version)
        some = (await room_state.at(tx, delivery.room.number, [point], keys))[point]
        assert some == {key: states[point][key] for key in keys if key in states[point]}


async def check_deltas(tx: Tx, delivery: Delivery) -> None:
    """What changed between any two versions is the difference of the model's current states at them."""
    number = delivery.room.number
    ids = {event.position: event.event_id for event in await stored_events(tx, delivery.room)}
    for low, before in delivery.currents.items():
        for high, after in delivery.currents.items():
            if low > high:
                continue
            found = (await room_state.changed_between(tx, {number: (low, high)}))[number]
            delta = {key: None if position is None else ids[position] for key, position in found.items()}
            wanted = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            # An entry that went away and came back, or was set anew, may be told besides.
            assert {**delta, **wanted} == delta
            assert all(delta[key] == after.get(key) for key in delta)


async def check_visible(tx: Tx, delivery: Delivery, stored: Sequence[StoredEvent], user_id: UserID) -> None:
    """A reader is shown what the rules on history visibility say of whole states."""
    model = delivery.model
    shown = [event for event in stored if not event.flags]
    seen = await delivery.process.reader.visible(tx, delivery.room, user_id, shown)
    expected = []
    joined_at = [version for version, state in delivery.currents.items() if model.membership(state, user_id) == "join"]
    is_in = model.membership(model.current, user_id) == "join"
    for event in shown:
        before = model.before[event.event_id]
        visibility_id = before.get(("m.room.history_visibility", ""))
        visibility = get_visibility(None if visibility_id is None else model.pdus[visibility_id].content)
        joins_later = any(version >= event.trunk_version for version in joined_at)
        pdu = model.pdus[event.event_id]
        membership = model.membership(before, user_id)
        if membership == "join" and not is_in and joined_at and event.trunk_version > max(joined_at):
            membership = "leave"  # sent by who did not know of the leave yet
        is_own = (pdu.type, pdu.state_key) == ("m.room.member", user_id)
        if is_own or may_user_see(pdu, user_id, visibility, membership, joins_later=joins_later):
            expected.append(event.event_id)
    assert [each.event.event_id for each in seen] == expected


async def check_visible_to_server(
    tx: Tx, delivery: Delivery, stored: Sequence[StoredEvent], server_name: ServerName
) -> None:
    """A server may see what one of its users may see, by the rules and whole states."""
    model = delivery.model
    users = [user_id for user_id in USERS if server_name_of(user_id) == server_name]
    placed = [event for event in stored if not event.flags & (Flag.REJECTED | Flag.OUTLIER)]
    seen = await ServerAccess(IncompleteRooms()).seen_by(tx, delivery.room, server_name, placed)
    joined_at = [
        version
        for version, state in delivery.currents.items()
        if any(model.membership(state, user_id) == "join" for user_id in users)
    ]
    expected = []
    for event in placed:
        before = model.before[event.event_id]
        visibility_id = before.get(("m.room.history_visibility", ""))
        visibility = get_visibility(None if visibility_id is None else model.pdus[visibility_id].content)
        memberships = {model.membership(before, user_id) for user_id in users}
        joins_later = any(version >= event.trunk_version for version in joined_at)
        pdu = model.pdus[event.event_id]
        if may_server_see(pdu, server_name, visibility, memberships, joins_later=joins_later):
            expected.append(event.event_id)
    assert [event.event_id for event in seen] == expected


def shapes(stored: Sequence[StoredEvent]) -> dict[str, int]:
    """What a random room has exercised."""
    return {
        "forked": sum(event.line != 0 or event.version < event.trunk_version - 1 for event in stored),
        "hidden": sum(bool(event.flags) for event in stored),
    }


ROOM_TABLES = [table.name for table in metadata.tables.values() if table.name == "rooms" or "room" in table.columns]


@pytest.mark.parametrize("version", ["1", "2", "6", "10", "11", "12"])
async def test_random_graphs_are_as_the_model_has_them(conninfo: str, version: str) -> None:
    total = {"forked": 0, "hidden": 0, "gaps": 0, "outliers": 0, "entered": 0, "lines": 0, "all": 0}
    async with a_process(conninfo) as process, a_process(conninfo, follows=False) as follower:
        for seed in range(FIRST, FIRST + SEEDS):
            source = RandomRoom(version, random.Random(f"{version} {seed}"))
            source.grow(STEPS)
            async with process.database.transaction() as tx:
                await tx.execute(f"truncate {', '.join(ROOM_TABLES)}")
                process.database.memory = Memory()  # what it remembers was truncated
                room = await rooms.create(tx, source.room.events[0].room_id, source.room.rules)
            delivery = Delivery(process, source, room)
            await delivery.deliver_all(follower)
            async with process.database.read() as tx:
                stored = await stored_events(tx, room)
                await check_states(tx, delivery, stored)
                await check_deltas(tx, delivery)
                for user_id in USERS:
                    await check_visible(tx, delivery, stored, user_id)
                for server_name in (HOME, OTHER, ServerName("elsewhere.example")):
                    await check_visible_to_server(tx, delivery, stored, server_name)
                total["lines"] += len(await room_state.lines(tx, room.number, range(1000)))
            total["gaps"] += delivery.gaps
            total["outliers"] += delivery.outliers
            total["entered"] += delivery.entered
            total["all"] += len(stored)
            for name, count in shapes(stored).items():
                total[name] += count
            await follower.tail.catch_up()
            await process.tail.catch_up()  # outliers at the end
            assert follower.picture.events == process.picture.events
            # Who reads may be told of a version again: hidden events do not say that they made none.
            assert list(dict.fromkeys(follower.picture.trunk)) == process.picture.trunk
            assert follower.tail.position == process.tail.position
    assert all(total.values()), total
