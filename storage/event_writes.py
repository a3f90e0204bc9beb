"""Writing admitted events and what comes with them: bulk inserts for `append_events.py`, which alone calls this."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.protocol.types import EventID, UserID
from storage import redactions, relations, state_writes
from storage.arrays import Byteas, Int2, Int4, Int8, Texts
from storage.database import Tx
from storage.event_bytes import pack
from storage.events import Flag, NewEvent, StoredEvent
from storage.memberships import Membership
from storage.redactions import Redaction
from storage.state_writes import Standing
from storage.unread import PersonalCount

Placed = tuple[NewEvent, StoredEvent]
"""An event, and the row that it becomes."""


_APPEND = (
    "with {state}appended as ("
    " insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender, state_key,"
    " after_line, after_version, notify_total, highlight_total, device, flags, event_id, thread, txn_id, json)"
    " select * from unnest(%s::bigint[], %s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::smallint[], %s::text[],"
    " %s::text[], %s::text[], %s::bytea[])),"
    " read as ("
    " insert into read_marks (position, room, notify_total, highlight_total, user_id, thread)"
    " select {marks}"
    " on conflict (user_id, room, thread) do update set position = excluded.position,"
    " notify_total = excluded.notify_total, highlight_total = excluded.highlight_total)"
    " update rooms set state_version = given.state_version, extremities = string_to_array(given.extremities, ' '),"
    " last_line = given.last_line, notify_total = given.notify_total, highlight_total = given.highlight_total,"
    " joined_members = given.joined{were_joined}, invited_members = given.invited{were_invited},"
    " last_event = greatest(rooms.last_event, given.last_event), last_bump = greatest(rooms.last_bump, given.last_bump)"
    " from unnest(%s::int[], %s::int[], %s::text[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::bigint[], %s::bigint[])"
    " as given(room, state_version, extremities, last_line, notify_total, highlight_total, joined, invited,"
    " last_event, last_bump)"
    " where rooms.room = given.room"
)
"""Events, what their senders have read by sending them, and where their rooms stand: one statement."""
_APPEND_MESSAGES = _APPEND.format(
    state="",
    marks="* from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[])",
    were_joined="",
    were_invited="",
)
_WERE = " - (select count(*) from closed where closed.room = given.room and closed.membership = {:d})"
_APPEND_WITH_STATE = _APPEND.format(
    state=f"{state_writes.TRUNK_PARTS}, ",
    marks=(
        "position, room, notify_total, highlight_total, user_id, thread"
        " from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[], %s::int[])"
        " as given(position, room, notify_total, highlight_total, user_id, thread, entering)"
        " where entering is null or not exists (select from closed where closed.room = given.room"
        f" and closed.state_key = given.entering and closed.membership = {Membership.JOIN:d})"
    ),
    were_joined=_WERE.format(Membership.JOIN),
    were_invited=_WERE.format(Membership.INVITE),
)


def append(
    tx: Tx,
    placed: Sequence[Placed],
    standings: Mapping[int, Standing],
    numbers: dict[str, int],
    trunk: state_writes.Writes,
) -> None:
    """Write events, the entries of the trunks, what the senders have thereby read, and where the rooms, by number, now
    stand: later.

    What came before a join is none of the user's who was not in the room, in whatever thread.
    """
    rows = [_event_row(event, stored, numbers) for event, stored in placed]
    marks: dict[tuple[UserID, int, str], tuple[StoredEvent, int | None]] = {}
    for event, stored in placed:
        if event.is_local:
            user_id = event.pdu.sender
            marks[user_id, stored.room, stored.thread or "main"] = stored, None
            if event.pdu.type == "m.room.member":
                number = numbers[user_id]
                if trunk.members.get((stored.room, number)) is Membership.JOIN:
                    marks[user_id, stored.room, ""] = stored, number
    for (room, _), membership in trunk.members.items():  # less those who were before
        standings[room].joined += membership is Membership.JOIN
        standings[room].invited += membership is Membership.INVITE
    read = [stored for stored, _ in marks.values()]
    tx.later(
        _APPEND_WITH_STATE if trunk.rows else _APPEND_MESSAGES,
        (
            *(trunk.trunk_columns() if trunk.rows else ()),
            *(wrap(column) for wrap, column in zip(_EVENT_COLUMNS, zip(*rows, strict=True), strict=True)),
            Int8(stored.position for stored in read),
            Int4(stored.room for stored in read),
            Int4(stored.notify_total for stored in read),
            Int4(stored.highlight_total for stored in read),
            Texts(user_id for user_id, _, _ in marks),
            Texts(thread for _, _, thread in marks),
            *([Int4(entering for _, entering in marks.values())] if trunk.rows else ()),
            Int4(standings),
            Int4(room.state_version for room in standings.values()),
            Texts(" ".join(room.extremities) for room in standings.values()),
            Int4(room.last_line for room in standings.values()),
            Int4(room.notify_total for room in standings.values()),
            Int4(room.highlight_total for room in standings.values()),
            Int4(room.joined for room in standings.values()),
            Int4(room.invited for room in standings.values()),
            Int8(room.last_event for room in standings.values()),
            Int8(room.last_bump for room in standings.values()),
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


async def take_outliers(tx: Tx, held: Sequence[Placed]) -> None:
    """Take away outliers that are about to be appended."""
    rows = await tx.fetch(
        "delete from events using unnest(%s::int[], %s::bigint[]) as given(room, position)"
        " where events.room = given.room and events.position = given.position and events.flags & %s <> 0"
        " returning events.room, events.position, redacted_by",
        (Int4(stored.room for _, stored in held), Int8(event.held_at for event, _ in held), int(Flag.OUTLIER)),
    )
    redacted = {(room, position): redacted_by for room, position, redacted_by in rows}
    for event, stored in held:
        stored.redacted_by = redacted[stored.room, event.held_at]


async def replace_outliers(tx: Tx, held: Sequence[Placed], numbers: dict[str, int]) -> None:
    """Have what was said of outliers mean the events that they are now; these came when the outliers did."""
    for event, stored in held:  # as good as always one
        await tx.execute(
            "update events set arrival = %s, redacted_by = %s where room = %s and position = %s",
            (event.held_at, stored.redacted_by, stored.room, stored.position),
        )
        if event.pdu.state_key is not None:
            await tx.execute(
                "update room_state set event = %s where room = %s and type = %s and state_key = %s and event = %s",
                (
                    stored.position,
                    stored.room,
                    numbers[event.pdu.type],
                    numbers[event.pdu.state_key],
                    event.held_at,
                ),
            )


async def insert_relations(tx: Tx, placed: Sequence[Placed], numbers: dict[str, int]) -> None:
    """What events relate to, where they do."""
    related = [
        relations.Standing(event, stored.room, stored.position, stored.place)
        for event, stored in placed
        if event.relation is not None and stored.redacted_by is None
    ]
    if related:
        await relations.insert(tx, related, numbers)


async def insert_extras(tx: Tx, placed: Sequence[Placed], arrived: Sequence[StoredEvent]) -> dict[EventID, int]:
    """What only some events bring: threads, personal counts, redactions, gaps; `arrived` may close gaps.

    Answers by what which earlier events are redacted now.
    """
    threads: dict[tuple[int, str], StoredEvent] = {}
    personal: list[tuple[StoredEvent, PersonalCount]] = []
    redacting: list[Redaction] = []
    missing: list[tuple[StoredEvent, EventID, int]] = []
    for event, stored in placed:
        if stored.thread is not None:
            threads[stored.room, stored.thread] = stored
        personal.extend((stored, count) for count in event.personal)
        if event.redacts is not None:
            redacting.append(
                Redaction(
                    stored,
                    event.redacts,
                    event.redacts_only_of,
                    is_shown=event.pdu.rules.redactions_are_authorised,
                )
            )
        missing.extend((stored, event_id, event.missing_for or stored.position) for event_id in event.missing)
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
            "insert into notifications (position, room, user_id, notify, highlight, thread)"
            " select * from unnest(%s::bigint[], %s::int[], %s::text[], %s::smallint[], %s::smallint[],"
            " %s::text[])",
            (
                [stored.position for stored, _ in personal],
                [stored.room for stored, _ in personal],
                [count.user_id for _, count in personal],
                [count.notify for _, count in personal],
                [count.highlight for _, count in personal],
                [stored.thread or "main" for stored, _ in personal],
            ),
        )
    redacted = await redactions.apply(tx, redacting) if redacting else {}
    if missing or arrived:
        await _insert_missing(tx, missing)
        await _note_arrivals(tx, arrived)
    return redacted


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


async def _note_arrivals(tx: Tx, arrived: Sequence[StoredEvent]) -> None:
    """Events that others referred to before they came are no gaps any longer; redactions that waited apply."""
    if not arrived:
        return
    await redactions.apply_pending(tx, arrived)
