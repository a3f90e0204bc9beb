"""What rooms are at present, for who looks at many of them: their newest events, their state, how many are in them.

All who are in a room are shown the same, so it is kept in memory for the rooms that were asked for lately. As a view of
the tail it is as new as the tail's position. What would be hard to follow (a redaction, a gap, an outlier that found
its place, the end of a join) has the room forgotten, and read again when somebody asks. Whether a reader may see what
is here is for the visibility gate to say, or for who knows that the reader is in the room.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field

from federation.protocol.relations import related_event
from federation.protocol.types import StateKey, UserID
from federation.rooms.room_news import BEGINNING
from storage import event_pages, rooms, state_matching
from storage.append_events import RoomEvents, memory_of
from storage.database import Tx
from storage.events import StoredEvent
from storage.log_entries import Change
from storage.room_completeness import RoomCompleteness
from storage.state_matching import StatePart
from storage.tail import Tail

MAX_ROOMS = 5_000
MAX_BYTES = 64 * 1024 * 1024
"""What all of that may take, about."""
MAX_NEWEST = 50
"""Events of one room. Who wants more of them asks the database."""
SPARE = 2
"""Events of a room more than were ever asked for, for who looks from a place a little further back."""
MAX_ENTRIES = 300
"""Of one room's state without members: larger ones are not kept."""
MAX_CHILDLESS = 200
"""Events of one room to which nothing is known to relate."""
MAX_MEMBERS = 300
"""Whose member events are known, of one room."""

_BYTES_OF_AN_ENTRY = 200
NOW = (1 << 62) - 1
"""After every place in the log."""
MEMBER = "m.room.member"


class _Newest(Struct):
    """The end of a room's timeline."""

    events: list[StoredEvent]
    """Oldest first."""
    is_whole: bool
    """Whether nothing stands before them, or a gap."""
    has_gap: bool
    upto: int
    """The place in the log that they were read at; what came later was added."""
    depth: int
    """So many are kept."""

    def take(self, stored: Sequence[StoredEvent]) -> int:
        """Add what came, and drop what is too much; how many bytes more that takes."""
        new = [event for event in stored if not event.flags and event.position > self.upto]
        self.events.extend(new)
        old = self.events[: -self.depth]
        if old:
            del self.events[: -self.depth]
            self.is_whole = False
        return sum(memory_of(event.canonical) for event in new) - sum(memory_of(event.canonical) for event in old)


class _CurrentRoom(Struct, eq=False):
    changes: int = 0
    """How often anything came: what was read meanwhile may be older, and is not kept."""
    newest: _Newest | None = None
    held_bytes: int = 0
    """About what it takes."""
    state: dict[StateKey, int] | None = None
    is_large: bool = False
    """The state has too many entries."""
    members: dict[str, int | None] = field(default_factory=dict)
    """Positions of member events; None for who has none."""
    counts: tuple[int, int] | None = None
    childless: set[int] = field(default_factory=set)
    """Events to which nothing relates, by position."""

    def follow(self, change: RoomEvents) -> None:
        """Take what came to the room."""
        for entry in change.trunk:
            if entry.type == MEMBER:
                self.counts = None
                if entry.state_key in self.members:
                    self.members[entry.state_key] = entry.event
            elif self.state is not None and entry.event is None:
                self.state.pop((entry.type, entry.state_key), None)
            elif self.state is not None and entry.event is not None:
                self.state[entry.type, entry.state_key] = entry.event
        if self.state is not None and len(self.state) > MAX_ENTRIES:
            self.state, self.is_large = None, True
        if self.childless and any(related_event(event.content) is not None for event in change.stored):
            self.childless.clear()
        if self.newest is not None:
            self.held_bytes += self.newest.take(change.stored)

    def weigh(self) -> None:
        """Find out what it takes."""
        stored = () if self.newest is None else self.newest.events
        entries = len(self.members) + len(self.state or ())
        self.held_bytes = sum(memory_of(event.canonical) for event in stored) + _BYTES_OF_AN_ENTRY * entries


class CurrentRooms:
    """The rooms that were asked for; `apply` is to be a view of the tail."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._rooms: OrderedDict[int, _CurrentRoom] = OrderedDict()
        self._bytes = 0

    def apply(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if isinstance(change, RoomCompleteness):
            self._forget(change.room)
        elif isinstance(change, RoomEvents):
            number = change.room.number
            room = self._rooms.get(number)
            if room is None:
                return
            room.changes += 1
            is_moved = any(event.other_arrival is not None or event.redacted_by is not None for event in change.stored)
            if change.redacted or change.follows_gap or is_moved:
                self._forget(number)
            else:
                before = room.held_bytes
                room.follow(change)
                self._bytes += room.held_bytes - before

    def _forget(self, number: int) -> None:
        room = self._rooms.pop(number, None)
        if room is not None:
            room.changes += 1
            self._bytes -= room.held_bytes

    def _of(self, number: int) -> _CurrentRoom:
        room = self._rooms.get(number)
        if room is None:
            room = self._rooms[number] = _CurrentRoom()
            if len(self._rooms) > MAX_ROOMS:
                self._forget(next(iter(self._rooms)))
        else:
            self._rooms.move_to_end(number)
        return room

    def _settle(self, read: Mapping[int, _CurrentRoom]) -> None:
        """What was read of these rooms is kept, and others forgotten if that is too much."""
        for number, room in read.items():
            if self._rooms.get(number) is room:
                before = room.held_bytes
                room.weigh()
                self._bytes += room.held_bytes - before
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._rooms)))

    # --- the newest events

    async def newest(
        self, tx: Tx, numbers: Collection[int], *, upto: int, limit: int
    ) -> tuple[dict[int, list[StoredEvent]], set[int]]:
        """As `event_pages.newest_per_room` of all that came up to a place in the log."""
        asked: dict[int, _CurrentRoom] = {number: self._of(number) for number in numbers}
        lacking = [number for number, room in asked.items() if _newest_of(room, upto, limit) is None]
        if lacking and limit <= MAX_NEWEST:
            await self._read_newest(tx, {number: asked[number] for number in lacking}, limit + SPARE)
        found: dict[int, list[StoredEvent]] = {}
        cut: set[int] = set()
        missing: list[int] = []
        for number, room in asked.items():
            known = _newest_of(room, upto, limit)
            if known is None or room.newest is None:
                missing.append(number)
                continue
            found[number] = known
            if room.newest.has_gap and known:
                cut.add(number)
        if missing:
            read, also_cut = await event_pages.newest_per_room(tx, missing, after=BEGINNING, upto=upto, limit=limit)
            found.update(read)
            cut |= also_cut
        return found, cut

    async def _read_newest(self, tx: Tx, lacking: Mapping[int, _CurrentRoom], limit: int) -> None:
        upto = self._tail.position
        before = {number: room.changes for number, room in lacking.items()}
        read, cut = await event_pages.newest_per_room(tx, list(lacking), after=BEGINNING, upto=upto, limit=limit)
        for number, room in lacking.items():
            if room.changes == before[number]:
                room.newest = _Newest(read[number], len(read[number]) < limit, number in cut, upto, limit)
        self._settle(lacking)

    # --- what relates to them

    def is_childless(self, event: StoredEvent) -> bool:
        """Whether it is known that nothing relates to an event. History that was fetched since is not looked at: it is
        older than what stands at the end of the room."""
        room = self._rooms.get(event.room)
        return room is not None and event.position in room.childless

    def changes_of(self, numbers: Iterable[int]) -> dict[int, int]:
        """For `note_childless`: where these rooms are."""
        return {number: room.changes for number in numbers if (room := self._rooms.get(number)) is not None}

    def note_childless(self, found: Iterable[StoredEvent], changes: Mapping[int, int]) -> None:
        """Nothing related to these events when their rooms were there."""
        for event in found:
            room = self._rooms.get(event.room)
            if room is not None and room.changes == changes.get(event.room):
                if len(room.childless) > MAX_CHILDLESS:
                    room.childless.clear()
                room.childless.add(event.position)

    # --- state

    async def state(
        self, tx: Tx, parts: Mapping[int, StatePart], upto: int, *, unfollowed: Collection[int] = ()
    ) -> dict[int, dict[StateKey, int]]:
        """As `state_matching.read`; what is in `unfollowed` changes in ways that the log does not tell."""
        asked = {
            number: self._of(number) for number, part in parts.items() if number not in unfollowed and _is_kept(part)
        }
        await self._read_states(tx, {number: room for number, room in asked.items() if room.state is None})
        await self._read_members(tx, {number: (room, parts[number]) for number, room in asked.items()})
        found: dict[int, dict[StateKey, int]] = {}
        missing: dict[int, StatePart] = {}
        for number, part in parts.items():
            known = _entries(asked[number], part, upto) if number in asked else None
            if known is None:
                missing[number] = part
            else:
                found[number] = known
        if missing:
            found.update(await state_matching.read(tx, missing, upto))
        return found

    async def _read_states(self, tx: Tx, lacking: Mapping[int, _CurrentRoom]) -> None:
        wanted = {number: room.changes for number, room in lacking.items() if not room.is_large}
        if not wanted:
            return
        for number, state in (await state_matching.read_whole(tx, wanted, limit=MAX_ENTRIES)).items():
            room = lacking[number]
            if room.changes == wanted[number]:
                room.state, room.is_large = state, state is None
        self._settle(lacking)

    async def _read_members(self, tx: Tx, asked: Mapping[int, tuple[_CurrentRoom, StatePart]]) -> None:
        lacking: dict[int, StatePart] = {}
        for number, (room, part) in asked.items():
            unknown = {key for key in part.entries if key[0] == MEMBER and key[1] not in room.members}
            if unknown and room.state is not None:
                lacking[number] = StatePart(unknown)
        if not lacking:
            return
        before = {number: asked[number][0].changes for number in lacking}
        for number, members in (await state_matching.read(tx, lacking, NOW)).items():
            room = asked[number][0]
            if room.changes == before[number]:
                if len(room.members) > MAX_MEMBERS:
                    room.members.clear()
                room.members.update({key[1]: members.get(key) for key in lacking[number].entries})
        self._settle({number: asked[number][0] for number in lacking})

    # --- members

    async def member_counts(self, tx: Tx, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
        """How many are joined to each of these rooms, and invited."""
        asked = {number: self._of(number) for number in numbers}
        lacking = {number: room.changes for number, room in asked.items() if room.counts is None}
        read = await rooms.member_counts(tx, lacking) if lacking else {}
        for number, told in read.items():
            if asked[number].changes == lacking[number]:
                asked[number].counts = told
        found = {number: room.counts for number, room in asked.items() if room.counts is not None}
        return {**found, **read}


def _newest_of(room: _CurrentRoom, upto: int, limit: int) -> list[StoredEvent] | None:
    """The newest events up to a place in the log; None where memory does not tell."""
    newest = room.newest
    if newest is None or (newest.has_gap and upto < newest.upto):
        return None
    known = newest.events
    if known and known[-1].position > upto:
        known = [event for event in known if event.position <= upto]
    if len(known) < limit and not newest.is_whole:
        return None
    return known[-limit:]


def _is_kept(part: StatePart) -> bool:
    """Whether it asks for no members but those that it names."""
    return MEMBER not in part.types and not part.state_keys


def _entries(room: _CurrentRoom, part: StatePart, upto: int) -> dict[StateKey, int] | None:
    """What the part asks for, of events up to a place in the log; None where memory does not tell."""
    state, members = room.state, room.members
    if state is None:
        return None
    found = {
        key: event
        for key, event in state.items()
        if event <= upto and (part.has_rest or key[0] in part.types or key in part.entries)
    }
    for key in part.entries:
        if key[0] == MEMBER:
            user_id = UserID(key[1])
            if user_id not in members:
                return None
            event = members[user_id]
            if event is not None and event <= upto:
                found[key] = event
    return found
