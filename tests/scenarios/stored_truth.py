"""What the database holds, beside what was answered and beside the model that computes everything anew."""

from typing import Any

import orjson

from federation.protocol.event_format import from_stored
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID
from storage import room_state, rooms
from storage.database import Database, Tx
from storage.events import Flag, StoredEvent
from storage.rooms import Room
from tests.federation.room_model import RoomModel, State
from tests.federation.stored_rooms import ids_of, stored_events


class GrowingModel(RoomModel):
    """The model of a room that keeps its ends as it grows, where all events are accepted."""

    def __init__(self, room: Room) -> None:
        super().__init__(room.rules)
        self.ends: set[EventID] = set()

    def receive(self, pdu: VerifiedPDU, state_before: State | None = None) -> Flag:
        """As the model does; the ends move along."""
        self.ends = (self.ends - set(pdu.prev_event_ids)) | {pdu.event_id}
        return super().receive(pdu, state_before)

    def extremities(self) -> set[EventID]:
        """The ends."""
        return self.ends


class StoredTruth:
    """Reads the database after each round and holds it to the models, which grow with the rooms."""

    def __init__(self) -> None:
        self._models: dict[str, GrowingModel] = {}
        self._events: dict[str, list[StoredEvent]] = {}

    def events_of(self, room_id: str) -> list[str]:
        """The room's event IDs in the order of the log, as last read."""
        return [event.event_id for event in self._events.get(room_id, ())]

    def numbers(self) -> dict[int, list[str]]:
        """The events that bear a number, by it: one each, if nothing was doubled."""
        found: dict[int, list[str]] = {}
        for events in self._events.values():
            for event in events:
                number: Any = orjson.loads(event.canonical)["content"].get("n")
                if number is not None:
                    found.setdefault(number, []).append(event.event_id)
        return found

    def membership(self, room_id: str, user_id: str) -> str | None:
        """A user's membership by the model, with which the database agrees."""
        event_id = self._models[room_id].current.get(("m.room.member", user_id))
        return None if event_id is None else str(self._models[room_id].pdus[event_id].membership)

    async def read(self, conninfo: str, room_ids: list[str]) -> None:
        """Read these rooms and check them."""
        database = Database(conninfo, max_connections=2)
        await database.open()
        try:
            async with database.read() as tx:
                await _check_positions(tx)
                for room_id in room_ids:
                    room = await rooms.find(tx, room_id)
                    assert room is not None, f"{room_id} was answered and is not there"
                    await self._check_room(tx, room)
        finally:
            await database.close()

    async def _check_room(self, tx: Tx, room: Room) -> None:
        model = self._models.setdefault(room.room_id, GrowingModel(room))
        stored = await stored_events(tx, room)
        new = stored[len(self._events.get(room.room_id, ())) :]
        assert [event.event_id for event in stored[: len(stored) - len(new)]] == self.events_of(room.room_id)
        self._events[room.room_id] = stored
        for event in new:
            pdu = from_stored(event.canonical, event.event_id, room.room_id, room.rules)
            held = [event_id in model.pdus for event_id in pdu.prev_event_ids]
            assert all(held), f"{event.event_id} follows an event that is not there"
            assert model.receive(pdu) == event.flags == Flag.NONE, event
        await _check_row(tx, room, model, stored)
        await _check_states(tx, room, model, new[-60:])


async def _check_row(tx: Tx, room: Room, model: GrowingModel, stored: list[StoredEvent]) -> None:
    row = (await rooms.rows(tx, [room.number]))[room.number]
    assert set(row.extremities) == model.extremities() == RoomModel.extremities(model)
    assert len(row.extremities) == len(set(row.extremities))
    assert (row.joined_members, row.invited_members) == (model.count("join"), model.count("invite"))
    assert row.state_version == max(event.trunk_version for event in stored)
    assert await ids_of(tx, await room_state.current_whole(tx, room.number)) == model.current


async def _check_states(tx: Tx, room: Room, model: GrowingModel, stored: list[StoredEvent]) -> None:
    points = {(event.line, event.version) for event in stored} | {event.point_after for event in stored}
    states = await room_state.at(tx, room.number, points)
    by_point = {point: await ids_of(tx, state) for point, state in states.items()}
    for event in stored:
        assert by_point[event.line, event.version] == model.before[event.event_id]
        assert by_point[event.point_after] == model.after[event.event_id]


async def _check_positions(tx: Tx) -> None:
    """The log's head is past everything, and no two events share a place or a transaction."""
    row = await tx.fetch_one(
        "select (select position from log_head) >= coalesce(max(position), 0), count(*) = count(distinct position),"
        " count(*) = count(distinct event_id),"
        " count(txn_id) = count(distinct (device, room, type, txn_id)) filter (where txn_id is not null) from events"
    )
    assert row == (True, True, True, True), row
