"""Receipts: up to which event somebody has read (table `receipts`)."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

from msgspec import Struct

from federation.protocol.errors import MatrixError
from federation.protocol.relations import related_event, thread_of
from federation.protocol.types import EventID, UserID
from storage import events, read_marks
from storage.arrays import Int4, Texts
from storage.database import Memory, Row, Statement, Tx
from storage.events import UNSEEN

READ = "m.read"
READ_PRIVATE = "m.read.private"

MAX_HOPS = 3
"""From an event to one that is in a thread, by what they relate to."""

_COLUMNS = "room, user_id, receipt_type, thread, event_id, event, ts"


class ReceiptBehind(MatrixError):
    """The user's receipt is at this event already, or at a later one: nothing to do."""

    def __init__(self) -> None:
        super().__init__("M_UNKNOWN", "The receipt is not ahead of the present one", 400)


class ReceiptMoved(Struct, frozen=True):
    """Somebody has read up to an event. A private receipt concerns its user alone, any other the room."""

    room: int
    user_id: UserID
    receipt_type: str
    thread: str
    """A thread's root, `main`, or nothing for a receipt without a thread."""
    event_id: EventID
    event: int
    """The event's position; 0 for one that we do not hold, which only users of other servers may have read."""
    ts: int
    is_local: bool = False
    """Whether the user is ours, so that their counts are to follow. Not known of what was read from the table."""

    kind: ClassVar[int] = 16
    width: ClassVar[int] = 1

    @property
    def rooms(self) -> Collection[int]:
        """The room, unless it is private."""
        return () if self.is_private else (self.room,)

    @property
    def users(self) -> Collection[UserID]:
        """The user, when it is private."""
        return (self.user_id,) if self.is_private else ()

    @property
    def is_private(self) -> bool:
        """Whether nobody else may know."""
        return self.receipt_type != READ

    @property
    def key(self) -> tuple[int, UserID, str, str]:
        """What there is one receipt of."""
        return self.room, self.user_id, self.receipt_type, self.thread

    @classmethod
    def preload(cls, _memory: Memory, changes: Sequence[Self]) -> Sequence[Statement]:
        """What is present."""
        return (_present(changes),)

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Sequence[Row]]
    ) -> Sequence[MatrixError | None]:
        """Refuse what would move a receipt backwards, or not at all, with `ReceiptBehind`."""
        present = _read_present(loaded[0])
        answers: list[MatrixError | None] = []
        for _, change in rows:
            event_id, event = present.get(change.key, ("", -1))
            if change.event_id == event_id or 0 < change.event <= event:
                answers.append(ReceiptBehind())
            else:
                present[change.key] = (change.event_id, change.event)
                answers.append(None)
        return answers

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """Two statements for all: the receipts, and the marks of local users."""
        latest = {change.key: (at, change) for at, change in rows}
        tx.later(
            f"insert into receipts (position, {_COLUMNS})"
            " select * from unnest(%s::bigint[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[],"
            "  %s::bigint[], %s::bigint[])"
            " on conflict (room, user_id, receipt_type, thread) do update set position = excluded.position,"
            "  event_id = excluded.event_id, event = excluded.event, ts = excluded.ts",
            (
                [at for at, _ in latest.values()],
                [change.room for _, change in latest.values()],
                [change.user_id for _, change in latest.values()],
                [change.receipt_type for _, change in latest.values()],
                [change.thread for _, change in latest.values()],
                [change.event_id for _, change in latest.values()],
                [change.event for _, change in latest.values()],
                [change.ts for _, change in latest.values()],
            ),
        )
        marks: dict[read_marks.Mark, int] = {}
        for _, change in latest.values():
            if change.is_local:
                mark = read_marks.Mark(change.user_id, change.room, change.thread)
                marks[mark] = max(change.event, marks.get(mark, 0))
        read_marks.advance(tx, marks)

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that nothing newer replaced."""
        rows = await tx.fetch(
            f"select {_COLUMNS}, position from receipts where position > %s and position <= %s order by position",
            (after, upto),
        )
        return [(row[7], cls(*row[:7])) for row in rows]


def _present(changes: Sequence[ReceiptMoved]) -> Statement:
    return (
        "select receipts.room, receipts.user_id, receipts.receipt_type, receipts.thread, receipts.event_id,"
        " receipts.event from unnest(%s::int[], %s::text[]) as wanted (room, user_id)"
        " join receipts on receipts.room = wanted.room and receipts.user_id = wanted.user_id",
        (Int4(change.room for change in changes), Texts(change.user_id for change in changes)),
    )


def _read_present(rows: Sequence[Row]) -> dict[tuple[int, UserID, str, str], tuple[str, int]]:
    return {(row[0], UserID(row[1]), row[2], row[3]): (row[4], row[5]) for row in rows}


class Place(NamedTuple):
    """Where an event stands in its room."""

    position: int
    thread: str | None
    """The root of its thread; None on the main timeline."""


async def place_of(tx: Tx, room: int, event_id: str) -> Place | None:
    """Where an event that clients may see stands; None when the room has no such event."""
    row = await tx.fetch_one(
        "select coalesce(place, position), thread from events where event_id = %s and room = %s"
        f" and flags & {UNSEEN:d} = 0",
        (event_id, room),
    )
    return None if row is None else Place(row[0], row[1])


async def related_thread(tx: Tx, room: int, event_id: str) -> str | None:
    """The thread of an event that relates, directly or not, to one that is in a thread; None on the main timeline."""
    for _ in range(MAX_HOPS):
        found = (await events.by_id(tx, [event_id])).get(EventID(event_id))
        if found is None or found.room != room or not found.is_readable:
            return None
        relation = related_event(found.content)
        if relation is None:
            return None
        place = await place_of(tx, room, relation.parent)
        if place is None or place.thread is not None:
            return None if place is None else place.thread
        event_id = relation.parent
    return None


async def is_reply(tx: Tx, event_id: str) -> bool:
    """Whether an event says itself that it is in a thread."""
    found = (await events.by_id(tx, [event_id])).get(EventID(event_id))
    return found is not None and found.is_readable and thread_of(found.json) is not None


async def in_rooms(tx: Tx, rooms: Collection[int], reader: UserID) -> list[ReceiptMoved]:
    """The receipts of these rooms that the reader may know of."""
    return from_rows(
        await tx.fetch(
            f"select {_COLUMNS} from receipts"
            " where room = any(%s::int[]) and (receipt_type = 'm.read' or user_id = %s)",
            (list(rooms), reader),
        )
    )


async def changed_between(tx: Tx, rooms: Collection[int], reader: UserID, after: int, upto: int) -> list[ReceiptMoved]:
    """The receipts of these rooms that moved in positions (after, upto] and that the reader may know of."""
    return from_rows(
        await tx.fetch(
            f"select {_COLUMNS} from receipts where room = any(%s::int[]) and position > %s and position <= %s"
            " and (receipt_type = 'm.read' or user_id = %s) order by position",
            (list(rooms), after, upto, reader),
        )
    )


async def moved_after(
    tx: Tx, reader: UserID, after: Mapping[int, int], upto: int, *, own_only: bool = False
) -> list[ReceiptMoved]:
    """The receipts of these rooms that the reader may know of and that moved up to a place in the log, after another
    one for each room; or the reader's own alone."""
    who = "user_id = %s" if own_only else "(receipt_type = 'm.read' or user_id = %s)"
    return from_rows(
        await tx.fetch(
            f"select receipts.{_COLUMNS} from unnest(%s::int[], %s::bigint[]) as given (number, after)"
            f" join receipts on receipts.room = number and position > after and position <= %s and {who}"
            " order by position",
            (list(after), list(after.values()), upto, reader),
        )
    )


AT_EVENTS = (
    f"select {_COLUMNS} from receipts where room = any(%s::int[]) and user_id = %s and position <= %s"
    f" union select {_COLUMNS} from receipts where room = any(%s::int[]) and receipt_type = 'm.read'"
    "  and (room, event_id) in (select * from unnest(%s::int[], %s::text[])) and position <= %s"
)


def parameters_of_events(reader: UserID, shown: Mapping[int, Collection[str]], upto: int) -> tuple[object, ...]:
    """Those of `AT_EVENTS`."""
    numbers = Int4(shown)
    rooms = Int4(room for room, event_ids in shown.items() for _ in event_ids)
    event_ids = Texts(event_id for of_room in shown.values() for event_id in of_room)
    return (numbers, reader, upto, numbers, rooms, event_ids, upto)


async def at_events(tx: Tx, reader: UserID, shown: Mapping[int, Collection[str]], upto: int) -> list[ReceiptMoved]:
    """The receipts of these rooms that the reader may know of: those at these events, and the reader's own."""
    return from_rows(await tx.fetch(AT_EVENTS, parameters_of_events(reader, shown, upto)))


async def newest_in_rooms(
    tx: Tx, reader: UserID, rooms: Collection[int], upto: int, *, limit: int
) -> list[ReceiptMoved]:
    """The receipts of these rooms that the reader may know of and that moved last, so many of each room, and their own,
    oldest first."""
    columns = f"{_COLUMNS}, position"
    return from_rows(
        [
            row[:-1]
            for row in await tx.fetch(
                f"select {columns} from receipts where room = any(%s::int[]) and user_id = %s and position <= %s"
                f" union select found.* from unnest(%s::int[]) as wanted (number), lateral (select {columns}"
                "   from receipts where room = number and receipt_type = 'm.read' and position <= %s"
                "   order by position desc limit %s) as found order by position",
                (list(rooms), reader, upto, list(rooms), upto, limit),
            )
        ]
    )


async def of_user(tx: Tx, room: int, user_id: UserID) -> list[ReceiptMoved]:
    """All receipts of one user in a room."""
    return from_rows(
        await tx.fetch(f"select {_COLUMNS} from receipts where room = %s and user_id = %s", (room, user_id))
    )


def from_rows(rows: Sequence[Row]) -> list[ReceiptMoved]:
    """Receipts, from rows of their columns as `AT_EVENTS` gives them."""
    return [ReceiptMoved(*row) for row in rows]
