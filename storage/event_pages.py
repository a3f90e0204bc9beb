"""Looking through a bounded part of a room's history for what a filter wants.

As `storage/events.py`, only for `federation.rooms` and `storage`: every reader goes through the visibility gate.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from storage.database import Tx
from storage.events import COLUMNS, UNSEEN, Flag, StoredEvent, from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
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


@dataclass(frozen=True, slots=True)
class Scanned:
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
