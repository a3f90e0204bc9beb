"""Reading back what is stored of a room."""

from collections.abc import Mapping

from federation.protocol.types import StateKey
from storage import events
from storage.database import Tx
from storage.events import StoredEvent
from storage.rooms import Room
from tests.federation.room_model import State


async def ids_of(tx: Tx, state: Mapping[StateKey, int]) -> State:
    found = await events.by_positions(tx, state.values())
    return {key: found[position].event_id for key, position in state.items()}


async def newest_events(tx: Tx, room: Room, count: int) -> list[StoredEvent]:
    """The room's newest visible events, the newest first."""
    rows = await tx.fetch(
        f"select {events.COLUMNS} from events where room = %s and flags = 0 order by position desc limit %s",  # noqa: S608  # a constant
        (room.number, count),
    )
    return [events.from_row(row) for row in rows]


async def stored_events(tx: Tx, room: Room) -> list[StoredEvent]:
    rows = await tx.fetch("select position from events where room = %s order by position", (room.number,))
    found = await events.by_position(tx, room.number, [row[0] for row in rows])
    return [found[row[0]] for row in rows]
