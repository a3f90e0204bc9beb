"""Entries without data of their own: what every process must forget or look up again.

Of those that are alike only the newest is kept: who reads it forgets what the others made stale, too. A process that
answers as of some position must have forgotten all until there, so the tail reads by `read_stale`.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import ClassVar, Self

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Tx

_LAST = 2**63 - 1


class Kind(IntEnum):
    """What became stale. The numbers are stored: never give one a new meaning."""

    SESSIONS = 1
    """The user's access tokens, locks or admin flag changed; `detail` is a device ID, or empty for all."""
    PROFILE = 2
    KEY_COUNTS = 3
    """One-time or fallback keys of the device in `detail` were taken or uploaded."""
    FORGOTTEN_ROOM = 4
    """The user forgot a room that they had left."""
    PUSHERS = 5
    """The user's pushers changed; of no user: those of several users did."""
    DESTINATION = 10
    """Whether the server in `detail` can be reached is not what it was; of no user."""


class Invalidated(Struct, frozen=True):
    """Something of a user is not what it was."""

    kind_of: Kind
    user_id: UserID
    detail: str = ""

    kind: ClassVar[int] = 1
    width: ClassVar[int] = 1
    rooms: ClassVar[Collection[int]] = ()
    """No room's members need to hear of it."""

    @property
    def users(self) -> Collection[UserID]:
        """The user whose it is."""
        return (self.user_id,)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        newest = {change: position for position, change in rows}
        await tx.execute(
            "insert into invalidations (position, kind, user_id, detail)"
            " select * from unnest(%s::bigint[], %s::smallint[], %s::text[], %s::text[])"
            " on conflict (kind, user_id, detail) do update set position = excluded.position",
            (
                list(newest.values()),
                [int(change.kind_of) for change in newest],
                [change.user_id for change in newest],
                [change.detail for change in newest],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that did not come again since."""
        rows = await tx.fetch(
            "select position, kind, user_id, detail from invalidations where position > %s and position <= %s"
            " order by position",
            (after, upto),
        )
        return [(position, cls(Kind(kind), UserID(user_id), detail)) for position, kind, user_id, detail in rows]

    @classmethod
    async def read_stale(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those above, too, as if at `upto`: one that came again since may have been in between before."""
        return [(min(position, upto), change) for position, change in await cls.read_range(tx, after, _LAST)]
