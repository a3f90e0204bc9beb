"""What users may know of rooms before they are in them (Client-Server API v1.19, "Room Summary", MSC3266)."""

from collections.abc import Sequence

from federation.protocol.errors import NotFound
from federation.protocol.identifiers import is_room_id
from federation.protocol.types import JsonObject, UserID
from federation.rooms.remote_spaces import RemoteSpaces
from federation.rooms.spaces import SpaceReader, SpaceRoom
from homeserver.services.remote_rooms import RemoteRooms
from homeserver.services.room_directory import RoomDirectory
from storage import memberships, rooms
from storage.database import Database, Tx
from storage.memberships import Membership

_CONCERNED = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)


class RoomSummaryService:
    """Summaries of single rooms, for who may have them."""

    def __init__(
        self,
        database: Database,
        reader: SpaceReader,
        directory: RoomDirectory,
        outside: RemoteRooms,
        remote: RemoteSpaces,
    ) -> None:
        self._database = database
        self._reader = reader
        self._directory = directory
        self._outside = outside
        self._remote = remote

    async def get(self, room: str, user_id: UserID | None, via: Sequence[str] = ()) -> JsonObject:
        """The summary of a room by its ID or alias; NotFound also where the reader may not know of it.

        For who is logged in, others are asked of a room that this server is not in: those that `via` names first.
        """
        room_id: str = room
        if room.startswith("#"):
            room_id, servers = await self._directory.resolve(room)
            via = [*via, *servers]
        if user_id is not None and await self._outside.is_outside(room_id):
            found, membership = await self._ask_others(room_id, user_id, via)
        else:
            found, membership = await self._read(room_id, user_id)
        async with self._database.read() as tx:
            if found is None or not await _may_know(tx, found, user_id, membership):
                raise NotFound("Room not found")
        if user_id is None:
            return found.summary
        return found.summary | {"membership": (membership or Membership.LEAVE).text}

    async def _read(self, room_id: str, user_id: UserID | None) -> tuple[SpaceRoom | None, Membership | None]:
        """What this server knows of the room, and the user's membership."""
        async with self._database.read() as tx:
            room = await rooms.find(tx, room_id)
            if room is None:
                return None, None
            found = await self._reader.get_many(tx, [room.number])
            membership = None if user_id is None else await memberships.membership_of(tx, room.number, user_id)
            return found.get(room.room_id), membership

    async def _ask_others(
        self, room_id: str, user_id: UserID, via: Sequence[str]
    ) -> tuple[SpaceRoom | None, Membership | None]:
        """What another server says of the room, and the user's invite or knock."""
        if not is_room_id(room_id):
            return None, None
        membership, servers = await self._outside.whom_to_ask(room_id, user_id, via)
        told = await self._remote.find(room_id, servers, again=True)
        return None if told is None else told.room, membership


async def _may_know(tx: Tx, room: SpaceRoom, user_id: UserID | None, membership: Membership | None) -> bool:
    if room.is_open or membership in _CONCERNED:
        return True
    if user_id is None or not room.allows_members_of:
        return False
    joined = await memberships.joined_rooms(tx, user_id)
    known = await rooms.get_many(tx, joined)
    return not {each.room_id for each in known.values()}.isdisjoint(room.allows_members_of)
