"""History that is fetched after what follows it: where it goes, and what of it is still missing (`history_gaps`).

An event that comes without what precedes it leaves places free before itself, so that what is fetched later stands
where it belongs, and no token of a client has to change. An event that was held before as an outlier keeps its
position, by which others call it, and gets a `place`. One that is new has its place as its position, and an `arrival`:
events stand in the log after all that they cite, and resolution relies on that.

As `storage/events.py`, only for `federation.rooms` and `storage`.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from federation.protocol.types import EventID
from storage import events, redactions, relations, search_index, state_writes, strings
from storage.arrays import Byteas, Int2, Int4, Int8, Texts
from storage.database import Row, Tx
from storage.event_bytes import pack
from storage.events import Flag, NewEvent, NewLine, StateWrite, StoredEvent
from storage.redactions import Redaction
from storage.search_index import SEARCHED

HOLE = 1 << 24
"""Places that an event leaves free for what precedes it."""
MAX_FRONTIER = 100
_LOCK = 0x48


class Gap(Struct, frozen=True):
    """What of a room's history is not here yet."""

    position: int
    """Of the event that came without what precedes it."""
    low: int
    bottom: int
    """The free places: after the first, before the second, where the oldest event above the gap stands."""
    is_first: bool
    """Whether nothing of the room stands below."""
    frontier: tuple[EventID, ...]
    """The events to ask for; none once the gap is filled."""


async def open_gap(tx: Tx, stored: StoredEvent, missing: Sequence[EventID], hole: int) -> None:
    """Note that an event which is being appended came without these, with room for them before it."""
    await tx.execute(
        "insert into history_gaps (room, position, low, bottom, is_first, frontier)"
        " select %s, %s, %s, %s, not exists (select from events where room = %s and position < %s"
        f"  and flags & {int(Flag.OUTLIER):d} = 0), %s",
        (
            stored.room,
            stored.position,
            stored.position - hole - 1,
            stored.position,
            stored.room,
            stored.position,
            Texts(missing[:MAX_FRONTIER]),
        ),
    )


async def gaps(tx: Tx, room: int) -> list[Gap]:
    """The places where history of a room was, or is, missing: the newest first."""
    rows = await tx.fetch(
        "select position, low, bottom, is_first, frontier from history_gaps where room = %s order by bottom desc",
        (room,),
    )
    return [_gap(row) for row in rows]


async def after_gaps(tx: Tx, after: int, stored: Sequence[StoredEvent]) -> set[int]:
    """Where those of these events stand that came without what precedes them; all came after `after`."""
    if not stored or stored[-1].position - after <= HOLE:
        return set()
    rows = await tx.fetch(
        "select position from history_gaps where (room, position) in (select * from unnest(%s::int[], %s::bigint[]))",
        (Int4(event.room for event in stored), Int8(event.position for event in stored)),
    )
    return {position for (position,) in rows}


async def lock(tx: Tx, room: int, position: int) -> Gap | None:
    """A gap, to be changed by nobody else until this transaction ends; lines of history are numbered meanwhile, too."""
    await tx.execute("select pg_advisory_xact_lock(%s, %s)", (_LOCK, room))
    row = await tx.fetch_one(
        "select position, low, bottom, is_first, frontier from history_gaps where room = %s and position = %s"
        " for update",
        (room, position),
    )
    return None if row is None else _gap(row)


async def try_lock(tx: Tx, room: int) -> bool:
    """Whether nobody writes a room's history until this transaction ends; does not wait for who does."""
    row = await tx.fetch_one("select pg_try_advisory_xact_lock(%s, %s)", (_LOCK, room))
    return row is not None and bool(row[0])


async def are_here(tx: Tx, room: int, positions: Collection[int]) -> bool:
    """Whether events stand at all of these positions: an outlier may have gone to the end. The room is locked."""
    row = await tx.fetch_one(
        "select count(*) from events where room = %s and position = any(%s::bigint[])", (room, list(positions))
    )
    return row is not None and row[0] == len(positions)


def _gap(row: Row) -> Gap:
    position, low, bottom, is_first, frontier = row
    return Gap(position, low, bottom, is_first, tuple(EventID(event_id) for event_id in frontier))


async def save(tx: Tx, room: int, gap: Gap) -> None:
    """Write down where a gap ends now and what to ask for next, or a new gap."""
    await tx.execute(
        "insert into history_gaps (room, position, low, bottom, is_first, frontier) values (%s, %s, %s, %s, %s, %s)"
        " on conflict (room, position) do update set low = excluded.low, bottom = excluded.bottom,"
        " is_first = excluded.is_first, frontier = excluded.frontier",
        (room, gap.position, gap.low, gap.bottom, gap.is_first, Texts(gap.frontier)),
    )


async def newest_line(tx: Tx, room: int) -> int:
    """The number of the last line of history, which count downwards from 0."""
    row = await tx.fetch_one("select least(min(line), 0) from room_lines where room = %s", (room,))
    return 0 if row is None or row[0] is None else int(row[0])


class Placed(Struct, frozen=True, kw_only=True):
    """An event of history with its place in the room."""

    event: NewEvent
    position: int
    place: int
    arrival: int
    was_held: bool
    """Whether it is here as an outlier, at its position."""


async def insert(tx: Tx, room: int, placed: Sequence[Placed]) -> set[EventID]:
    """Write history, the oldest first; which of it was written. What came meanwhile by other ways is left alone."""
    totals = await _totals_before(tx, room, placed[0].place)
    used = {
        text
        for each in placed
        for text in (each.event.pdu.type, each.event.pdu.sender, each.event.pdu.state_key)
        if text is not None
    }
    used |= {each.event.relation.type for each in placed if each.event.relation is not None}
    numbers = await strings.intern(tx, used)
    written = await _insert_new(tx, room, [each for each in placed if not each.was_held], totals, numbers)
    written |= await _place_outliers(tx, room, [each for each in placed if each.was_held])
    arrived = [each for each in placed if each.event.pdu.event_id in written]
    await relations.insert(
        tx, (relations.Standing(each.event, room, each.position, each.place) for each in arrived), numbers
    )
    await relations.note_threads(tx, room, [each.event.thread for each in arrived if each.event.thread is not None])
    await _note_missing(tx, room, arrived)
    await _redact(tx, room, arrived)
    searched = [each.position for each in arrived if each.event.pdu.type in SEARCHED]
    if searched:
        await search_index.note_history(tx, room, searched)
    return written


async def _totals_before(tx: Tx, room: int, place: int) -> tuple[int, int]:
    row = await tx.fetch_one(
        "select notify_total, highlight_total from events where room = %s and position < %s and flags = 0"
        " and thread is null order by position desc limit 1",
        (room, place),
    )
    return (0, 0) if row is None else (row[0], row[1])


async def _insert_new(
    tx: Tx, room: int, placed: Sequence[Placed], totals: tuple[int, int], numbers: Mapping[str, int]
) -> set[EventID]:
    if not placed:
        return set()
    new = [each.event for each in placed]
    rows = await tx.fetch(
        "insert into events (position, arrival, origin_server_ts, room, line, version, trunk_version, type, sender,"
        " state_key, after_line, after_version, notify_total, highlight_total, flags, event_id, thread, json)"
        " select position, arrival, origin_server_ts, %s, line, version, trunk_version, type, sender, state_key,"
        " after_line, after_version, %s, %s, flags, event_id, thread, json from unnest(%s::bigint[], %s::bigint[],"
        " %s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
        " %s::smallint[], %s::text[], %s::text[], %s::bytea[]) as given(position, arrival, origin_server_ts, line,"
        " version, trunk_version, type, sender, state_key, after_line, after_version, flags, event_id, thread, json)"
        " on conflict do nothing returning event_id",
        (
            room,
            *totals,
            Int8(each.position for each in placed),
            Int8(each.arrival for each in placed),
            Int8(event.pdu.origin_server_ts for event in new),
            Int4(event.line for event in new),
            Int4(event.version for event in new),
            Int4(event.trunk_version for event in new),
            Int4(numbers[event.pdu.type] for event in new),
            Int4(numbers[event.pdu.sender] for event in new),
            Int4(None if event.pdu.state_key is None else numbers[event.pdu.state_key] for event in new),
            Int4(None if event.after is None else event.after[0] for event in new),
            Int4(None if event.after is None else event.after[1] for event in new),
            Int2(event.flags | Flag.HISTORY for event in new),
            Texts(event.pdu.event_id for event in new),
            Texts(event.thread for event in new),
            Byteas(pack(event.pdu.canonical) for event in new),
        ),
    )
    return {EventID(event_id) for (event_id,) in rows}


async def _place_outliers(tx: Tx, room: int, placed: Sequence[Placed]) -> set[EventID]:
    if not placed:
        return set()
    new = [each.event for each in placed]
    rows = await tx.fetch(
        "update events set place = given.place, line = given.line, version = given.version,"
        " trunk_version = given.trunk_version, after_line = given.after_line, after_version = given.after_version,"
        " flags = given.flags from unnest(%s::bigint[], %s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[],"
        " %s::int[], %s::smallint[]) as given(position, place, line, version, trunk_version, after_line,"
        " after_version, flags) where events.room = %s and events.position = given.position"
        f" and events.flags & {int(Flag.OUTLIER):d} <> 0 returning event_id",
        (
            Int8(each.position for each in placed),
            Int8(each.place for each in placed),
            Int4(event.line for event in new),
            Int4(event.version for event in new),
            Int4(event.trunk_version for event in new),
            Int4(None if event.after is None else event.after[0] for event in new),
            Int4(None if event.after is None else event.after[1] for event in new),
            Int2(event.flags | Flag.HISTORY for event in new),
            room,
        ),
    )
    return {EventID(event_id) for (event_id,) in rows}


async def _note_missing(tx: Tx, room: int, placed: Sequence[Placed]) -> None:
    """These are missing no longer; what they follow may be."""
    await tx.execute(
        "delete from missing_events where room = %s and event_id = any(%s::text[])",
        (room, Texts(each.event.pdu.event_id for each in placed)),
    )
    missing = [(event_id, each.position) for each in placed for event_id in each.event.missing]
    if missing:
        await tx.execute(
            "insert into missing_events (room, event_id, position)"
            " select %s, event_id, position from unnest(%s::text[], %s::bigint[]) as given(event_id, position)"
            " on conflict do nothing",
            (room, Texts(event_id for event_id, _ in missing), Int8(position for _, position in missing)),
        )


async def _redact(tx: Tx, room: int, placed: Sequence[Placed]) -> None:
    """Apply the redactions among these, and those that waited for these."""
    held = await events.by_position(tx, room, [each.position for each in placed])
    if held:
        await redactions.apply_pending(tx, list(held.values()))
        await relations.forget(tx, [event for event in held.values() if event.redacted_by is not None])
    redacting = [
        Redaction(
            held[each.position],
            each.event.redacts,
            each.event.redacts_only_of,
            is_shown=each.event.pdu.rules.redactions_are_authorised,
        )
        for each in placed
        if each.event.redacts is not None and each.position in held
    ]
    if redacting:
        await redactions.apply(tx, redacting)


async def write_lines(tx: Tx, room: int, lines: Sequence[NewLine], writes: Sequence[StateWrite]) -> None:
    """Write lines of history with all that they hold."""
    numbers = await strings.intern(tx, {text for write in writes for text in (write.type, write.state_key)})
    await state_writes.write(tx, [(room, write) for write in writes], {}, numbers)
    await state_writes.write_lines(tx, [(room, line) for line in lines])
