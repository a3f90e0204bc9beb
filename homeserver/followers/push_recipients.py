"""Who of a shard's users has pushers, and which of them are in which room, without asking for each event.

Kept by following the log, in its order. A room is loaded by a query when something happens in it, many rooms at once;
from then on it costs nothing but a look at those of its members who have pushers.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from msgspec import Struct, field

from federation.protocol.types import UserID
from federation.rooms import notices
from federation.rooms.notices import RoomFacts
from storage import pushers, pushes
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.memberships import Membership
from storage.pushers import Pusher

MAX_ROOMS = 20_000
MAX_MEMBERS = 200_000
"""Of all rooms that are remembered."""
MAX_USERS = 10_000
"""Whose pushers are remembered."""

_FACTS = frozenset((*(event_type for event_type, _ in notices.FACTS), "m.room.member"))
"""What changes them."""


class RecipientsIn(Struct):
    """A room's members who have pushers."""

    members: dict[UserID, int] = field(default_factory=dict)
    """Each with a version of the room since which they surely were joined."""
    facts: RoomFacts | None = None
    """None until somebody asks."""
    has_changed: bool = False
    """The facts are those of before the last changes that were looked at."""


class PushRecipients:
    """Those of one shard."""

    def __init__(self, database: Database, shard: int) -> None:
        self._database = database
        self._shard = shard
        self._rooms: OrderedDict[int, RecipientsIn] = OrderedDict()
        self._members = 0
        self._pushers: OrderedDict[UserID, list[Pusher]] = OrderedDict()
        self.users: set[UserID] = set()
        """Everybody with a pusher."""

    async def begin(self) -> None:
        """Begin anew, as of now."""
        self._rooms.clear()
        self._pushers.clear()
        self._members = 0
        async with self._database.read() as tx:
            self.users = {user for user in await pushers.all_users(tx) if pushes.shard_of(user) == self._shard}

    async def look_again(self, user_ids: Iterable[UserID]) -> Collection[UserID]:
        """These users may have got pushers, changed them, or lost them; of no user: somebody has lost some. Those who
        had none before."""
        changed = set(user_ids)
        if UserID("") in changed:
            await self.begin()
            return ()
        for user_id in changed:
            self._pushers.pop(user_id, None)
        async with self._database.read() as tx:
            found = await pushers.of_users(tx, changed)
            new = found.keys() - self.users
            for number, user_id, since in await pushers.joined_rooms_of(tx, new) if new else ():
                room = self._rooms.get(number)
                if room is not None and user_id not in room.members:
                    room.members[user_id] = since
                    self._members += 1
        self.users -= changed - found.keys()
        self.users |= new
        for user_id, of_user in found.items():
            self._keep_pushers(user_id, of_user)
        return new

    # --- rooms

    async def load(self, tx: Tx, numbers: Collection[int]) -> None:
        """Know these rooms."""
        missing = [number for number in numbers if number not in self._rooms]
        if missing:
            loaded = {number: RecipientsIn() for number in missing}
            for number, user_id, since in await pushers.members_with(tx, missing):
                if user_id in self.users:
                    loaded[number].members[user_id] = since
            self._rooms.update(loaded)
            self._members += sum(len(room.members) for room in loaded.values())
        for number in numbers:
            self._rooms.move_to_end(number)

    async def load_facts(self, tx: Tx, numbers: Collection[int]) -> None:
        """Know what stands in those of these rooms, which are known, that have recipients."""
        missing = [
            number
            for number in numbers
            if (room := self._rooms.get(number)) and room.members and (room.facts is None or room.has_changed)
        ]
        if missing:
            found = await notices.facts_of(tx, missing)
            for number in missing:
                self._rooms[number].facts = found.get(number)
                self._rooms[number].has_changed = False

    def knows_of_nobody(self, number: int) -> bool:
        """Whether the room is known, and nobody there has a pusher."""
        room = self._rooms.get(number)
        return room is not None and not room.members

    def in_room(self, number: int) -> RecipientsIn:
        """A room's recipients; nobody where it is not known."""
        return self._rooms.get(number) or RecipientsIn()

    def forget_room(self, number: int) -> None:
        """More is known of the room than was."""
        room = self._rooms.pop(number, None)
        self._members -= 0 if room is None else len(room.members)

    def drop_oldest(self) -> None:
        """Remember no more than there is room for."""
        while len(self._rooms) > MAX_ROOMS or (self._members > MAX_MEMBERS and len(self._rooms) > 1):
            _, room = self._rooms.popitem(last=False)
            self._members -= len(room.members)

    def apply(self, change: RoomEvents) -> None:
        """A room's current state changed."""
        room = self._rooms.get(change.room.number)
        if room is None:
            return
        for entry in change.trunk:
            if entry.type in _FACTS:
                room.has_changed = True
            if entry.type != "m.room.member" or entry.state_key not in self.users:
                continue
            user_id = UserID(entry.state_key)
            if entry.membership is not Membership.JOIN:
                self._members -= room.members.pop(user_id, None) is not None
            elif user_id not in room.members:
                room.members[user_id] = entry.since
                self._members += 1

    # --- pushers

    async def pushers_of(self, tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, list[Pusher]]:
        """The pushers of these users, from memory as a rule."""
        found = {user_id: self._pushers[user_id] for user_id in user_ids if user_id in self._pushers}
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            loaded = await pushers.of_users(tx, missing)
            for user_id in missing:
                found[user_id] = loaded.get(user_id, [])
                self._keep_pushers(user_id, found[user_id])
        return found

    def _keep_pushers(self, user_id: UserID, of_user: list[Pusher]) -> None:
        self._pushers[user_id] = of_user
        if len(self._pushers) > MAX_USERS:
            self._pushers.popitem(last=False)
