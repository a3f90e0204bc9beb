"""What users may know of rooms before they are in them (Client-Server API v1.19, "Room Summary", MSC3266)."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from federation.protocol.errors import MatrixError, NotFound
from federation.protocol.identifiers import is_room_id
from federation.protocol.types import JsonObject, RoomID, ServerName, UserID
from federation.rooms.summaries import BY_MEMBERSHIP, OPEN, RoomSummaries
from homeserver.services.remote_rooms import RemoteRooms
from homeserver.services.room_directory import RoomDirectory
from storage import memberships, rooms
from storage.database import Database, Tx
from storage.memberships import Membership

MAX_ASKED = 3
"""Servers, one after the other, of a room that this server is not in."""

_CONCERNED = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)

AskOther = Callable[[ServerName, RoomID], Awaitable[JsonObject]]
"""Asks a server in a room for its summary; raises MatrixError."""


class RoomSummaryService:
    """Summaries of single rooms, for who may have them."""

    def __init__(
        self,
        database: Database,
        summaries: RoomSummaries,
        directory: RoomDirectory,
        remote: RemoteRooms,
        ask_other: AskOther,
    ) -> None:
        self._database = database
        self._summaries = summaries
        self._directory = directory
        self._remote = remote
        self._ask_other = ask_other

    async def get(self, room: str, user_id: UserID | None, via: Sequence[str] = ()) -> JsonObject:
        """The summary of a room by its ID or alias; NotFound also where the reader may not know of it.

        For who is logged in, others are asked of a room that this server is not in: those that `via` names first.
        """
        room_id: str = room
        if room.startswith("#"):
            room_id, servers = await self._directory.resolve(room)
            via = [*via, *servers]
        if user_id is not None and await self._remote.is_outside(room_id):
            return await self._ask_others(room_id, user_id, via)
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
            joined_members = (await rooms.rows(tx, [found.number]))[found.number].joined_members
            answer = summary.as_whole_json(joined_members)
            if not await _may_know(tx, answer, user_id, membership, summary.allowed_room_ids):
                raise NotFound("Room not found")
        if user_id is not None:
            answer["membership"] = (membership or Membership.LEAVE).text
        return answer

    async def _ask_others(self, room_id: str, user_id: UserID, via: Sequence[str]) -> JsonObject:
        if not is_room_id(room_id):
            raise NotFound("Room not found")
        membership, servers = await self._remote.whom_to_ask(room_id, user_id, via)
        for server in servers[:MAX_ASKED]:
            try:
                answer = await self._ask_other(server, room_id)
            except MatrixError:
                continue
            async with self._database.read() as tx:
                may_know = await _may_know(tx, answer, user_id, membership, answer.get("allowed_room_ids", ()))
            if not may_know:
                break
            return {**answer, "membership": (membership or Membership.LEAVE).text}
        raise NotFound("Room not found")


async def _may_know(
    tx: Tx, summary: JsonObject, user_id: UserID | None, membership: Membership | None, allowed: Collection[str]
) -> bool:
    join_rule = summary.get("join_rule", "public")  # which the specification assumes where nothing is said
    if join_rule in OPEN or summary["world_readable"]:
        return True
    if user_id is None:
        return False
    if membership in _CONCERNED:
        return True
    if join_rule not in BY_MEMBERSHIP:
        return False
    joined = await memberships.joined_rooms(tx, user_id)
    known = await rooms.get_many(tx, joined)
    return not {room.room_id for room in known.values()}.isdisjoint(allowed)
