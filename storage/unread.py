"""Where local users' unread counts stand (tables `read_marks`, `threads`, `notifications`; columns of `rooms`)."""

from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct, field

from federation.protocol.types import UserID
from storage.arrays import Int4
from storage.database import Row, Tx


class ThreadCounts(Struct):
    """Of one thread, or of the main timeline: totals now, totals where the user has read to, what is theirs alone."""

    notify_total: int = 0
    highlight_total: int = 0
    notify_base: int = 0
    highlight_base: int = 0
    notify_own: int = 0
    highlight_own: int = 0

    @property
    def count(self) -> tuple[int, int]:
        """(notifications, highlights) that are unread."""
        return (
            max(self.notify_total - self.notify_base + self.notify_own, 0),
            max(self.highlight_total - self.highlight_base + self.highlight_own, 0),
        )


class PersonalCount(Struct, kw_only=True):
    """Where one user's count for an event differs from everybody's."""

    user_id: UserID
    notify: int
    """-1, 0 or 1: added to what the room counts."""
    highlight: int


class Loaded(Struct):
    """The counts of one user in several rooms, as of one position of the log."""

    upto: int
    main: dict[int, ThreadCounts] = field(default_factory=dict)
    threads: dict[int, dict[str, ThreadCounts]] = field(default_factory=dict)


class _Marks(Struct):
    """A user's marks in one room: thread -> (position, notify_total, highlight_total)."""

    by_thread: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def of(self, thread: str) -> tuple[int, int, int]:
        return self.by_thread.get(thread, (0, 0, 0))

    @property
    def unthreaded(self) -> int:
        """The position up to which everything is read, whatever thread it is in."""
        return self.of("")[0]


STORED = (
    "select 0 as part, 0 as room, '' as thread, position, 0 as notify, 0 as highlight,"
    "  0 as notify_before, 0 as highlight_before from log_head"
    " union all select 1, room, thread, position, notify_total, highlight_total, 0, 0 from read_marks"
    "  where user_id = %s and room = any(%s::int[])"
    " union all select 2, room, '', 0, notify_total, highlight_total, 0, 0 from rooms where room = any(%s::int[])"
    # Threads with events after what the user has read, whatever thread that is in.
    " union all select 3, threads.room, threads.thread, 0, threads.notify_total, threads.highlight_total,"
    "  coalesce(before.notify_total, 0), coalesce(before.highlight_total, 0) from unnest(%s::int[]) as given(number)"
    "  left join read_marks on read_marks.user_id = %s and read_marks.room = number and read_marks.thread = ''"
    "  join threads on threads.room = number and threads.last_position > coalesce(read_marks.position, 0)"
    "  left join lateral (select notify_total, highlight_total from events where events.room = threads.room"
    "   and events.thread = threads.thread and events.position <= coalesce(read_marks.position, 0)"
    "   order by events.position desc limit 1) as before on true"
    # What counts for this user alone.
    " union all select 4, room, thread, position, notify, highlight, 0, 0 from notifications"
    "  where user_id = %s and room = any(%s::int[])"
)
"""All that counts are made of, in parts."""
PARTS = 5
_HEAD, _MARK, _ROOM, _THREAD, _OWN = range(PARTS)


def parameters(user_id: UserID, rooms: Collection[int]) -> tuple[object, ...]:
    """Those of `STORED`."""
    numbers = Int4(rooms)
    return (user_id, numbers, numbers, numbers, user_id, user_id, numbers)


async def load(tx: Tx, user_id: UserID, rooms: Collection[int]) -> Loaded:
    """The user's counts in these rooms, all as of the same place in the log: by one statement, and one more where what
    is read is not told by threads."""
    return await loaded_from(tx, rooms, await tx.fetch(STORED, parameters(user_id, rooms)))


async def loaded_from(tx: Tx, rooms: Collection[int], rows: Iterable[Row]) -> Loaded:
    """The counts, from what `STORED` gave; by another statement where what is read is not told by threads."""
    parts: tuple[list[Row], ...] = ([], [], [], [], [])
    for row in rows:
        parts[row[0]].append(row[1:8])
    loaded = Loaded(parts[_HEAD][0][2] if parts[_HEAD] else 0)
    marks: dict[int, _Marks] = {room: _Marks() for room in rooms}
    for room, thread, position, notify, highlight, _, _ in parts[_MARK]:
        marks[room].by_thread[thread] = (position, notify, highlight)
    for room, _, _, notify, highlight, _, _ in parts[_ROOM]:
        loaded.main[room] = ThreadCounts(notify, highlight)
    await _set_main_bases(tx, loaded, marks)
    _set_threads(parts[_THREAD], loaded, marks)
    _set_own(parts[_OWN], loaded, marks)
    return loaded


async def _set_main_bases(tx: Tx, loaded: Loaded, marks: dict[int, _Marks]) -> None:
    """The base of a main timeline is its own mark, or the unthreaded one when that is further on."""
    unthreaded: dict[int, int] = {}
    for room, counts in loaded.main.items():
        position, notify, highlight = marks[room].of("main")
        counts.notify_base, counts.highlight_base = notify, highlight
        if marks[room].unthreaded > position:
            unthreaded[room] = marks[room].unthreaded
    for room, notify, highlight in await _totals_at(tx, unthreaded):
        counts = loaded.main[room]
        counts.notify_base, counts.highlight_base = notify, highlight


async def _totals_at(tx: Tx, positions: dict[int, int]) -> list[tuple[int, int, int]]:
    if not positions:
        return []
    rows = await tx.fetch(
        "select given.room, found.notify_total, found.highlight_total"
        " from unnest(%s::int[], %s::bigint[]) as given(room, position), lateral ("
        "  select notify_total, highlight_total from events where events.room = given.room"
        "  and events.position <= given.position and thread is null order by events.position desc limit 1) as found",
        (list(positions), list(positions.values())),
    )
    return [(room, notify, highlight) for room, notify, highlight in rows]


def _set_threads(rows: Sequence[Row], loaded: Loaded, marks: dict[int, _Marks]) -> None:
    """Threads with events after what the user has read."""
    for room, thread, _, notify, highlight, notify_before, highlight_before in rows:
        position, notify_read, highlight_read = marks[room].of(thread)
        base = (notify_before, highlight_before)
        if position > marks[room].unthreaded:
            base = (max(notify_read, notify_before), max(highlight_read, highlight_before))
        loaded.threads.setdefault(room, {})[thread] = ThreadCounts(notify, highlight, *base)


def _set_own(rows: Sequence[Row], loaded: Loaded, marks: dict[int, _Marks]) -> None:
    """What counts for this user alone, after what they have read."""
    for room, thread, position, notify, highlight, _, _ in rows:
        if position <= max(marks[room].unthreaded, marks[room].of(thread)[0]):
            continue
        counts = loaded.main[room] if thread == "main" else loaded.threads.setdefault(room, {}).get(thread)
        if counts is not None:
            counts.notify_own += notify
            counts.highlight_own += highlight
