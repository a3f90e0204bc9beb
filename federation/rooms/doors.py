"""Whether a room takes events from a server: we must be in it, and its access control list must allow the server.

Asked for every event and many EDUs, so what the answer depends on is remembered, room by room. As a view of the log it
is forgotten with every change to the list and to the memberships of our own users.
"""

from collections import OrderedDict

from msgspec import Struct

from federation.protocol.errors import Forbidden
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import ServerName
from storage import memberships, room_state
from storage.append_events import RoomEvents
from storage.database import Database
from storage.figures import Figures, Lookups
from storage.log_entries import Change
from storage.memberships import Membership
from storage.room_completeness import RoomCompleteness
from storage.rooms import Room

MAX_REMEMBERED = 20_000

_ACL = ("m.room.server_acl", "")


class _Door(Struct, frozen=True):
    acl: ServerACL | None
    is_ours: bool
    """One of our users is joined."""


class RoomDoors:
    """What was looked up of rooms, newest used last."""

    def __init__(self, database: Database, server_name: ServerName) -> None:
        self._database = database
        self._server_name = server_name
        self._doors: OrderedDict[int, _Door] = OrderedDict()
        self._changes = 0
        self._lookups = Lookups("room_doors")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._doors))

    def apply(self, _position: int, change: Change) -> None:
        """A view of the log."""
        if isinstance(change, RoomCompleteness):
            self._changes += 1
            self._doors.pop(change.room, None)
        if not isinstance(change, RoomEvents):
            return
        for each in change.trunk:
            is_own_member = each.type == "m.room.member" and each.state_key.endswith(f":{self._server_name}")
            if is_own_member or (each.type, each.state_key) == _ACL:
                self._changes += 1
                door = self._doors.get(change.room.number)
                if door is not None and not (door.is_ours and each.membership is Membership.JOIN):
                    del self._doors[change.room.number]

    async def is_ours(self, room: Room) -> bool:
        """Whether we are in the room."""
        return (await self._find(room)).is_ours

    async def check(self, room: Room, origin: ServerName) -> None:
        """Raise Forbidden unless the room takes events from this server here."""
        door = await self._find(room)
        if not door.is_ours:
            raise Forbidden("This server is not in the room")
        if door.acl is not None and not door.acl.allows(origin):
            raise Forbidden("The room's access control list denies the server")

    async def _find(self, room: Room) -> _Door:
        door = self._doors.get(room.number)
        self._lookups.note(is_hit=door is not None)
        if door is not None:
            self._doors.move_to_end(room.number)
            return door
        changes = self._changes
        async with self._database.read() as tx:
            stored = (await room_state.current_events(tx, room.number, [_ACL])).get(_ACL)
            members = await memberships.local_members(tx, room.number, self._server_name, limit=1)
        door = _Door(None if stored is None else ServerACL(stored.content), bool(members))
        if changes == self._changes:  # else what was read may be older than what was forgotten
            self._doors[room.number] = door
            while len(self._doors) > MAX_REMEMBERED:
                self._doors.popitem(last=False)
        return door
