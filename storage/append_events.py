"""The log change that appends room events: admitted under the log's lock, inserted in bulk, read back by others.

What an append expects is checked here (`DESIGN.md` section 3): the room's version when its events were authorised.
Everything else about an event was decided before by `federation/rooms`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from federation.protocol.errors import MatrixError
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import EventID, ServerName, UserID
from storage import events, rooms, strings
from storage.arrays import Byteas, Int2, Int4, Int8, Texts
from storage.database import Row, Tx
from storage.event_bytes import pack
from storage.events import (
    COLUMNS,
    HIDDEN,
    Flag,
    NewEvent,
    NewLine,
    StateWrite,
    StoredEvent,
    TrunkChange,
)
from storage.log import Conflict
from storage.memberships import Membership
from storage.rooms import Room
from storage.unread import PersonalCount


class Head(Protocol):
    """The writer's picture of a room. Once something built on it was refused, all that stands on it falls."""

    is_broken: bool


class DuplicateEvent(Conflict):
    """The event is already stored."""


@dataclass(slots=True)
class _Counters:
    """A room's row, as it will be once the batch is committed."""

    state_version: int
    extremities: list[EventID]
    last_line: int
    notify_total: int
    highlight_total: int
    joined: int
    invited: int
    memberships: dict[str, Membership | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class RoomEvents:
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
    concerned: tuple[UserID, ...] = ()
    """Users who hear of it although they are not in the room: invited, kicked, banned."""

    stored: list[StoredEvent] = field(default_factory=list)
    """The events with their places; filled when they are written, or read."""
    trunk: list[TrunkChange] = field(default_factory=list)
    """What the room's current state changed in; filled likewise."""
    personal: list[tuple[int, PersonalCount]] = field(default_factory=list)
    """What counts for single users, with the positions of the events; filled likewise."""
    numbers: dict[str, int] = field(default_factory=dict)
    """The numbers of the strings used; final once the change is committed."""
    _counters: _Counters | None = None

    kind: ClassVar[int] = 1 << 8

    @property
    def width(self) -> int:
        """A position an event."""
        return len(self.new) or len(self.stored)

    @property
    def rooms(self) -> Collection[int]:
        """The room."""
        return (self.room.number,)

    @property
    def users(self) -> Collection[UserID]:
        """Those who are concerned without being in the room."""
        return self.concerned

    @property
    def visible(self) -> list[StoredEvent]:
        """Those of the events that clients may be shown at all."""
        return [event for event in self.stored if not event.flags & HIDDEN]

    @classmethod
    def preload(cls, changes: Sequence[Self]) -> str:
        """Where the rooms stand."""
        return rooms.rows_query({change.room.number for change in changes})

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Row] | None
    ) -> Sequence[MatrixError | None]:
        """Check expectations in order, each against the room as those before it leave it."""
        if loaded is None:
            (loaded,) = await tx.run(cls.preload([change for _, change in rows]))
        counters = _counters_of(loaded)
        held = await _held(tx, [change for _, change in rows if change.may_be_duplicate])
        threads = await _load_threads(tx, rows)
        answers: list[MatrixError | None] = []
        for position, change in rows:
            room = counters[change.room.number]
            error = change._check(room, held)
            if error is not None:
                if change.head is not None:
                    change.head.is_broken = True
            else:
                change._place(position, room, threads)
                held.update(event.pdu.event_id for event in change.new)
            answers.append(error)
        return answers

    def _check(self, room: _Counters, held: set[EventID]) -> MatrixError | None:
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

    def _place(self, first: int, room: _Counters, threads: dict[tuple[int, str], list[int]]) -> None:
        """Give each event its position and running counts; move the room's row along."""
        self._counters = room
        self.stored, self.personal = [], []
        for position, event in enumerate(self.new, first):
            pdu = event.pdu
            self.personal.extend((position, count) for count in event.personal)
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
                    _json=pdu.json,
                )
            )
        room.state_version = max(room.state_version, self.new_version)
        for line in self.lines:
            room.last_line = max(room.last_line, line.line)
        positions = {event.event_id: event.position for event in self.stored}
        for write in self.state:
            if write.event_id in positions:  # again when a batch is split: positions are new then
                write.position = positions[write.event_id]
        self.trunk = [
            TrunkChange(
                type=write.type,
                state_key=write.state_key,
                event=write.position,
                since=write.since,
                membership=write.membership,
            )
            for write in self.state
            if write.line == 0
        ]

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """Write all that the admitted changes hold: a fixed number of statements."""
        changes = [change for _, change in rows]
        numbers = await strings.intern(tx, _strings_of(changes))
        for change in changes:
            change.numbers = numbers
        state = [(change, write) for change in changes for write in change.state]
        if state:
            await _write_state(tx, state, numbers)
        await _append(tx, changes, numbers)
        await _insert_relations(tx, changes, numbers)
        await _insert_extras(tx, changes)

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Events that other processes appended, one change an event, with what they changed in current states."""
        found = await tx.fetch(
            f"select {COLUMNS} from events where position > %s and position <= %s order by position", (after, upto)
        )
        if not found:
            return []
        stored = [events.from_row(row) for row in found]
        known = await rooms.get_many(tx, {event.room for event in stored})
        trunk = await _trunk_within(tx, await _versions_within(tx, stored, after))
        personal = await _personal_in(tx, after, upto)
        answer: list[tuple[int, Self]] = []
        for event in stored:
            changed = trunk.pop((event.room, event.trunk_version), [])
            change = cls(
                room=known[event.room],
                new=[],
                expected_version=None,
                new_version=event.trunk_version,
                stored=[event],
                trunk=changed,
                concerned=_concerned(event, changed),
                personal=[(event.position, count) for count in personal.get(event.position, ())],
            )
            answer.append((event.position, change))
        return answer


def _concerned(event: StoredEvent, trunk: Sequence[TrunkChange]) -> tuple[UserID, ...]:
    """Whose membership an event, or what it changed in the room's state, is about."""
    users = [change.state_key for change in trunk if change.type == "m.room.member"]
    if event.type == "m.room.member" and event.state_key is not None and not event.flags & HIDDEN:
        users.append(event.state_key)
    return tuple(UserID(user_id) for user_id in dict.fromkeys(users))


def _count(
    event: NewEvent, room: _Counters, threads: dict[tuple[int, str], list[int]], number: int, position: int
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


def _counters_of(loaded: Sequence[Row]) -> dict[int, _Counters]:
    return {
        number: _Counters(
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
    wanted = [event.pdu.event_id for change in changes for event in change.new]
    if not wanted:
        return set()
    found = await tx.fetch("select event_id from events where event_id = any(%s::text[])", (wanted,))
    return {EventID(event_id) for (event_id,) in found}


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


_APPEND = (
    "with appended as ("
    " insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender, state_key,"
    " after_line, after_version, notify_total, highlight_total, device, flags, event_id, thread, txn_id, json)"
    " select * from unnest(%s::bigint[], %s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::smallint[], %s::text[],"
    " %s::text[], %s::text[], %s::bytea[])),"
    " read as ("
    " insert into read_marks (position, room, notify_total, highlight_total, user_id, thread)"
    " select * from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[])"
    " on conflict (user_id, room, thread) do update set position = excluded.position,"
    " notify_total = excluded.notify_total, highlight_total = excluded.highlight_total)"
    " update rooms set state_version = given.state_version, extremities = string_to_array(given.extremities, ' '),"
    " last_line = given.last_line, notify_total = given.notify_total, highlight_total = given.highlight_total,"
    " joined_members = given.joined, invited_members = given.invited"
    " from unnest(%s::int[], %s::int[], %s::text[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[])"
    " as given(room, state_version, extremities, last_line, notify_total, highlight_total, joined, invited)"
    " where rooms.room = given.room"
)
"""Events, what their senders have read by sending them, and where their rooms stand: one round trip."""


async def _append(tx: Tx, changes: Sequence[RoomEvents], numbers: dict[str, int]) -> None:
    rows = [
        _event_row(event, stored, numbers)
        for change in changes
        for event, stored in zip(change.new, change.stored, strict=True)
    ]
    marks = {
        (event.pdu.sender, stored.room, stored.thread or "main"): stored
        for change in changes
        for event, stored in zip(change.new, change.stored, strict=True)
        if event.is_local
    }
    final = {change.room.number: change._counters for change in changes if change._counters is not None}
    await tx.execute(
        _APPEND,
        (
            *(wrap(column) for wrap, column in zip(_EVENT_COLUMNS, zip(*rows, strict=True), strict=True)),
            Int8(stored.position for stored in marks.values()),
            Int4(stored.room for stored in marks.values()),
            Int4(stored.notify_total for stored in marks.values()),
            Int4(stored.highlight_total for stored in marks.values()),
            Texts(user_id for user_id, _, _ in marks),
            Texts(thread for _, _, thread in marks),
            Int4(final),
            Int4(room.state_version for room in final.values()),
            Texts(" ".join(room.extremities) for room in final.values()),
            Int4(room.last_line for room in final.values()),
            Int4(room.notify_total for room in final.values()),
            Int4(room.highlight_total for room in final.values()),
            Int4(room.joined for room in final.values()),
            Int4(room.invited for room in final.values()),
        ),
    )


_EVENT_COLUMNS = (*[Int8] * 2, *[Int4] * 12, Int2, *[Texts] * 3, Byteas)
"""The types of `_event_row`, in its order."""


def _event_row(event: NewEvent, stored: StoredEvent, numbers: dict[str, int]) -> tuple[Any, ...]:
    pdu = event.pdu
    return (
        stored.position,
        pdu.origin_server_ts,
        stored.room,
        stored.line,
        stored.version,
        stored.trunk_version,
        numbers[pdu.type],
        numbers[pdu.sender],
        None if pdu.state_key is None else numbers[pdu.state_key],
        stored.after_line,
        stored.after_version,
        stored.notify_total,
        stored.highlight_total,
        stored.device,
        stored.flags,
        stored.event_id,
        stored.thread,
        stored.txn_id,
        pack(stored.canonical),
    )


async def _insert_relations(tx: Tx, changes: Sequence[RoomEvents], numbers: dict[str, int]) -> None:
    found = [
        (stored, event.relation, numbers[event.pdu.sender])
        for change in changes
        for event, stored in zip(change.new, change.stored, strict=True)
        if event.relation is not None
    ]
    if found:
        await tx.execute(
            "insert into relations (position, room, type, sender, parent, key)"
            " select * from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[])",
            (
                [stored.position for stored, _, _ in found],
                [stored.room for stored, _, _ in found],
                [numbers[relation.type] for _, relation, _ in found],
                [sender for _, _, sender in found],
                [relation.parent for _, relation, _ in found],
                [relation.key for _, relation, _ in found],
            ),
        )


_KEYS = "unnest(%s::int[], %s::int[], %s::int[], %s::int[]) as given(room, type, state_key, since)"
_WRITE_TRUNK = (
    # The predicate of `room_state_current_key` word for word: a key's history must not be looked through.
    "with closed as ("
    f" update room_state set until_version = given.since from {_KEYS} where room_state.room = given.room"
    " and room_state.type = given.type and room_state.state_key = given.state_key"
    " and room_state.line = 0 and room_state.until_version is null"
    " returning room_state.room, room_state.type, room_state.state_key, membership),"
    # What is replaced is closed before its successor comes: the insert waits for the count.
    " opened as ("
    " insert into room_state (event, room, line, since_version, type, state_key, until_version, membership)"
    " select given.* from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::smallint[]) as given where (select count(*) from closed) >= 0)"
    " select room, type, state_key, membership from closed where membership is not null"
)
_WRITE_BRANCH = (
    "with closed as ("
    " update room_state set until_version = given.since from"
    " unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[]) as given(room, type, state_key, since, line)"
    " where room_state.room = given.room and room_state.type = given.type and room_state.state_key = given.state_key"
    " and room_state.line = given.line and room_state.until_version is null returning 1)"
    " insert into room_state (event, room, line, since_version, type, state_key, until_version, membership)"
    " select given.* from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::smallint[]) as given where (select count(*) from closed) >= 0"
)
_STATE_COLUMNS = (Int8, Int4, Int4, Int4, Int4, Int4, Int4, Int2)


class _Writes:
    """Entries of the trunk, or of branches, in the order in which they follow each other."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.firsts: dict[tuple[int, int, int, int], int] = {}
        """By room, type, state key and line: the version that closes what the database has."""
        self._latest: dict[tuple[int, int, int, int], list[Any]] = {}

    def add(self, room: int, write: StateWrite, numbers: dict[str, int]) -> tuple[int, int, int, int]:
        key = (room, numbers[write.type], numbers[write.state_key], write.line)
        row: list[Any] = [write.position, room, write.line, write.since, key[1], key[2], None, write.membership]
        if key in self._latest:
            self._latest[key][6] = write.since
        else:
            self.firsts[key] = write.since
        self._latest[key] = row
        self.rows.append(row)
        return key

    def columns(self, *, with_line: bool) -> list[Any]:
        keys = [Int4(column) for column in zip(*self.firsts, strict=True)]
        lines = [keys[3]] if with_line else []
        rows = [wrap(column) for wrap, column in zip(_STATE_COLUMNS, zip(*self.rows, strict=True), strict=True)]
        return [*keys[:3], Int4(self.firsts.values()), *lines, *rows]


async def _write_state(tx: Tx, state: Sequence[tuple[RoomEvents, StateWrite]], numbers: dict[str, int]) -> None:
    """Close what the writes replace and insert them; count who joined and who was invited."""
    trunk, branches = _Writes(), _Writes()
    members: dict[tuple[int, int, int, int], tuple[RoomEvents, Membership | None]] = {}
    for change, write in state:
        key = (trunk if write.line == 0 else branches).add(change.room.number, write, numbers)
        if write.line == 0 and write.type == "m.room.member":
            members[key] = (change, write.membership)
    if trunk.rows:
        closed = await tx.fetch(_WRITE_TRUNK, trunk.columns(with_line=False))
        before = {(row[0], row[1], row[2], 0): row[3] for row in closed}
        for key, (change, membership) in members.items():
            if change._counters is not None:
                was = before.get(key)
                change._counters.joined += (membership is Membership.JOIN) - (was == Membership.JOIN)
                change._counters.invited += (membership is Membership.INVITE) - (was == Membership.INVITE)
    if branches.rows:
        await tx.execute(_WRITE_BRANCH, branches.columns(with_line=True))
    lines = [(change.room.number, line) for change, line in _lines(state)]
    if lines:
        await tx.execute(
            "insert into room_lines (room, line, parent_line, parent_version, version)"
            " select * from unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[])"
            " on conflict (room, line) do update set version = excluded.version",
            (
                [room for room, _ in lines],
                [line.line for _, line in lines],
                [line.parent_line for _, line in lines],
                [line.parent_version for _, line in lines],
                [line.version for _, line in lines],
            ),
        )


def _lines(state: Sequence[tuple[RoomEvents, StateWrite]]) -> list[tuple[RoomEvents, NewLine]]:
    changes = {id(change): change for change, _ in state}
    return [(change, line) for change in changes.values() for line in change.lines]


async def _insert_extras(tx: Tx, changes: Sequence[RoomEvents]) -> None:
    """What only some events bring: threads, personal counts, redactions, gaps."""
    threads: dict[tuple[int, str], StoredEvent] = {}
    personal: list[tuple[StoredEvent, PersonalCount]] = []
    redactions: list[tuple[StoredEvent, EventID, ServerName | None]] = []
    missing: list[tuple[StoredEvent, EventID, int]] = []
    arrived: list[StoredEvent] = []
    for change in changes:
        for event, stored in zip(change.new, change.stored, strict=True):
            if stored.thread is not None:
                threads[stored.room, stored.thread] = stored
            personal.extend((stored, count) for count in event.personal)
            if event.redacts is not None:
                redactions.append((stored, event.redacts, event.redacts_only_of))
            missing.extend((stored, event_id, event.missing_for or stored.position) for event_id in event.missing)
            if change.may_be_duplicate:
                arrived.append(stored)
    if threads:
        await tx.execute(
            "insert into threads (room, thread, last_position, notify_total, highlight_total)"
            " select * from unnest(%s::int[], %s::text[], %s::bigint[], %s::int[], %s::int[])"
            " on conflict (room, thread) do update set last_position = excluded.last_position,"
            " notify_total = excluded.notify_total, highlight_total = excluded.highlight_total",
            (
                [room for room, _ in threads],
                [thread for _, thread in threads],
                [stored.position for stored in threads.values()],
                [stored.notify_total for stored in threads.values()],
                [stored.highlight_total for stored in threads.values()],
            ),
        )
    if personal:
        await tx.execute(
            "insert into notifications (position, room, user_id, notify, highlight, thread, actions)"
            " select * from unnest(%s::bigint[], %s::int[], %s::text[], %s::smallint[], %s::smallint[], %s::text[],"
            " %s::text[])",
            (
                [stored.position for stored, _ in personal],
                [stored.room for stored, _ in personal],
                [count.user_id for _, count in personal],
                [count.notify for _, count in personal],
                [count.highlight for _, count in personal],
                [stored.thread or "main" for stored, _ in personal],
                [count.actions for _, count in personal],
            ),
        )
    if redactions:
        await _apply_redactions(tx, redactions)
    if missing or arrived:
        await _insert_missing(tx, missing)
        await _note_arrivals(tx, arrived)


async def _insert_missing(tx: Tx, missing: Sequence[tuple[StoredEvent, EventID, int]]) -> None:
    if missing:
        await tx.execute(
            "insert into missing_events (room, event_id, position)"
            " select * from unnest(%s::int[], %s::text[], %s::bigint[]) as given(room, event_id, position)"
            " where not exists (select from events where events.event_id = given.event_id and flags & %s = 0)"
            " on conflict do nothing",
            (
                [stored.room for stored, _, _ in missing],
                [event_id for _, event_id, _ in missing],
                [position for _, _, position in missing],
                int(Flag.OUTLIER),
            ),
        )


async def _apply_redactions(tx: Tx, redactions: Sequence[tuple[StoredEvent, EventID, ServerName | None]]) -> None:
    """Apply redactions to what is here, and keep the rest until their targets come."""
    params = (
        [stored.room for stored, _, _ in redactions],
        [event_id for _, event_id, _ in redactions],
        [stored.position for stored, _, _ in redactions],
        [server for _, _, server in redactions],
    )
    await tx.execute(
        "with given as (select * from unnest(%s::int[], %s::text[], %s::bigint[], %s::text[])"
        "  as given(room, event_id, position, only_of)),"
        " done as (update events set redacted_by = coalesce(redacted_by, given.position) from given, strings"
        "  where events.event_id = given.event_id and events.room = given.room and strings.id = events.sender"
        "  and (only_of is null or only_of = substr(strings.value, strpos(strings.value, ':') + 1)))"
        " insert into pending_redactions (room, event_id, position, only_of)"
        " select room, event_id, position, only_of from given"
        " where not exists (select from events where events.event_id = given.event_id) on conflict do nothing",
        params,
    )


async def _note_arrivals(tx: Tx, arrived: Sequence[StoredEvent]) -> None:
    """Events that others referred to before they came are no gaps any longer; redactions that waited apply."""
    if not arrived:
        return
    ids = [stored.event_id for stored in arrived]
    await tx.execute(
        "delete from missing_events where (room, event_id) in (select * from unnest(%s::int[], %s::text[]))",
        ([stored.room for stored in arrived], ids),
    )
    pending = await tx.fetch(
        "delete from pending_redactions where (room, event_id) in (select * from unnest(%s::int[], %s::text[]))"
        " returning event_id, position, only_of",
        ([stored.room for stored in arrived], ids),
    )
    senders = {stored.event_id: server_name_of(stored.sender) for stored in arrived}
    applied = [
        (event_id, position)
        for event_id, position, only_of in sorted(pending, key=lambda row: row[1], reverse=True)
        if only_of is None or only_of == senders[event_id]
    ]
    if applied:
        await tx.execute(
            "update events set redacted_by = given.position from unnest(%s::text[], %s::bigint[])"
            " as given(event_id, position) where events.event_id = given.event_id and redacted_by is null",
            # The first that came, should there be several: later entries of a dict replace earlier ones.
            (list(dict(applied)), list(dict(applied).values())),
        )


async def _personal_in(tx: Tx, after: int, upto: int) -> dict[int, list[PersonalCount]]:
    rows = await tx.fetch(
        "select position, user_id, notify, highlight from notifications where position > %s and position <= %s",
        (after, upto),
    )
    found: dict[int, list[PersonalCount]] = {}
    for position, user_id, notify, highlight in rows:
        count = PersonalCount(user_id=UserID(user_id), notify=notify, highlight=highlight)
        found.setdefault(position, []).append(count)
    return found


async def _versions_within(tx: Tx, stored: Sequence[StoredEvent], after: int) -> dict[int, tuple[int, int]]:
    """For each room, the versions of its trunk before and after these events."""
    spans: dict[int, tuple[int, int]] = {}
    unknown: set[int] = set()
    for event in stored:
        low, _ = spans.get(event.room, (event.version, 0))
        if event.room not in spans and not (event.line == 0 and event.version >= event.trunk_version - 1):
            unknown.add(event.room)  # it stands beside the trunk, and does not tell
        spans[event.room] = (low, event.trunk_version)
    for room, version in (await events.trunk_versions_at(tx, unknown, after) if unknown else {}).items():
        spans[room] = (version, spans[room][1])
    return {room: span for room, span in spans.items() if span[0] < span[1]}


async def _trunk_within(tx: Tx, spans: dict[int, tuple[int, int]]) -> dict[tuple[int, int], list[TrunkChange]]:
    """What each version of these rooms changed, for those after the first up to the second of their span."""
    if not spans:
        return {}
    found = await tx.fetch(
        "select room_state.room, type, state_key, event, since_version, membership from room_state"
        " join unnest(%s::int[], %s::int[], %s::int[]) as given(room, low, high) on room_state.room = given.room"
        " where line = 0 and since_version > low and since_version <= high",
        (list(spans), [span[0] for span in spans.values()], [span[1] for span in spans.values()]),
    )
    texts = await strings.values_of(tx, {number for row in found for number in (row[1], row[2])})
    answer: dict[tuple[int, int], list[TrunkChange]] = {}
    for room, type_, state_key, event, since, membership in found:
        answer.setdefault((room, since), []).append(
            TrunkChange(
                type=texts[type_],
                state_key=texts[state_key],
                event=event,
                since=since,
                membership=None if membership is None else Membership(membership),
            )
        )
    return answer
