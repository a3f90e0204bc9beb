"""What authorises events, and what authorises that, down to the room's creation.

As `storage/events.py`, only for `federation.rooms` and `storage`. The events name their authorisers in their own bytes,
so a chain is walked level by level. What ever stood in the room's state under the keys of one level is read along with
it, because it is what the next levels cite: so the statements follow neither the number of events nor the chain's
length.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from federation.protocol.types import EventID
from storage import events
from storage.arrays import Int8
from storage.database import Tx
from storage.events import Flag, StoredEvent
from storage.rooms import Room

CHUNK = 500
"""Events in memory at once."""


def chunks(positions: Sequence[int]) -> Iterator[Sequence[int]]:
    """The positions, some at a time."""
    for start in range(0, len(positions), CHUNK):
        yield positions[start : start + CHUNK]


async def positions_of_chain(tx: Tx, room: Room, positions: Iterable[int]) -> dict[int, EventID]:
    """The auth chain of the events at these positions, as far as it is held: where each event stands, oldest first.

    The events themselves are in it only where others of them cite them. Rejected events authorise nothing.
    """
    walk = _Walk(tx, room)
    level = list(positions)
    await walk.load(level)
    while level:
        level = await walk.find({cited for position in level for cited in walk.cited[position]})
        await walk.load(level)
    return dict(sorted(walk.found.items()))


class _Walk:
    def __init__(self, tx: Tx, room: Room) -> None:
        self._tx = tx
        self._room = room
        self._asked: set[EventID] = set()
        self._known: dict[EventID, int] = {}
        """Where events stand that were loaded, wanted or not."""
        self.cited: dict[int, Sequence[EventID]] = {}
        """What the loaded events cite."""
        self.found: dict[int, EventID] = {}

    async def find(self, event_ids: Collection[EventID]) -> list[int]:
        """Add these events to the chain; where those stand that were not in it."""
        fresh = [event_id for event_id in event_ids if event_id not in self._asked]
        self._asked.update(fresh)
        positions = {event_id: self._known[event_id] for event_id in fresh if event_id in self._known}
        missing = [event_id for event_id in fresh if event_id not in positions]
        if missing:
            positions.update(await events.positions_of(self._tx, self._room.number, missing))
        self.found.update((position, event_id) for event_id, position in positions.items())
        return list(positions.values())

    async def load(self, positions: Collection[int]) -> None:
        """Know what these events cite, and what those cite that stood, at any time, where they stand now."""
        fresh = [position for position in positions if position not in self.cited]
        for part in chunks(fresh):
            self._keep((await events.by_position(self._tx, self._room.number, part)).values())
        relatives = await _under_same_keys(self._tx, self._room.number, [each for each in fresh if each in self.found])
        for part in chunks([position for position in relatives if position not in self.cited]):
            self._keep((await events.by_position(self._tx, self._room.number, part)).values())
        for position in positions:
            self.cited.setdefault(position, ())

    def _keep(self, stored: Iterable[StoredEvent]) -> None:
        for event in stored:
            self.cited[event.position] = cited_by(event, self._room)
            if not event.flags & Flag.REJECTED:
                self._known[event.event_id] = event.position


async def _under_same_keys(tx: Tx, room: int, positions: Collection[int]) -> list[int]:
    """What ever stood in the room's current state under the same keys as these events."""
    if not positions:
        return []
    rows = await tx.fetch(
        "select distinct room_state.event from (select distinct type, state_key from events where room = %s"
        "  and position = any(%s::bigint[]) and state_key is not null) as keys"
        " join room_state on room_state.room = %s and room_state.line = 0 and room_state.type = keys.type"
        "  and room_state.state_key = keys.state_key where room_state.event is not null",
        (room, Int8(positions), room),
    )
    return [event for (event,) in rows]


def cited_by(event: StoredEvent, room: Room) -> list[EventID]:
    """What a stored event names as authorising it, with the create event that its room ID names; whatever it holds."""
    cited = references(event, "auth_events", room)
    if not room.rules.create_in_auth_events and event.type != "m.room.create":
        cited.append(EventID("$" + room.room_id[1:]))
    return cited


def references(event: StoredEvent, member: str, room: Room) -> list[EventID]:
    """The event IDs in `auth_events` or `prev_events` of a stored event; of a row that is no event, none."""
    given = event.json.get(member)
    if not isinstance(given, list):
        return []
    if room.rules.references_carry_hashes:
        given = [pair[0] for pair in given if isinstance(pair, list) and pair]
    return [EventID(event_id) for event_id in given if isinstance(event_id, str) and "\0" not in event_id]
