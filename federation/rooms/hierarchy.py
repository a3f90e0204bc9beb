"""A space and its children, as another server may know them (Server-Server API v1.18, "Spaces").

Told is of rooms that this server is in. Another server may know of a room that anybody may join, knock at or read, that
one of its users is in, invited to or knocks at, or that members of a room may join which it is in; it may not where the
room's access control list denies it.
"""

from collections.abc import Collection, Mapping, Sequence

from federation.protocol.errors import NotFound
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.server_access import SERVER_ACL
from federation.rooms.spaces import SpaceReader, SpaceRoom
from storage import events, memberships, room_state, rooms
from storage.database import Database, Tx

MAX_SUMMARIES = 100
"""Of a space's children, so many are described."""


class Hierarchy:
    """Reads spaces for other servers."""

    def __init__(self, database: Database, spaces: SpaceReader, server_name: ServerName) -> None:
        self._database = database
        self._spaces = spaces
        self._server_name = server_name

    async def read(self, origin: ServerName, room_id: str, *, suggested_only: bool) -> JsonObject:
        """A room and, if it is a space, its children; raises NotFound for one that the server may not know of."""
        async with self._database.read() as tx:
            parent, is_accessible = (await self._look(tx, origin, [room_id])).get(RoomID(room_id), (None, False))
            if parent is None or not is_accessible:
                raise NotFound("There is no such room")
            if parent.is_space:
                (parent,) = await self._spaces.with_children(tx, [parent])
            children = parent.children_among(suggested_only=suggested_only)
            named = [child.room_id for child in children if child.room_id != room_id][:MAX_SUMMARIES]
            known = await self._look(tx, origin, named)
        told = [known[child] for child in named if child in known]
        return {
            "room": parent.as_json(suggested_only=suggested_only),
            "children": [room.summary for room, is_accessible in told if is_accessible],
            "inaccessible_children": [room.room_id for room, is_accessible in told if not is_accessible],
        }

    async def _look(self, tx: Tx, origin: ServerName, room_ids: Sequence[str]) -> dict[RoomID, tuple[SpaceRoom, bool]]:
        """Those of these rooms that this server is in, and whether the server that asks may know of them."""
        ours = await memberships.of_server(tx, room_ids, self._server_name)
        numbers = await rooms.find_many(tx, [room_id for room_id, is_joined in ours.items() if is_joined])
        found = await self._spaces.get_many(tx, numbers.values())
        doors = {allowed for room in found.values() for allowed in room.allows_members_of}
        theirs = await memberships.of_server(tx, {*found, *doors}, origin)
        denied = await _denying(tx, numbers.values(), origin)
        return {
            room_id: (room, numbers[room_id] not in denied and _may_know(room, theirs))
            for room_id, room in found.items()
        }


def _may_know(room: SpaceRoom, theirs: Mapping[RoomID, bool]) -> bool:
    return (
        room.is_open
        or room.room_id in theirs
        or any(theirs.get(RoomID(allowed), False) for allowed in room.allows_members_of)
    )


async def _denying(tx: Tx, numbers: Collection[int], origin: ServerName) -> set[int]:
    """Those of these rooms whose access control list denies the server."""
    states = await room_state.current_of_many(tx, numbers, keys=[SERVER_ACL])
    held = await events.by_positions(tx, [state[SERVER_ACL] for state in states.values() if SERVER_ACL in state])
    return {
        number
        for number, state in states.items()
        if SERVER_ACL in state and not ServerACL(held[state[SERVER_ACL]].content).allows(origin)
    }
