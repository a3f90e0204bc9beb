"""Keeps the user directory: a follower of the log, and what looks at all members of rooms where that is needed."""

import logging
from collections.abc import Sequence

from federation.protocol.types import ServerName
from homeserver.followers.backlog import Backlog
from storage import followers, strings, user_directory
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.followers import Work
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change
from storage.room_completeness import RoomCompleteness

logger = logging.getLogger(__name__)

GATHERS_SECONDS = 0.25
MAX_AT_ONCE = 500
"""Members of whom a room tells at once; of more it is noted that they have to be looked at."""
_OPENNESS = frozenset((("m.room.join_rules", ""), ("m.room.history_visibility", "")))


class UserDirectoryKeeper:
    """Brings the directory up to date with who is where, and what they are called."""

    name = user_directory.FOLLOWER
    kinds = (RoomEvents, RoomCompleteness, Invalidated)
    gathers_seconds = GATHERS_SECONDS

    def __init__(self, database: Database, server_name: ServerName) -> None:
        self._database = database
        self._server_name = server_name
        self._backlog = Backlog(self._work_off)

    async def begin(self, position: int) -> None:
        """Make the directory, if there is none that this version can use."""
        async with self._database.transaction() as tx:
            await followers.hold(tx, self.name)
            if await user_directory.prepare(tx):
                logger.info("the user directory is made anew")
        self._backlog.look()

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        """Note whom and which rooms these changes concern."""
        users: set[str] = set()
        large: set[int] = set()
        reopened: set[int] = set()
        for _, change in changes:
            if isinstance(change, Invalidated) and change.kind_of in (Kind.PROFILE, Kind.SESSIONS):
                users.add(change.user_id)
            elif isinstance(change, RoomCompleteness):
                large.add(change.room)
            elif isinstance(change, RoomEvents) and change.trunk:
                members = {each.state_key for each in change.trunk if each.type == "m.room.member"}
                if len(members) > MAX_AT_ONCE:
                    large.add(change.room.number)
                else:
                    users |= members
                if any((each.type, each.state_key) in _OPENNESS for each in change.trunk):
                    reopened.add(change.room.number)
        if not users and not large and not reopened:
            return None

        async def bring_up_to_date(tx: Tx) -> None:
            changed = await user_directory.set_openness(tx, reopened) if reopened else set()
            await user_directory.note_rooms(tx, large | changed)
            numbers = await strings.intern(tx, [user_id for user_id in users if user_id.startswith("@")])
            await user_directory.refresh(tx, {number: name for name, number in numbers.items()}, self._server_name)
            if large or changed:
                self._backlog.look_soon()

        return bring_up_to_date

    async def run(self) -> None:
        """Look at all members of the rooms of the backlog, until cancelled; any process may do so."""
        await self._backlog.run()

    async def _work_off(self) -> bool:
        async with self._database.read() as tx:
            if not await user_directory.has_backlog(tx):
                return False
        async with self._database.transaction() as tx:
            if not await followers.hold(tx, self.name, wait=False):
                return False
            await user_directory.work_off(tx, self._server_name)
            return True
