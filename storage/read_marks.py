"""Up to where local users have read, with the counts at that place (table `read_marks`)."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from federation.protocol.types import UserID
from storage.database import Tx


class Mark(NamedTuple):
    """Where a mark is kept."""

    user_id: UserID
    room: int
    thread: str
    """A thread's root, `main`, or nothing for the room regardless of threads."""


def advance(tx: Tx, marks: Mapping[Mark, int]) -> None:
    """Later move marks to events, by the events' positions, and copy the counts that stand there; none moves backwards.

    Where the event counts elsewhere, as a thread's root does that is read in its thread, the counts are those of the
    thread's last event before it.
    """
    if not marks:
        return
    tx.later(
        "insert into read_marks (user_id, room, thread, position, notify_total, highlight_total)"
        " select mark.user_id, mark.room, mark.thread, events.position,"
        "  case when is_here then events.notify_total else coalesce(before.notify_total, 0) end,"
        "  case when is_here then events.highlight_total else coalesce(before.highlight_total, 0) end"
        " from unnest(%s::text[], %s::int[], %s::text[], %s::bigint[]) as mark (user_id, room, thread, position)"
        " join events on events.room = mark.room and events.position = mark.position"
        " cross join lateral (select mark.thread in ('', coalesce(events.thread, 'main')) as is_here) as standing"
        " left join lateral ("
        "  (select notify_total, highlight_total from events as earlier where not is_here and mark.thread <> 'main'"
        "   and earlier.room = mark.room and earlier.thread = mark.thread and earlier.position < mark.position"
        "   order by earlier.position desc limit 1) union all"
        "  (select notify_total, highlight_total from events as earlier where not is_here and mark.thread = 'main'"
        "   and earlier.room = mark.room and earlier.thread is null and earlier.position < mark.position"
        "   order by earlier.position desc limit 1)) as before on true"
        " on conflict (user_id, room, thread) do update set position = excluded.position,"
        "  notify_total = excluded.notify_total, highlight_total = excluded.highlight_total"
        " where read_marks.position < excluded.position",
        (
            [mark.user_id for mark in marks],
            [mark.room for mark in marks],
            [mark.thread for mark in marks],
            list(marks.values()),
        ),
    )


async def of_users_in(tx: Tx, user_ids: Collection[UserID], rooms: Collection[int]) -> dict[Mark, int]:
    """The positions of these users' marks in these rooms."""
    rows = await tx.fetch(
        "select user_id, room, thread, position from read_marks"
        " where user_id = any(%s::text[]) and room = any(%s::int[])",
        (list(user_ids), list(rooms)),
    )
    return {Mark(UserID(user_id), room, thread): position for user_id, room, thread, position in rows}


def is_read(marks: Mapping[Mark, int], user_id: UserID, room: int, thread: str, position: int) -> bool:
    """Whether one of these marks is at an event of a thread, or of `main`, or beyond it."""
    return position <= max(marks.get(Mark(user_id, room, ""), 0), marks.get(Mark(user_id, room, thread), 0))
