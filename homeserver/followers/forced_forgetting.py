"""Forgets rooms for users who have left them, where the operator wants it ("`m.forget_forced_upon_leave` capability").

Whoever ended the membership, and on whichever server: all that the log tells of our users' leaves and bans.
"""

from collections.abc import Collection, Sequence

from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.types import ServerName, UserID
from storage import followers, memberships
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.followers import Work
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry
from storage.memberships import Membership

NAME = "forced forgetting"


class ForcedForgetting:
    """A follower of the log. What it does may be done again."""

    name = NAME
    kinds = (RoomEvents,)
    gathers_seconds = 0.0

    def __init__(self, log: Log, server_name: ServerName) -> None:
        self._log = log
        self._server_name = server_name

    async def begin(self, position: int) -> None:
        """Nothing is remembered."""

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        """Forget what these changes end; every process hears of it."""
        left = [each for _, change in changes if isinstance(change, RoomEvents) for each in self._left(change)]
        if not left:
            return None

        async def work(tx: Tx) -> None:
            await memberships.forget_many(tx, left)

        users = dict.fromkeys(user_id for user_id, _, _ in left)
        await self._log.append(Entry([Invalidated(Kind.FORGOTTEN_ROOM, user_id) for user_id in users], work))
        return None

    def _left(self, change: RoomEvents) -> list[tuple[UserID, int, int]]:
        """Which of our users are no longer in the room: user, room, position of the event."""
        return [
            (UserID(each.state_key), change.room.number, each.event)
            for each in change.trunk
            if each.type == "m.room.member"
            and each.membership in (Membership.LEAVE, Membership.BAN)
            and each.event is not None
            and is_user_id(each.state_key)
            and server_name_of(each.state_key) == self._server_name
        ]


async def leave_no_cursors(database: Database, names: Collection[str]) -> None:
    """Of followers that are turned off: what happens meanwhile is none of theirs when they are turned on again."""
    async with database.transaction() as tx:
        for name in names:
            await followers.forget(tx, name)
