"""Rooms that lack members for a while: the log change that says when that begins, and when it is over.

A join by way of another server may count before the room's members are here (`federation/rooms/incomplete_rooms.py`).
Who is no part of the state then may be one all the same. What comes later is written at the version of the state
before the join, as if it had been here from the start: it makes no new version, so the log has to say that it came.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar, Self

from msgspec import Struct

from federation.protocol.types import UserID
from storage import strings
from storage.database import Tx
from storage.memberships import Membership


class OwnMember(Struct, frozen=True):
    """A membership of one of our users that was not known before."""

    user_id: UserID
    membership: Membership
    event: int
    """The position of the member event."""


class RoomCompleteness(Struct, frozen=True):
    """From here on a room lacks members, or does so no longer."""

    room: int
    is_complete: bool
    own: tuple[OwnMember, ...] = ()

    kind: ClassVar[int] = 1 << 9
    width: ClassVar[int] = 1

    @property
    def rooms(self) -> Collection[int]:
        """The room."""
        return (self.room,)

    @property
    def users(self) -> Collection[UserID]:
        """Those of ours who hear of their own membership."""
        return tuple(member.user_id for member in self.own)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One after the other: they are rare, and lists of lists are no arrays."""
        for position, change in rows:
            await tx.execute(
                "insert into room_completeness (position, room, is_complete, users) values (%s, %s, %s, %s::text[])",
                (position, change.room, change.is_complete, list(change.users)),
            )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto], with the memberships as they are now."""
        rows = await tx.fetch(
            "select position, room, is_complete, users from room_completeness where position > %s and position <= %s"
            " order by position",
            (after, upto),
        )
        return [
            (position, cls(room, is_complete, await _memberships(tx, room, users) if users else ()))
            for position, room, is_complete, users in rows
        ]


async def _memberships(tx: Tx, room: int, users: Collection[str]) -> tuple[OwnMember, ...]:
    rows = await tx.fetch(
        "select strings.value, membership, event from room_state join strings on strings.id = room_state.state_key"
        " where room = %s and type = %s and line = 0 and until_version is null and membership is not null"
        " and event is not null and strings.value = any(%s::text[])",
        (room, strings.MEMBER, list(users)),
    )
    return tuple(OwnMember(UserID(user_id), Membership(membership), event) for user_id, membership, event in rows)


async def incomplete(tx: Tx) -> list[int]:
    """The rooms that lack members now."""
    rows = await tx.fetch("select room from rooms where completed_at = 0")
    return [room for (room,) in rows]


async def completions(tx: Tx) -> dict[int, int]:
    """The rooms that once lacked members: where in the log they last came to be complete."""
    rows = await tx.fetch("select room, max(position) from room_completeness where is_complete group by room")
    return dict(rows)
