"""Members of a room that lacks them, who become known one by one (`incomplete_rooms.py`).

Of the state before the join the IDs of all events are known. So whose member event is at hand is known, too, where its
ID is among them: it is written as if it had come with the join.
"""

from collections.abc import Iterable

from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.types import RoomID, ServerName, UserID
from storage import late_members, remote_joins
from storage.database import Database
from storage.events import Flag, StoredEvent
from storage.late_members import LateMember
from storage.memberships import Membership
from storage.strings import remember_committed


async def learn_members(
    database: Database, server_name: ServerName, room_id: RoomID, stored: Iterable[StoredEvent]
) -> bool:
    """Know the members whom these events are about, as far as they were members of the room before the join.

    Whether any are known by that who were not. Our own users are not among them: they are told once the room is
    complete.
    """
    found = {
        event.event_id: event
        for event in stored
        if event.type == "m.room.member"
        and is_user_id(event.state_key)
        and server_name_of(event.state_key) != server_name
        and not event.flags & Flag.REJECTED
    }
    if not found:
        return False
    async with database.transaction() as tx:
        awaited = await remote_joins.find_awaited(tx, room_id, found)
        if awaited is None:
            return False
        number, version, wanted = awaited
        late = [
            LateMember(UserID(event.state_key or ""), event.position, Membership.of(event.content.get("membership")))
            for event_id, event in found.items()
            if event_id in wanted and event.room == number  # IDs are not believed to be of this room's events
        ]
        numbers, new = await late_members.write(tx, number, version, late)
    remember_committed(database.memory, numbers)
    return bool(new)
