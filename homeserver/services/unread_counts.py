"""Unread counts without counting (`docs/how-it-works.md`): what a user has not read in a room, by thread.

The room keeps running totals of what notifies everybody; a user's number is the total now less the total where they
have read to, and what differs for them alone has rows. Here a user's base is kept in memory while they sync, moved
along by the tail, so that an event costs its readers no query.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from federation.protocol.types import UserID
from storage import unread
from storage.append_events import RoomEvents
from storage.database import Tx
from storage.unread import Loaded, ThreadCounts


class Unread(Struct):
    """What one user has not read in one room."""

    upto: int
    """The log's position that the counts are of."""
    main: ThreadCounts
    threads: dict[str, ThreadCounts] = field(default_factory=dict)
    """Those with something unread, by their root."""

    @property
    def total(self) -> tuple[int, int]:
        """Notifications and highlights of the whole room."""
        parts = [self.main.count, *(counts.count for counts in self.threads.values())]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)


async def load(tx: Tx, user_id: UserID, rooms: list[int]) -> dict[int, Unread]:
    """The user's counts in these rooms, from the database: a fixed number of queries."""
    return by_room(await unread.load(tx, user_id, rooms))


def by_room(loaded: Loaded) -> dict[int, Unread]:
    """The counts of each room."""
    return {room: Unread(loaded.upto, main, loaded.threads.get(room, {})) for room, main in loaded.main.items()}


def move_along(counts: Mapping[int, Unread], user_id: UserID, position: int, change: RoomEvents) -> bool:
    """Take an entry into account; False when the room's counts must be loaded again."""
    counted = counts.get(change.room.number)
    if counted is None or position + change.width - 1 <= counted.upto:
        return True
    for event in change.visible:
        if event.thread is not None:
            return False
        main = counted.main
        main.notify_total, main.highlight_total = event.notify_total, event.highlight_total
        if event.sender == user_id:
            main.notify_base, main.highlight_base = event.notify_total, event.highlight_total
            main.notify_own = main.highlight_own = 0
    for at, personal in change.personal:
        if personal.user_id == user_id and at > counted.upto:
            counted.main.notify_own += personal.notify
            counted.main.highlight_own += personal.highlight
    counted.upto = position + change.width - 1
    return True
