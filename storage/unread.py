"""Where local users' unread counts stand (tables `read_marks`, `threads`, `notifications`; columns of `rooms`)."""

from collections.abc import Collection
from dataclasses import dataclass, field

from federation.protocol.types import UserID
from storage.database import Tx


@dataclass(slots=True)
class ThreadCounts:
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


@dataclass(slots=True, kw_only=True)
class PersonalCount:
    """Where one user's count for an event differs from everybody's."""

    user_id: UserID
    notify: int
    """-1, 0 or 1: added to what the room counts."""
    highlight: int


@dataclass(slots=True)
class Loaded:
    """The counts of one user in several rooms, as of one position of the log."""

    upto: int
    main: dict[int, ThreadCounts] = field(default_factory=dict)
    threads: dict[int, dict[str, ThreadCounts]] = field(default_factory=dict)


@dataclass(slots=True)
class _Marks:
    """A user's marks in one room: thread -> (position, notify_total, highlight_total)."""

    by_thread: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def of(self, thread: str) -> tuple[int, int, int]:
        return self.by_thread.get(thread, (0, 0, 0))

    @property
    def unthreaded(self) -> int:
        """The position up to which everything is read, whatever thread it is in."""
        return self.of("")[0]


async def load(tx: Tx, user_id: UserID, rooms: Collection[int]) -> Loaded:
    """The user's counts in these rooms; `tx` has to be one snapshot."""
    head = await tx.fetch_one("select position from log_head")
    loaded = Loaded(0 if head is None else head[0])
    numbers = list(rooms)
    marks: dict[int, _Marks] = {room: _Marks() for room in numbers}
    for room, thread, position, notify, highlight in await tx.fetch(
        "select room, thread, position, notify_total, highlight_total from read_marks"
        " where user_id = %s and room = any(%s::int[])",
        (user_id, numbers),
    ):
        marks[room].by_thread[thread] = (position, notify, highlight)
    for room, notify, highlight in await tx.fetch(
        "select room, notify_total, highlight_total from rooms where room = any(%s::int[])", (numbers,)
    ):
        loaded.main[room] = ThreadCounts(notify, highlight)
    await _set_main_bases(tx, loaded, marks)
    await _load_threads(tx, loaded, marks)
    await _load_own(tx, user_id, loaded, marks)
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


async def _load_threads(tx: Tx, loaded: Loaded, marks: dict[int, _Marks]) -> None:
    """Threads with events after what the user has read."""
    rows = await tx.fetch(
        "select threads.room, threads.thread, threads.notify_total, threads.highlight_total,"
        " coalesce(before.notify_total, 0), coalesce(before.highlight_total, 0)"
        " from unnest(%s::int[], %s::bigint[]) as given(room, read_upto)"
        " join threads on threads.room = given.room and threads.last_position > given.read_upto"
        " left join lateral (select notify_total, highlight_total from events where events.room = given.room"
        "  and events.thread = threads.thread and events.position <= given.read_upto"
        "  order by events.position desc limit 1) as before on true",
        (list(marks), [mark.unthreaded for mark in marks.values()]),
    )
    for room, thread, notify, highlight, notify_before, highlight_before in rows:
        position, notify_read, highlight_read = marks[room].of(thread)
        base = (notify_before, highlight_before)
        if position > marks[room].unthreaded:
            base = (max(notify_read, notify_before), max(highlight_read, highlight_before))
        loaded.threads.setdefault(room, {})[thread] = ThreadCounts(notify, highlight, *base)


async def _load_own(tx: Tx, user_id: UserID, loaded: Loaded, marks: dict[int, _Marks]) -> None:
    """What counts for this user alone, after what they have read."""
    rows = await tx.fetch(
        "select room, thread, position, notify, highlight from notifications"
        " where user_id = %s and room = any(%s::int[])",
        (user_id, list(marks)),
    )
    for room, thread, position, notify, highlight in rows:
        if position <= max(marks[room].unthreaded, marks[room].of(thread)[0]):
            continue
        counts = loaded.main[room] if thread == "main" else loaded.threads.setdefault(room, {}).get(thread)
        if counts is not None:
            counts.notify_own += notify
            counts.highlight_own += highlight
