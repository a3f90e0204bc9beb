"""Finding a user of ours who may do something in a room that this server has to see done there."""

from collections.abc import Callable, Mapping

from federation.protocol.auth_events import CREATE, POWER_LEVELS
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels, get_creators
from federation.protocol.types import ServerName, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from storage import memberships
from storage.database import Database
from storage.rooms import Room

MAX_LOOKED_AT = 50
"""Members who have no level of their own, and members who have one, that are looked at."""


class OwnMembers:
    """This server's users in rooms."""

    def __init__(self, database: Database, writer: RoomWriter, server_name: ServerName) -> None:
        self._database = database
        self._writer = writer
        self._server_name = server_name

    async def find(self, room: Room, required: Callable[[PowerLevels], int]) -> UserID | None:
        """A joined user of ours with the level that the room requires; None where none was found."""
        state = await self._writer.state_for(room, [CREATE, POWER_LEVELS])
        levels = PowerLevels.from_state(state.get(POWER_LEVELS), state[CREATE])
        level = required(levels)
        for user_id in await self._named(room, state, levels, level):
            return user_id
        async with self._database.read() as tx:
            local = await memberships.local_members(tx, room.number, self._server_name, limit=MAX_LOOKED_AT)
        return next((user_id for user_id in local if levels.of_user(user_id) >= level), None)

    async def _named(
        self, room: Room, state: Mapping[StateKey, VerifiedPDU], levels: PowerLevels, level: int
    ) -> list[UserID]:
        """Those of our users with a level of their own who are joined and have the level."""
        listed = content_of(state.get(POWER_LEVELS)).get("users")
        named = [*get_creators(state[CREATE]), *(listed if isinstance(listed, dict) else ())]
        ours = [
            UserID(user_id)
            for user_id in dict.fromkeys(named)
            if is_user_id(user_id) and server_name_of(user_id) == self._server_name and levels.of_user(user_id) >= level
        ][:MAX_LOOKED_AT]
        found = await self._writer.state_for(room, [("m.room.member", user_id) for user_id in ours])
        return [
            user_id for user_id in ours if content_of(found.get(("m.room.member", user_id))).get("membership") == "join"
        ]
