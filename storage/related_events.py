"""What relates to events, for who reads them: what is bundled with them, their children by pages, a room's threads.

As `storage/events.py`, only for `federation.rooms` and `storage`. Of each room only such places count that the reader
may see, as far as `Eyes` can tell.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from federation.protocol.types import EventID
from storage.arrays import Int4, Int8, Texts
from storage.database import Tx
from storage.events import COLUMNS, UNSEEN, StoredEvent, from_row
from storage.relations import EDITS, REFERENCES, REPLIES

MAX_REFERENCES = 100
"""In one chunk of `m.reference`."""
MAX_EDITS_OF_ONE_TIME = 20
"""That are compared by their IDs."""
MAX_KINDS = 100
"""Of relations to one event."""
MAX_PARENTS = 2_000
"""Direct children, the newest ones, whose own children are looked for."""
MAX_DESCENDANTS = 20_000
MAX_THREADS = 10_000
"""Of one room, those with the newest replies, that are put in order."""
DEPTH = 3
"""How far relations of relations are followed."""

Ranges = Sequence[tuple[int, int]]
"""Places in a room, each range without its first and with its last."""


class Eyes(Struct, frozen=True):
    """Who looks."""

    user: int | None
    """Their number; None for who never sent anything."""
    ignored: Collection[int] = ()
    """Whose events do not count for them."""
    ranges: Mapping[int, Ranges] = field(default_factory=dict)
    """By room: where they may see events, in those rooms where that is not everywhere."""
    upto: int | None = None
    """What stands after this place does not count yet."""

    def conditions(self) -> tuple[str, list[Any]]:
        """What a row of `relations` has to fulfil."""
        conditions, values = "", list[Any]()
        if self.ignored:
            conditions += " and relations.sender <> all(%s::int[])"
            values.append(Int4(self.ignored))
        if self.upto is not None:
            conditions += " and relations.place <= %s"
            values.append(self.upto)
        if self.ranges:
            conditions += (
                " and (relations.room <> all(%s::int[]) or exists (select from unnest(%s::int[], %s::bigint[],"
                " %s::bigint[]) as shown(room, low, high) where shown.room = relations.room"
                " and relations.place > low and relations.place <= high))"
            )
            flat = [(room, low, high) for room, ranges in self.ranges.items() for low, high in ranges]
            values += [Int4(self.ranges), *_columns(flat)]
        return conditions, values


def _columns(ranges: Sequence[tuple[int, int, int]]) -> list[Any]:
    return [
        Int4(room for room, _, _ in ranges),
        Int8(low for _, low, _ in ranges),
        Int8(high for _, _, high in ranges),
    ]


# --- what is bundled


async def bundled_kinds(tx: Tx, parents: Collection[StoredEvent]) -> dict[int, set[int]]:
    """By position, in what ways others relate to those of these events to which any do."""
    rows = await tx.fetch(
        "select position, array(select kind from unnest(%s::int[]) as kinds(kind) where exists (select from relations"
        "  where relations.room = given.room and parent = event_id and type = kind)) as found"
        " from unnest(%s::int[], %s::bigint[], %s::text[]) as given(room, position, event_id) where exists"
        f" (select from relations where relations.room = given.room and parent = event_id"
        f"  and type between {REFERENCES:d} and {REPLIES:d})",
        (
            [REFERENCES, EDITS, REPLIES],
            Int4(event.room for event in parents),
            Int8(event.position for event in parents),
            Texts(event.event_id for event in parents),
        ),
    )
    return {position: set(kinds) for position, kinds in rows}


_PARENTS = (
    "(select events.room as in_room, events.position as target, events.event_id as target_id, events.sender as author,"
    "  events.type as kind from unnest(%s::int[], %s::bigint[]) as given(room, position)"
    "  join events on events.room = given.room and events.position = given.position) as targets"
)


def _given(parents: Collection[StoredEvent]) -> list[Any]:
    return [Int4(event.room for event in parents), Int8(event.position for event in parents)]


async def newest_edits(tx: Tx, eyes: Eyes, parents: Collection[StoredEvent]) -> dict[int, StoredEvent]:
    """The edit that counts for each of these events, by its position ("Server-side aggregation of `m.replace`").

    Of many edits of the same time only some are compared by their IDs.
    """
    if not parents:
        return {}
    conditions, values = eyes.conditions()
    rows = await tx.fetch(
        f"select target, edited_ts, {COLUMNS} from {_PARENTS} cross join lateral ("
        "  select coalesce(relations.position, place) as at, edited_ts from relations where room = in_room"
        f"  and parent = target_id and type = {EDITS:d} and relations.sender = author"
        "  and event_type = kind and edited_ts is not null"
        f"  {conditions} order by edited_ts desc limit {MAX_EDITS_OF_ONE_TIME:d}) as found"
        " join events on events.room = in_room and events.position = at",
        (*_given(parents), *values),
    )
    best: dict[int, tuple[int, EventID, StoredEvent]] = {}
    for position, edited_ts, *row in rows:
        event = from_row(tuple(row))
        if position not in best or (edited_ts, event.event_id) > best[position][:2]:
            best[position] = (edited_ts, event.event_id, event)
    return {position: event for position, (_, _, event) in best.items()}


class Thread(Struct, frozen=True):
    """What there is to tell of a thread."""

    latest: StoredEvent
    count: int
    is_participant: bool
    """Whether the reader has sent one of the replies."""


async def threads_from(tx: Tx, eyes: Eyes, roots: Collection[StoredEvent]) -> dict[int, Thread]:
    """The threads that start at these events, by their positions; none where the reader sees no reply."""
    if not roots:
        return {}
    conditions, values = eyes.conditions()
    replies = f"from relations where room = in_room and parent = target_id and type = {REPLIES:d}"
    rows = await tx.fetch(
        f"select target, (select count(*) {replies} {conditions}), exists (select {replies} and relations.sender = %s),"
        f" {COLUMNS} from {_PARENTS} cross join lateral (select coalesce(relations.position, place) as at {replies}"
        f"  {conditions} order by place desc limit 1) as newest"
        " join events on events.room = in_room and events.position = at",
        (*values, eyes.user or 0, *_given(roots), *values),
    )
    return {row[0]: Thread(from_row(row[3:]), row[1], row[2]) for row in rows}


async def references(tx: Tx, eyes: Eyes, parents: Collection[StoredEvent]) -> dict[int, list[EventID]]:
    """The events that refer to these, by their positions: the first of them."""
    if not parents:
        return {}
    conditions, values = eyes.conditions()
    rows = await tx.fetch(
        f"select target, events.event_id from {_PARENTS} cross join lateral ("
        "  select coalesce(relations.position, place) as at, place as standing from relations where room = in_room"
        f"  and parent = target_id and type = {REFERENCES:d} {conditions}"
        f"  order by place limit {MAX_REFERENCES:d}) as found"
        f" join events on events.room = in_room and events.position = at and events.flags & {UNSEEN:d} = 0"
        " order by standing",
        (*_given(parents), *values),
    )
    found: dict[int, list[EventID]] = {}
    for position, event_id in rows:
        found.setdefault(position, []).append(EventID(event_id))
    return found


# --- children


class Children(Struct, frozen=True, kw_only=True):
    """Which events are asked for that relate to one."""

    room: int
    parent: EventID
    type: int | None = None
    event_type: int | None = None
    ranges: Ranges
    """Where they stand."""
    seen: Ranges
    """Where the reader may see events: what stands elsewhere leads nowhere."""
    newest_first: bool
    limit: int


def _filter(wanted: Children, *, as_step: bool) -> tuple[str, list[Any]]:
    conditions, values = "", list[Any]()
    if as_step and wanted.type is not None:
        conditions += " and relations.type = %s"
        values.append(wanted.type)
    if wanted.event_type is not None:
        conditions += " and relations.event_type = %s"
        values.append(wanted.event_type)
    if as_step:
        conditions += (
            " and exists (select from unnest(%s::bigint[], %s::bigint[]) as seen(low, high)"
            " where relations.place > low and relations.place <= high)"
        )
        values += _bounds(wanted.seen)
    return conditions, values


def _kinds(wanted: Children) -> tuple[str, list[Any]]:
    """In which ways others relate to the parent, as a table: one look into the index each, however many do."""
    if wanted.type is not None:
        return "select %s::int", [wanted.type]
    first = "select type from relations where room = %s and parent = %s"
    kinds = (
        f"(({first} order by type limit 1) union all select ({first} and relations.type > kinds.type"
        " order by relations.type limit 1) from kinds where kinds.type is not null)"
    )
    return kinds, [wanted.room, wanted.parent] * 2


async def children(tx: Tx, wanted: Children) -> list[StoredEvent]:
    """Events that relate to the parent, those first that are asked for first, hidden ones left out."""
    order = "desc" if wanted.newest_first else "asc"
    conditions, values = _filter(wanted, as_step=False)
    kinds, given = _kinds(wanted)
    rows = await tx.fetch(
        f"with recursive kinds(type) as ({kinds}), found as (select nearest.* from"
        f"  (select type from kinds where type is not null limit {MAX_KINDS:d}) as kinds,"
        "  unnest(%s::bigint[], %s::bigint[]) as shown(low, high), lateral ("
        "   select place as standing, coalesce(relations.position, place) as at from relations where room = %s"
        f"   and parent = %s and relations.type = kinds.type and place > low and place <= high {conditions}"
        f"   order by place {order} limit %s) as nearest order by standing {order} limit %s)"
        f" select {COLUMNS} from found join events on events.room = %s and events.position = at"
        f" where flags & {UNSEEN:d} = 0 order by standing {order}",
        (
            *given,
            *_bounds(wanted.ranges),
            wanted.room,
            wanted.parent,
            *values,
            wanted.limit,
            wanted.limit,
            wanted.room,
        ),
    )
    return [from_row(row) for row in rows]


async def descendants(tx: Tx, wanted: Children) -> list[StoredEvent]:
    """Events that relate to what relates to the parent, in as many steps as are followed; else as `children`.

    All of them have to fulfil what is asked for, those in between included. Where there are very many of them, what
    relates to the oldest is left out.
    """
    order = "desc" if wanted.newest_first else "asc"
    conditions, values = _filter(wanted, as_step=True)
    kinds, given = _kinds(wanted)
    rows = await tx.fetch(
        f"with recursive kinds(type) as ({kinds}), direct as (select newest.* from"
        f"  (select type from kinds where type is not null limit {MAX_KINDS:d}) as kinds, lateral ("
        "   select place, coalesce(relations.position, place) as at from relations where room = %s and parent = %s"
        f"   and relations.type = kinds.type {conditions} order by place desc limit {MAX_PARENTS:d}) as newest"
        f"  order by place desc limit {MAX_PARENTS:d}),"
        " closure(depth, id, standing, at) as ("
        "  select 1, event_id, direct.place, at from direct join events on events.room = %s and events.position = at"
        "  union all select depth + 1, event_id, further.place, further.at from closure cross join lateral ("
        "   select place, coalesce(relations.position, place) as at from relations where room = %s"
        # The limit has each be looked up by its parent; without it, the whole room's relations may be read.
        f"   and parent = closure.id {conditions} order by type, place limit {MAX_PARENTS:d}) as further"
        "  join events on events.room = %s and events.position = further.at"
        f"  where depth < {DEPTH:d} and closure.id <> %s),"
        f" found as (select distinct at, standing from"
        f"  (select depth, standing, at from closure limit {MAX_DESCENDANTS:d}) as closure"
        "  where depth > 1 and exists (select from unnest(%s::bigint[], %s::bigint[]) as shown(low, high)"
        f"  where standing > low and standing <= high) order by standing {order} limit %s)"
        f" select {COLUMNS} from found join events on events.room = %s and events.position = at"
        f" where flags & {UNSEEN:d} = 0 order by standing {order}",
        (
            *given,
            wanted.room,
            wanted.parent,
            *values,
            wanted.room,
            wanted.room,
            *values,
            wanted.room,
            wanted.parent,
            *_bounds(wanted.ranges),
            wanted.limit,
            wanted.room,
        ),
    )
    return [from_row(row) for row in rows]


def _bounds(ranges: Ranges) -> tuple[Int8, Int8]:
    return Int8(low for low, _ in ranges), Int8(high for _, high in ranges)


class Redactable(Struct, frozen=True, kw_only=True):
    """Which events are to be redacted with the one that they relate to (MSC3912)."""

    room: int
    parent: EventID
    types: Collection[str] | None
    """How they relate to it; None: in whatever way."""
    sender: int | None
    """Only what this user sent; None: anybody."""
    not_types: Collection[str]
    """Types of events that are never redacted."""


async def redactable(tx: Tx, wanted: Redactable, *, after: int, limit: int) -> list[tuple[EventID, int]]:
    """Such events, with their places, in the order of these; edits only where they are valid."""
    conditions, values = "", list[Any]()
    if wanted.types is not None:
        conditions += " and relations.type in (select id from strings where value = any(%s::text[]))"
        values.append(Texts(wanted.types))
    if wanted.sender is not None:
        conditions += " and relations.sender = %s"
        values.append(wanted.sender)
    rows = await tx.fetch(
        "select events.event_id, relations.place from events as target join relations on relations.room = target.room"
        f" and parent = target.event_id {conditions} and (relations.type <> {EDITS:d} or (edited_ts is not null"
        "  and relations.sender = target.sender and relations.event_type = target.type))"
        " join events on events.room = target.room and events.position = coalesce(relations.position, relations.place)"
        " where target.event_id = %s and target.room = %s and relations.place > %s"
        " and events.type not in (select id from strings where value = any(%s::text[]))"
        " order by relations.place limit %s",
        (*values, wanted.parent, wanted.room, after, Texts(wanted.not_types), limit),
    )
    return [(EventID(event_id), place) for event_id, place in rows]


# --- threads


class Threads(Struct, frozen=True, kw_only=True):
    """Which threads of a room are asked for."""

    room: int
    before: int
    """Those whose newest reply stands before this place."""
    limit: int
    participated: bool = False
    """Those alone whose root or any reply the reader has sent."""


async def list_threads(tx: Tx, eyes: Eyes, wanted: Threads) -> list[tuple[EventID, int]]:
    """The roots, here or not, with the places of their newest replies that the reader sees, the newest first."""
    conditions, values = eyes.conditions()
    participated, own = "", list[Any]()
    if wanted.participated:
        participated = (
            " and (exists (select from relations where relations.room = %s and parent = root"
            f" and relations.type = {REPLIES:d} and relations.sender = %s)"
            " or exists (select from events where events.event_id = root and events.room = %s and events.sender = %s))"
        )
        own = [wanted.room, eyes.user or 0] * 2
    rows = await tx.fetch(
        "select root, newest from (select thread as root from threads where room = %s"
        f"  order by last_position desc limit {MAX_THREADS:d}) as given cross join lateral ("
        "  select place as newest from relations where room = %s and parent = root"
        f"  and type = {REPLIES:d} {conditions} order by place desc limit 1) as replies"
        f" where newest < %s {participated} order by newest desc limit %s",
        (wanted.room, wanted.room, *values, wanted.before, *own, wanted.limit),
    )
    return [(EventID(root), newest) for root, newest in rows]


async def roots(tx: Tx, room: int, event_ids: Collection[EventID]) -> list[StoredEvent]:
    """Those of these events that are here and may be shown, in their order."""
    rows = await tx.fetch(
        f"select {COLUMNS} from events where event_id = any(%s::text[]) and room = %s and flags & {UNSEEN:d} = 0",
        (Texts(event_ids), room),
    )
    found = {row[2]: from_row(row) for row in rows}
    return [found[event_id] for event_id in event_ids if event_id in found]
