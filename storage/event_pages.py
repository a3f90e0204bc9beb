"""Bounded parts of rooms' histories: what is new, what a filter wants, what is near a time.

As `storage/events.py`, only for `federation.rooms` and `storage`: every reader goes through the visibility gate.
"""

from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct

from federation.protocol.types import EventID
from storage.database import Tx
from storage.events import COLUMNS, UNSEEN, Flag, StoredEvent, from_row


class Scan(Struct, frozen=True, kw_only=True):
    """What part of a room's history to look through, and for what."""

    ranges: Sequence[tuple[int, int]]
    """Positions, each range without its first and with its last."""
    newest_first: bool
    budget: int
    """How many events to look at."""
    limit: int
    """How many to return."""
    types: Collection[int] | None = None
    not_types: Collection[int] = ()
    senders: Collection[int] | None = None
    not_senders: Collection[int] = ()
    related_by_senders: Collection[int] | None = None
    """Only events that one of these relates to."""
    related_by_types: Collection[int] | None = None
    """Only events that others relate to in one of these ways."""


class Scanned(Struct, frozen=True):
    """What a scan found."""

    events: Sequence[StoredEvent]
    last: int | None
    """Where the scan stopped: the last event that it looked at. None: it looked at everything there is."""


_PLACES = (
    # Those of fetched history stand where they belong, and outliers nowhere.
    "select * from ((select position as at, position, type, sender, flags, event_id from events where room = %s"
    f"  and position > low and position <= high and place is null and flags & {int(Flag.OUTLIER):d} = 0"
    "  order by position {order} limit %s)"
    " union all (select place, position, type, sender, flags, event_id from events where room = %s and place > low"
    "  and place <= high order by place {order} limit %s)) as places order by at {order} limit %s"
)
_FIRST = -(1 << 62)
_LAST = 2**63 - 1


async def scan(tx: Tx, room: int, wanted: Scan) -> Scanned:
    """Look through a bounded number of events for those that match; hidden ones are looked at and left out."""
    order = "desc" if wanted.newest_first else "asc"
    edge = "min" if wanted.newest_first else "max"
    conditions, values = _matching(room, wanted)
    rows = await tx.fetch(
        "with scanned as materialized (select found.* from unnest(%s::bigint[], %s::bigint[]) as given(low, high),"
        f"  lateral ({_PLACES.format(order=order)}) as found order by at {order} limit %s)"
        f" select bounds.edge, bounds.looked_at, {COLUMNS}"
        f" from (select {edge}(at) as edge, count(*) as looked_at from scanned) as bounds"
        f" left join (events join (select at, position from scanned where flags & {UNSEEN:d} = 0"
        f"  {''.join(f' and {condition}' for condition in conditions)} order by at {order} limit %s) as matching"
        "  on events.position = matching.position and events.room = %s) on true"
        f" order by matching.at {order}",
        (
            [low for low, _ in wanted.ranges],
            [high for _, high in wanted.ranges],
            *(room, wanted.budget) * 2,
            wanted.budget,
            wanted.budget,
            *values,
            wanted.limit,
            room,
        ),
    )
    found = [from_row(row[2:]) for row in rows if row[2] is not None]
    if len(found) == wanted.limit:
        return Scanned(found, found[-1].place if found else None)
    return Scanned(found, rows[0][0] if rows and rows[0][1] >= wanted.budget else None)


def _matching(room: int, wanted: Scan) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for column, included, excluded in (
        ("type", wanted.types, wanted.not_types),
        ("sender", wanted.senders, wanted.not_senders),
    ):
        if included is not None:
            conditions.append(f"{column} = any(%s::int[])")
            values.append(list(included))
        if excluded:
            conditions.append(f"{column} <> all(%s::int[])")
            values.append(list(excluded))
    if wanted.related_by_senders is not None or wanted.related_by_types is not None:
        relation = "relations.room = %s and parent = scanned.event_id"
        values.append(room)
        for column, numbers in (("sender", wanted.related_by_senders), ("type", wanted.related_by_types)):
            if numbers is not None:
                relation += f" and relations.{column} = any(%s::int[])"
                values.append(list(numbers))
        conditions.append(f"exists (select from relations where {relation})")
    return conditions, values


async def preceding(tx: Tx, room: int, place: int, limit: int) -> list[StoredEvent]:
    """The events that stand at this place and before it, the nearest first, hidden ones included."""
    rows = await tx.fetch(
        f"select {COLUMNS} from unnest(%s::bigint[], %s::bigint[]) as given(low, high),"
        f" lateral (select at, position as standing from ({_PLACES.format(order='desc')}) as near) as found"
        " join events on events.room = %s and events.position = found.standing order by at desc",
        ([_FIRST], [place], *(room, limit) * 2, limit, room),
    )
    return [from_row(row) for row in rows]


async def newest_per_room(
    tx: Tx, rooms: Collection[int], *, after: int, upto: int, limit: int
) -> tuple[dict[int, list[StoredEvent]], set[int]]:
    """For each room its newest events in (after, upto], at most `limit`, oldest first; and which rooms have a gap.

    None stands before the newest event that came without what precedes it: there the room's history has, or had, a gap.
    """
    rows = await tx.fetch(
        f"select {COLUMNS}, gap from unnest(%s::int[]) as wanted(number)"
        " left join lateral (select max(position) as gap from history_gaps where history_gaps.room = wanted.number"
        "  and position > %s and position <= %s) as gaps on true, lateral ("
        "  select * from events where room = wanted.number and position > coalesce(gap - 1, %s) and position <= %s"
        "  and flags = 0 order by position desc limit %s) as events",
        (list(rooms), after, upto, after, upto, limit),
    )
    found: dict[int, list[StoredEvent]] = {room: [] for room in rooms}
    for row in rows:
        found[row[1]].append(from_row(row))
    for events in found.values():
        events.reverse()
    return found, {row[1] for row in rows if row[-1] is not None}


async def rooms_changed(tx: Tx, rooms: Collection[int], after: int) -> set[int]:
    """Those of these rooms that have a visible event after `after`."""
    rows = await tx.fetch(
        "select number from unnest(%s::int[]) as wanted(number) where exists"
        " (select from events where room = number and position > %s and flags = 0)",
        (list(rooms), after),
    )
    return {room for (room,) in rows}


async def related_among(
    tx: Tx, stored: Collection[StoredEvent], by_senders: Collection[str] | None, by_types: Collection[str] | None
) -> set[EventID]:
    """Those of these events that one of these users relates to, in one of these ways; None: anybody, any way."""
    conditions = ["room = any(%s::int[])", "parent = any(%s::text[])"]
    params: list[list[Any]] = [list({event.room for event in stored}), [event.event_id for event in stored]]
    for column, names in (("sender", by_senders), ("type", by_types)):
        if names is not None:
            conditions.append(f"{column} in (select id from strings where value = any(%s::text[]))")
            params.append(list(names))
    rows = await tx.fetch(f"select distinct parent from relations where {' and '.join(conditions)}", tuple(params))
    return {EventID(event_id) for (event_id,) in rows}


async def after_in_rooms(tx: Tx, rooms: Collection[int], *, after: int, upto: int, limit: int) -> list[StoredEvent]:
    """The first visible events of all these rooms together in (after, upto], oldest first."""
    rows = await tx.fetch(
        f"select {COLUMNS} from unnest(%s::int[]) as wanted(number), lateral ("
        "  select * from events where room = wanted.number and position > %s and position <= %s and flags = 0"
        "  order by position limit %s) as events order by position limit %s",
        (list(rooms), after, upto, limit, limit),
    )
    return [from_row(row) for row in rows]


async def find_by_timestamp(
    tx: Tx, room: int, ts: int, *, backwards: bool, limit: int, beyond: int | None = None
) -> list[StoredEvent]:
    """The visible events nearest to a time, on one side of it, nearest first.

    With `beyond` those at the time itself begin after the event at this position.
    """
    comparison, order = ("<", "desc") if backwards else (">", "asc")
    if beyond is None:
        beyond = _LAST if backwards else -_LAST
    rows = await tx.fetch(
        f"select {COLUMNS} from events where room = %s and origin_server_ts {comparison}= %s"
        f" and (origin_server_ts, position) {comparison} (%s, %s) and flags & {UNSEEN:d} = 0"
        f" order by origin_server_ts {order}, position {order} limit %s",
        (room, ts, ts, beyond, limit),
    )
    return [from_row(row) for row in rows]


async def newest_in(tx: Tx, rooms: Collection[int], before: int, limit: int) -> list[StoredEvent]:
    """The newest events below a position in all of these rooms together, the newest first, whatever their flags.

    Of the rooms only those are read in which there can be some: as many, with the newest events, as events are wanted.
    """
    rows = await tx.fetch(
        f"select {COLUMNS} from (select number, (select position from events where room = number and position < %s"
        "  order by position desc limit 1) as newest from unnest(%s::int[]) as given(number)"
        "  order by newest desc nulls last limit %s) as chosen,"
        " lateral (select * from events where events.room = chosen.number and events.position < %s"
        "  order by events.position desc limit %s) as events order by events.position desc limit %s",
        (before, list(rooms), limit, before, limit, limit),
    )
    return [from_row(row) for row in rows]
