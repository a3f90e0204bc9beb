"""What users may know of rooms before they are in them (Client-Server API v1.19, "Room Summary", MSC3266)."""

from federation.protocol.errors import NotFound
from federation.protocol.types import JsonObject, UserID
from federation.rooms.summaries import RoomSummaries, Summary
from homeserver.services.room_directory import RoomDirectory
from storage import memberships, rooms
from storage.database import Database, Tx
from storage.memberships import Membership

_OPEN = frozenset(("public", "knock", "knock_restricted"))
_BY_MEMBERSHIP = frozenset(("restricted", "knock_restricted"))
_CONCERNED = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)


class RoomSummaryService:
    """Summaries of single rooms, for who may have them."""

    def __init__(self, database: Database, summaries: RoomSummaries, directory: RoomDirectory) -> None:
        self._database = database
        self._summaries = summaries
        self._directory = directory

    async def get(self, room: str, user_id: UserID | None) -> JsonObject:
        """The summary of a room by its ID or alias; NotFound also where the reader may not know of it."""
        room_id: str = room
        if room.startswith("#"):
            room_id, _ = await self._directory.resolve(room)
        async with self._database.read() as tx:
            found = await rooms.find(tx, room_id)
            summary = None
            if found is not None:
                summary = (await self._summaries.get_many(tx, [found.number])).get(found.number)
            if found is None or summary is None:
                raise NotFound("Room not found")
            membership = None
            if user_id is not None:
                membership = await memberships.membership_of(tx, found.number, user_id)
            if not await self._may_know(tx, summary, user_id, membership):
                raise NotFound("Room not found")
            joined_members = (await rooms.rows(tx, [found.number]))[found.number].joined_members
        answer = _as_json(summary, joined_members)
        if user_id is not None:
            answer["membership"] = (membership or Membership.LEAVE).text
        return answer

    async def _may_know(self, tx: Tx, summary: Summary, user_id: UserID | None, membership: Membership | None) -> bool:
        if summary.join_rule in _OPEN or summary.world_readable:
            return True
        if user_id is None:
            return False
        if membership in _CONCERNED:
            return True
        if summary.join_rule not in _BY_MEMBERSHIP:
            return False
        joined = await memberships.joined_rooms(tx, user_id)
        known = await rooms.get_many(tx, joined)
        return not {room.room_id for room in known.values()}.isdisjoint(summary.allowed_room_ids)


def _as_json(summary: Summary, joined_members: int) -> JsonObject:
    answer = summary.as_json(joined_members) | {"room_version": summary.room.rules.version}
    if summary.encryption is not None:
        answer["encryption"] = summary.encryption
    if summary.join_rule in _BY_MEMBERSHIP:
        answer["allowed_room_ids"] = list(summary.allowed_room_ids)
    return answer
