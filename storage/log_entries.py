"""What the log takes: entries, and the changes that they are made of (`log.py` writes them)."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol, Self

from msgspec import Struct, field

from federation.protocol.errors import MatrixError
from federation.protocol.types import UserID
from storage.database import Memory, Row, Statement, Tx

Work = Callable[[Tx], Awaitable[Any]]


class Change(Protocol):
    """One kind of thing that somebody may have to hear about, with its table's bulk insert."""

    kind: ClassVar[int]
    """A bit of its own: a batch's announcement names the kinds that it holds.

    A change that may take much memory has `held_bytes` besides: the tail keeps fewer of them. One after which little is
    different may say so by `is_plain`: most views of the tail need not be told of it. One that the tail has to hear of
    although it came again later has `read_stale`, which the tail reads by instead of `read_range`.
    """

    @property
    def width(self) -> int:
        """How many positions it takes."""

    @property
    def rooms(self) -> Collection[int]:
        """The rooms whose members it concerns."""

    @property
    def users(self) -> Collection[UserID]:
        """The users whom it concerns besides."""

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """Write changes at their positions, in a number of statements that does not grow with theirs."""

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """What other processes appended in positions (after, upto], in order."""


class Conditional(Protocol):
    """A change that the database may refuse when its turn comes, because the world moved on."""

    @classmethod
    def preload(cls, memory: Memory, changes: Sequence[Self]) -> Sequence[Statement]:
        """Statements whose rows `admit` gets: they travel with the lock, if they can, and see what the lock shows."""

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Sequence[Row]]
    ) -> Sequence[MatrixError | None]:
        """For each change, under the log's lock: None, or why it may not be written.

        `loaded` has the rows of each statement of `preload`.
        """


class Conflict(MatrixError):
    """What an entry expected is no longer so; nothing was written. The caller looks again and retries."""

    def __init__(self, message: str) -> None:
        super().__init__("M_UNKNOWN", message, 503, {"retry_after_ms": 100})


class AlreadyWritten(Conflict):
    """A unique key of the entry is taken: it was written before, or another process was first."""


class Entry(Struct):
    """All that one request changes.

    `work` runs first in the same transaction, for writes that nobody hears of (or that decide what is heard): it may
    raise, which refuses this entry alone, and it may add to `changes`, within the positions that `width` reserves.
    """

    changes: list[Change] = field(default_factory=list)
    work: Work | None = None
    width: int = 0
    """Positions to reserve; at least what `changes` take."""
    on_refused: Callable[[], None] | None = None
    """Called at once when the entry is not written, before any later entry is looked at."""

    @property
    def reserved(self) -> int:
        """How many positions the entry may use: at least one, so that every entry has a place."""
        return max(self.width, sum(change.width for change in self.changes), 1)

    @property
    def stands_alone(self) -> bool:
        """Whether it is written by itself: work that a refused change would have to undo."""
        return self.work is not None and any(hasattr(change, "admit") for change in self.changes)


class Appended(Struct, frozen=True):
    """An entry that is committed."""

    position: int
    """The last position that it took: a sync from here does not see it again."""
    result: Any
    """What its `work` returned."""


class Batch(Struct, frozen=True):
    """What the tail is told of one commit of its own process."""

    before: int
    """The newest position when the batch took the lock."""
    position: int
    changes: Sequence[tuple[int, Change]]
