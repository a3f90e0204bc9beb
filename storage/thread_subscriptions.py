"""Which threads a user follows, and which they no longer do (table `thread_subscriptions`; MSC4306)."""

from collections.abc import Collection, Sequence
from typing import ClassVar, Self

from msgspec import Struct

from federation.protocol.errors import MatrixError
from federation.protocol.types import EventID, UserID
from storage.arrays import Int4, Int8, Texts
from storage.database import Memory, Row, Statement, Tx


class SubscribedAlready(MatrixError):
    """The user follows the thread already: nothing to do."""

    def __init__(self) -> None:
        super().__init__("M_UNKNOWN", "You have subscribed to this thread already", 400)


class ConflictingUnsubscription(MatrixError):
    """The user stopped following the thread after the event that a client would have them follow it for."""

    def __init__(self) -> None:
        super().__init__(
            "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION",
            "You have unsubscribed from this thread since that event",
            409,
        )


class ThreadSubscription(Struct, frozen=True):
    """A user follows a thread, or no longer does: a change in the log, which concerns them alone."""

    user_id: UserID
    room: int
    thread: EventID
    """The thread's root."""
    is_subscribed: bool
    is_automatic: bool = False
    """A client has the user follow the thread, not they themselves."""
    cause: int = 0
    """When the event came that an automatic subscription is for, as a place in the log."""
    position: int = 0
    """Where it stands in the log; set when it is read."""

    kind: ClassVar[int] = 1 << 10
    width: ClassVar[int] = 1
    rooms: ClassVar[Collection[int]] = ()

    @property
    def users(self) -> Collection[UserID]:
        """The user."""
        return (self.user_id,)

    @property
    def key(self) -> tuple[UserID, int, EventID]:
        """What there is one subscription of."""
        return self.user_id, self.room, self.thread

    @classmethod
    def preload(cls, _memory: Memory, changes: Sequence[Self]) -> Sequence[Statement]:
        """What is present."""
        return (_present(changes),)

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Sequence[Row]]
    ) -> Sequence[MatrixError | None]:
        """Refuse subscriptions that are there already, and automatic ones that an unsubscription came after."""
        present = _read_present(loaded[0])
        answers: list[MatrixError | None] = []
        for position, change in rows:
            error = change._check(present.get(change.key))
            answers.append(error)
            if error is None:
                present[change.key] = (position, change.is_subscribed, change.is_automatic)
        return answers

    def _check(self, present: tuple[int, bool, bool] | None) -> MatrixError | None:
        if present is None or not self.is_subscribed:
            return None
        position, is_subscribed, is_automatic = present
        if is_subscribed:
            return SubscribedAlready() if self.is_automatic or not is_automatic else None
        return ConflictingUnsubscription() if self.is_automatic and self.cause <= position else None

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        latest = {change.key: (at, change) for at, change in rows}
        await tx.execute(
            "insert into thread_subscriptions (position, room, is_subscribed, is_automatic, user_id, thread)"
            " select * from unnest(%s::bigint[], %s::int[], %s::bool[], %s::bool[], %s::text[], %s::text[])"
            " on conflict (user_id, room, thread) do update set position = excluded.position,"
            " is_subscribed = excluded.is_subscribed, is_automatic = excluded.is_automatic",
            (
                Int8(at for at, _ in latest.values()),
                Int4(change.room for _, change in latest.values()),
                [change.is_subscribed for _, change in latest.values()],
                [change.is_automatic for _, change in latest.values()],
                Texts(change.user_id for _, change in latest.values()),
                Texts(change.thread for _, change in latest.values()),
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that nothing newer replaced."""
        rows = await tx.fetch(
            f"select {_COLUMNS} from thread_subscriptions where position > %s and position <= %s order by position",
            (after, upto),
        )
        return [(row[0], cls._of(row)) for row in rows]

    @classmethod
    def _of(cls, row: Row) -> Self:
        position, room, is_subscribed, is_automatic, user_id, thread = row
        return cls(user_id, room, thread, is_subscribed, is_automatic, position=position)


_COLUMNS = "position, room, is_subscribed, is_automatic, user_id, thread"


def _present(changes: Sequence[ThreadSubscription]) -> Statement:
    return (
        f"select {_COLUMNS} from thread_subscriptions"
        " where (user_id, room, thread) in (select * from unnest(%s::text[], %s::int[], %s::text[]))",
        (
            Texts(change.user_id for change in changes),
            Int4(change.room for change in changes),
            Texts(change.thread for change in changes),
        ),
    )


def _read_present(rows: Sequence[Row]) -> dict[tuple[UserID, int, EventID], tuple[int, bool, bool]]:
    return {(UserID(row[4]), row[1], EventID(row[5])): (row[0], row[2], row[3]) for row in rows}


async def find(tx: Tx, user_id: UserID, room: int, thread: str) -> ThreadSubscription | None:
    """How a user stands to a thread; None where they never subscribed to it, nor unsubscribed from it."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from thread_subscriptions where user_id = %s and room = %s and thread = %s",
        (user_id, room, thread),
    )
    return None if row is None else ThreadSubscription._of(row)


async def newest(tx: Tx, user_id: UserID, after: int, upto: int, *, limit: int) -> list[ThreadSubscription]:
    """What changed in positions (after, upto], the newest first, and at most so many."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from thread_subscriptions where user_id = %s and position > %s and position <= %s"
        " order by position desc limit %s",
        (user_id, after, upto, limit),
    )
    return [ThreadSubscription._of(row) for row in rows]
