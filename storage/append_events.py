"""The log change that appends room events: admitted under the log's lock, inserted in bulk, read back by others.

What an append expects is checked here (`docs/how-it-works.md`): the room's version when its events were authorised.
Everything else about an event was decided before by `federation/rooms`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

from msgspec import Struct, field

from federation.protocol.errors import MatrixError
from federation.protocol.relations import THREAD
from federation.protocol.types import EventID, UserID
from storage import event_following, event_writes, events, history, redactions, rooms, state_writes, strings
from storage.arrays import Texts
from storage.database import Memory, Row, Statement, Tx
from storage.events import (
    COLUMNS,
    HIDDEN,
    UNSEEN,
    Flag,
    NewEvent,
    NewLine,
    StateWrite,
    StoredEvent,
    TrunkChange,
)
from storage.log_entries import Conflict
from storage.rooms import Room
from storage.state_writes import Standing
from storage.unread import PersonalCount

_BYTES_OF_A_CHANGE = 200
_BYTES_OF_A_VALUE = 80
_NO_VALUE_BEGINS = bytes(set(range(256)) - set(b",{["))


_NOTHING: Mapping[Any, int] = MappingProxyType({})


class AtEnd(Struct, frozen=True):
    """How an event stands at a room's end, in a room version whose references carry no hashes."""

    depth: int
    prev_event_ids: Sequence[EventID]


class Head(Protocol):
    """The writer's picture of a room. Once something built on it was refused, all that stands on it falls."""

    is_broken: bool


def memory_of(canonical: bytes) -> int:
    """About as many bytes as an event takes when it was parsed, too: 64 KiB of empty objects take a megabyte."""
    return 2 * len(canonical) + _BYTES_OF_A_VALUE * len(canonical.translate(None, _NO_VALUE_BEGINS))


class DuplicateEvent(Conflict):
    """The event is already stored."""


class RoomEvents(Struct, kw_only=True, eq=False):
    """Events of one room that are appended together, with all that they change."""

    room: Room
    new: list[NewEvent]
    expected_version: int | None
    """The version of the room at which the events were authorised; None where that does not matter."""
    new_version: int
    """The room's version afterwards. Whatever is more than a message at the room's end makes a new one."""
    expected_extremities: frozenset[EventID] | None = None
    """The forward extremities from which the new version was computed; None where messages may come between."""
    state: list[StateWrite] = field(default_factory=list)
    lines: list[NewLine] = field(default_factory=list)
    expected_last_line: int | None = None
    head: Head | None = None
    may_be_duplicate: bool = False
    """Whether one of them may be here: looked up first, where a unique key would refuse others with it."""
    may_be_awaited: bool = False
    """Whether others that are here may refer to them."""
    hole: int = 0
    """Places to leave free before the event, which came without what precedes it: history goes there when it comes."""
    concerned: tuple[UserID, ...] = ()
    """Users who hear of it although they are not in the room: invited, kicked, banned."""
    ahead: Sequence[TrunkChange] = ()
    """What of the new version was written before (`state_ahead.py`)."""
    members_ahead: tuple[int, int] = (0, 0)
    """How many more are joined, and invited, by that."""

    stored: list[StoredEvent] = field(default_factory=list)
    """The events with their places; filled when they are written, or read."""
    trunk: Sequence[TrunkChange] = ()
    """What the room's current state changed in; filled likewise."""
    personal: Sequence[tuple[int, PersonalCount]] = ()
    """What counts for single users, with the positions of the events; filled likewise."""
    redacted: Mapping[EventID, int] = field(default_factory=lambda: _NOTHING)
    """Events that came before and are redacted now, with what redacts them; filled likewise."""
    at_end: AtEnd | None = None
    """Of a change that another process handed on: where its event, of one of our users, stands."""
    is_after_gap: bool = False
    """Of a change that was read: as `follows_gap`."""
    numbers: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """The numbers of strings that were not remembered before; final once the change is committed."""
    _standing: Standing | None = None

    kind: ClassVar[int] = 1 << 8

    @property
    def follows_gap(self) -> bool:
        """Whether what precedes the event is not here, or was not when it came."""
        return bool(self.hole) or self.is_after_gap

    @property
    def width(self) -> int:
        """A position an event, after the room that is left for history."""
        return self.hole + (len(self.new) or len(self.stored))

    @property
    def rooms(self) -> Collection[int]:
        """The room."""
        return (self.room.number,)

    @property
    def users(self) -> Collection[UserID]:
        """Those who are concerned without being in the room."""
        return self.concerned

    @property
    def held_bytes(self) -> int:
        """What the events take in memory, as they are, as clients see them, and parsed, and what they changed: with the
        join to a large room comes its whole state."""
        held = _BYTES_OF_A_CHANGE * len(self.trunk)
        for event in self.stored:
            held += memory_of(event.canonical)
        return held

    @property
    def is_plain(self) -> bool:
        """Whether these are messages, after which the room is as it was."""
        return not (self.trunk or self.redacted)

    def settle(self) -> None:
        """Keep what others may still ask for: it is committed, `stored` has the events, and `trunk` the new state."""
        if self._standing is not None:  # else it was read
            self.new, self.state, self.lines, self.ahead = [], [], [], ()
            self.expected_extremities = self._standing = None

    @property
    def takes_outliers(self) -> bool:
        """Whether one of the events is here as an outlier."""
        return any(event.held_at is not None for event in self.new)

    @property
    def visible(self) -> list[StoredEvent]:
        """Those of the events that clients may be shown at all."""
        return [event for event in self.stored if not event.flags & UNSEEN]

    @classmethod
    def preload(cls, memory: Memory, changes: Sequence[Self]) -> Sequence[Statement]:
        """Where the rooms stand, and the numbers of strings that this process does not remember."""
        statements = [rooms.rows_statement({change.room.number for change in changes})]
        if unknown := strings.unknown(memory, _strings_of(changes)):
            statements.append(strings.intern_statement(unknown))
        return statements

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Sequence[Row]]
    ) -> Sequence[MatrixError | None]:
        """Check expectations in order, each against the room as those before it leave it."""
        standings, *interned = loaded
        counters = _standings_of(standings)
        numbers = strings.from_rows(interned[0]) if interned else _NOTHING
        taking = {change.room.number for _, change in rows if change.takes_outliers}
        locked = {room for room in taking if await history.try_lock(tx, room)}
        held = await _held(tx, [change for _, change in rows if change.may_be_duplicate])
        await _follow_relations(tx, [change for _, change in rows])
        threads = await _load_threads(tx, rows)
        answers: list[MatrixError | None] = []
        for position, change in rows:
            room = counters[change.room.number]
            error = change._check(room, held)
            if change.takes_outliers and change.room.number not in locked:
                error = error or Conflict("The room's history is being written, and may refer to what was held")
            if error is not None:
                if change.head is not None:
                    change.head.is_broken = True
            else:
                change._place(position, room, threads)
                change.numbers = numbers
                held.update(event.pdu.event_id for event in change.new)
            answers.append(error)
        return answers

    def _check(self, room: Standing, held: set[EventID]) -> MatrixError | None:
        if self.head is not None and self.head.is_broken:
            return Conflict("An earlier event of this room could not be stored")
        if self.may_be_duplicate and any(event.pdu.event_id in held for event in self.new):
            return DuplicateEvent("The event is already stored")
        if self.expected_version is not None and self.expected_version != room.state_version:
            return Conflict("The room's state has changed meanwhile")
        if self.expected_extremities is not None and self.expected_extremities != set(room.extremities):
            return Conflict("The room's graph has grown meanwhile")
        if self.expected_last_line is not None and self.expected_last_line != room.last_line:
            return Conflict("The room's graph has forked meanwhile")
        return None

    def _place(self, first: int, room: Standing, threads: dict[tuple[int, str], list[int]]) -> None:
        """Give each event its position and running counts; move the room's row along."""
        self._standing = room
        self.stored = []
        personal: list[tuple[int, PersonalCount]] = []
        for position, event in enumerate(self.new, first + self.hole):
            pdu = event.pdu
            if event.personal:
                personal.extend((position, count) for count in event.personal)
            totals = _count(event, room, threads, self.room.number, position)
            is_hidden = bool(event.flags & HIDDEN)
            covered = event.covers
            if covered is None:
                covered = () if is_hidden else pdu.prev_event_ids
            room.extremities = [known for known in room.extremities if known not in covered]
            if event.is_extremity and not is_hidden:
                room.extremities.append(pdu.event_id)
            after_line, after_version = event.after if event.after is not None else (None, None)
            self.stored.append(
                StoredEvent(
                    position=position,
                    room=self.room.number,
                    event_id=pdu.event_id,
                    flags=int(event.flags),
                    line=event.line,
                    version=event.version,
                    trunk_version=event.trunk_version,
                    after_line=after_line,
                    after_version=after_version,
                    notify_total=totals[0],
                    highlight_total=totals[1],
                    redacted_by=None,
                    thread=event.thread,
                    device=event.device,
                    txn_id=event.txn_id,
                    canonical=pdu.canonical,
                    other_arrival=event.held_at,
                    _json=pdu.json,
                )
            )
            room.note_shown(position, pdu.type, int(event.flags))
        self.personal = personal
        room.state_version = max(room.state_version, self.new_version)
        room.joined += self.members_ahead[0]
        room.invited += self.members_ahead[1]
        for line in self.lines:
            room.last_line = max(room.last_line, line.line)
        positions = {event.event_id: event.position for event in self.stored}
        for write in self.state:
            if write.event_id in positions:  # again when a batch is split: positions are new then
                write.position = positions[write.event_id]
        self.trunk = [*self.ahead, *(trunk_change(write) for write in self.state if write.line == 0)]

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """Write all that the admitted changes hold: a fixed number of statements."""
        changes = [change for _, change in rows]
        numbers = await strings.intern(tx, _strings_of(changes), changes[0].numbers)
        fresh = strings.not_remembered(tx.memory, numbers)
        for change in changes:
            change.numbers = fresh
        standings = {change.room.number: change._standing for change in changes if change._standing is not None}
        trunk, branches = state_writes.arrange(
            ((change.room.number, write) for change in changes for write in change.state), numbers
        )
        await state_writes.write_branches(tx, branches)
        await state_writes.write_lines(tx, [(change.room.number, line) for change in changes for line in change.lines])
        placed = [pair for change in changes for pair in zip(change.new, change.stored, strict=True)]
        held = [(event, stored) for event, stored in placed if event.held_at is not None]
        if held:
            await event_writes.take_outliers(tx, held)
        event_writes.append(tx, placed, standings, numbers, trunk)
        if held:
            await event_writes.replace_outliers(tx, held, numbers)
        await event_writes.insert_relations(tx, placed, numbers)
        arrived = [
            stored for change in changes if change.may_be_duplicate or change.may_be_awaited for stored in change.stored
        ]
        redacted = await event_writes.insert_extras(tx, placed, arrived)
        for change in changes:
            if change.hole and change.stored:
                await history.open_gap(tx, change.stored[0], change.new[0].missing, change.hole)
            is_redaction = any(event.redacts is not None for event in change.new)
            change.redacted = redacted if redacted and is_redaction else _NOTHING

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Events that other processes appended, one change an event, with what they changed in current states."""
        found = await tx.fetch(
            f"select {COLUMNS} from events where position > %s and position <= %s and flags & %s = 0 order by position",
            (after, upto, int(Flag.OUTLIER | Flag.HISTORY)),
        )
        if not found:
            return []
        stored = [events.from_row(row) for row in found]
        known = await rooms.get_many(tx, {event.room for event in stored})
        trunk = await event_following.trunk_within(tx, await event_following.versions_within(tx, stored, after))
        personal = await event_following.personal_in(tx, after, upto)
        redacted = await redactions.targets_of(tx, stored)
        gaps = await history.after_gaps(tx, after, stored)
        answer: list[tuple[int, Self]] = []
        for event in stored:
            versions = [key for key in trunk if key[0] == event.room and key[1] <= event.trunk_version]
            changed = [each for key in sorted(versions) for each in trunk.pop(key)]
            change = cls.from_stored(
                known[event.room],
                event,
                trunk=changed,
                personal=[(event.position, count) for count in personal.get(event.position, ())],
            )
            if redacted and event.is_a("m.room.redaction"):
                change.redacted = redacted
            change.is_after_gap = event.position in gaps
            answer.append((event.position, change))
        return answer

    @classmethod
    def from_stored(
        cls,
        room: Room,
        event: StoredEvent,
        *,
        trunk: Sequence[TrunkChange],
        personal: Sequence[tuple[int, PersonalCount]],
        concerned: tuple[UserID, ...] | None = None,
    ) -> Self:
        """The change of one event that another process appended; `concerned` where that was looked at."""
        return cls(
            room=room,
            new=[],
            expected_version=None,
            new_version=event.trunk_version,
            stored=[event],
            trunk=trunk,
            concerned=concerned_by(event, trunk) if concerned is None else concerned,
            personal=personal,
        )


def trunk_change(write: StateWrite) -> TrunkChange:
    """An entry of the trunk as it is told."""
    return TrunkChange(
        type=write.type,
        state_key=write.state_key,
        event=write.position,
        since=write.since,
        membership=write.membership,
    )


def concerned_by(event: StoredEvent, trunk: Sequence[TrunkChange]) -> tuple[UserID, ...]:
    """Whose membership an event, or what it changed in the room's state, is about."""
    users = [change.state_key for change in trunk if change.type == "m.room.member"]
    if not event.flags & HIDDEN and event.is_a("m.room.member") and event.state_key is not None:
        users.append(event.state_key)
    return tuple(UserID(user_id) for user_id in dict.fromkeys(users))


def _count(
    event: NewEvent, room: Standing, threads: dict[tuple[int, str], list[int]], number: int, position: int
) -> tuple[int, int]:
    """Advance the running counts of the room's main timeline, or of the event's thread."""
    if event.thread is None:
        room.notify_total += event.notifies
        room.highlight_total += event.highlights
        return room.notify_total, room.highlight_total
    totals = threads.setdefault((number, event.thread), [0, 0, 0])
    totals[0] += event.notifies
    totals[1] += event.highlights
    totals[2] = position
    return totals[0], totals[1]


def _standings_of(loaded: Sequence[Row]) -> dict[int, Standing]:
    return {
        number: Standing(
            row.state_version,
            list(row.extremities),
            row.last_line,
            row.notify_total,
            row.highlight_total,
            row.joined_members,
            row.invited_members,
        )
        for number, row in rooms.from_rows(loaded).items()
    }


async def _held(tx: Tx, changes: Sequence[RoomEvents]) -> set[EventID]:
    wanted = {event.pdu.event_id: event.held_at for change in changes for event in change.new}
    if not wanted:
        return set()
    found = await tx.fetch(
        "select event_id, position, flags from events where event_id = any(%s::text[])", (list(wanted),)
    )
    return {
        EventID(event_id)
        for event_id, position, flags in found
        if not (flags & Flag.OUTLIER and wanted[event_id] == position)
    }


async def _follow_relations(tx: Tx, changes: Sequence[RoomEvents]) -> None:
    """Put what relates to something in a thread into that thread, too ("Threaded read receipts"): one statement, or
    none."""
    parents = {parent for change in changes for event in change.new if (parent := _followed(event)) is not None}
    if not parents:
        return
    rows = await tx.fetch(
        "select room, event_id, thread from events where event_id = any(%s::text[]) and thread is not null",
        (Texts(parents),),
    )
    threads: dict[tuple[int, str], str] = {(room, event_id): thread for room, event_id, thread in rows}
    for change in changes:
        for event in change.new:
            if (parent := _followed(event)) is not None:
                event.thread = threads.get((change.room.number, parent))
            if event.thread is not None:
                threads[change.room.number, event.pdu.event_id] = event.thread


def _followed(event: NewEvent) -> EventID | None:
    """What an event relates to in whose thread it is, if that is in one."""
    relation = event.relation
    if relation is None or relation.type == THREAD or event.pdu.state_key is not None or event.flags & HIDDEN:
        return None
    return relation.parent


async def _load_threads(tx: Tx, rows: Iterable[tuple[int, RoomEvents]]) -> dict[tuple[int, str], list[int]]:
    wanted = [
        (change.room.number, event.thread) for _, change in rows for event in change.new if event.thread is not None
    ]
    if not wanted:
        return {}
    found = await tx.fetch(
        "select room, thread, notify_total, highlight_total, last_position from threads"
        " where (room, thread) in (select * from unnest(%s::int[], %s::text[]))",
        ([room for room, _ in wanted], [thread for _, thread in wanted]),
    )
    return {(room, thread): [notify, highlight, last] for room, thread, notify, highlight, last in found}


def _strings_of(changes: Iterable[RoomEvents]) -> set[str]:
    wanted: set[str] = set()
    for change in changes:
        for event in change.new:
            wanted.add(event.pdu.type)
            wanted.add(event.pdu.sender)
            if event.pdu.state_key is not None:
                wanted.add(event.pdu.state_key)
            if event.relation is not None:
                wanted.add(event.relation.type)
        for write in change.state:
            wanted.add(write.type)
            wanted.add(write.state_key)
    return wanted
