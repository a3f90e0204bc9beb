"""How many unread notifications users have, kept for those who are told of it now and then."""

from collections import OrderedDict
from collections.abc import Collection

from federation.protocol.types import UserID
from storage import badges
from storage.database import Database, Tx

MAX_USERS = 20_000


class Badges:
    """The counts, as of the place in the log up to which its follower has looked at it, or a later one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counts: OrderedDict[UserID, tuple[int, int]] = OrderedDict()
        """With the position that each is of at least."""
        self._told: OrderedDict[UserID, int] = OrderedDict()
        self._forgotten = 0

    def forget(self, user_id: UserID) -> None:
        """The user has read something, or was."""
        self._forgotten += 1
        self._counts.pop(user_id, None)

    def add(self, user_id: UserID, position: int) -> None:
        """An event at this position notifies the user."""
        count = self._counts.get(user_id)
        if count is not None and position > count[1]:
            self._counts[user_id] = (count[0] + 1, position)

    async def load(self, tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, int]:
        """The counts of these users, from memory as a rule."""
        found = {user_id: self._counts[user_id][0] for user_id in user_ids if user_id in self._counts}
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            forgotten = self._forgotten
            totals, position = await badges.totals(tx, missing)
            found.update(totals)
            if forgotten == self._forgotten:  # else what was read may be older than what somebody has read meanwhile
                for user_id, count in totals.items():
                    self._counts[user_id] = (count, position)
                while len(self._counts) > MAX_USERS:
                    self._counts.popitem(last=False)
        return found

    async def get(self, user_id: UserID) -> int:
        """One user's count."""
        known = self._counts.get(user_id)
        if known is not None:
            return known[0]
        async with self._database.read() as tx:
            return (await self.load(tx, [user_id]))[user_id]

    def told(self, user_id: UserID) -> int | None:
        """What the user's gateways were told last; None where that is not known."""
        return self._told.get(user_id)

    def note_told(self, user_id: UserID, count: int) -> None:
        """A gateway was told."""
        self._told[user_id] = count
        self._told.move_to_end(user_id)
        if len(self._told) > MAX_USERS:
            self._told.popitem(last=False)
