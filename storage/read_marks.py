"""Up to where local users have read, with the counts at that place (table `read_marks`)."""

from collections.abc import Mapping
from typing import NamedTuple

from federation.protocol.types import UserID
from storage.database import Tx


class Mark(NamedTuple):
    """Where a mark is kept."""

    user_id: UserID
    room: int
    thread: str
    """A thread's root, `main`, or nothing for the room regardless of threads."""


async def advance(tx: Tx, marks: Mapping[Mark, int]) -> None:
    """Move marks to events, by the events' positions, and copy the counts that stand there; none moves backwards."""
    if not marks:
        return
    await tx.execute(
        "insert into read_marks (user_id, room, thread, position, notify_total, highlight_total)"
        " select mark.user_id, mark.room, mark.thread, events.position, events.notify_total, events.highlight_total"
        " from unnest(%s::text[], %s::int[], %s::text[], %s::bigint[]) as mark (user_id, room, thread, position)"
        " join events on events.room = mark.room and events.position = mark.position"
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
