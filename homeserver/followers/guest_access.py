"""Has guests leave rooms that are no longer open to them ("Guest Access", server behaviour).

Whoever closed the room, and on whichever server: all that the log tells of `m.room.guest_access`.
"""

from collections.abc import Sequence

from homeserver.services.member_upkeep import MemberUpkeep
from storage.append_events import RoomEvents
from storage.followers import Work
from storage.log_entries import Change

NAME = "guest access"


class GuestAccess:
    """A follower of the log. What it does may be done again."""

    name = NAME
    kinds = (RoomEvents,)
    gathers_seconds = 0.0

    def __init__(self, upkeep: MemberUpkeep) -> None:
        self._upkeep = upkeep

    async def begin(self, position: int) -> None:
        """Nothing is remembered."""

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        """Look at the rooms of which these changed the access for guests, as it is now."""
        rooms = {
            change.room.room_id
            for _, change in changes
            if isinstance(change, RoomEvents) and any(each.type == "m.room.guest_access" for each in change.trunk)
        }
        for room_id in sorted(rooms):
            await self._upkeep.remove_guests(room_id)
        return None
