"""Restricted joins: whether somebody meets a room's conditions, and who of ours vouches for them ("Restricted rooms").

For users of every server: what our own client asks for and what another server asks for is decided alike.
"""

from federation.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.identifiers import is_room_id
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import JsonObject, RoomID, ServerName, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from federation.rooms.own_members import OwnMembers
from storage import memberships
from storage.database import Database
from storage.rooms import Room


class RestrictedJoins:
    """Decides on joins that somebody of this server has to vouch for."""

    def __init__(self, database: Database, writer: RoomWriter, server_name: ServerName) -> None:
        self._database = database
        self._writer = writer
        self._server_name = server_name
        self._members = OwnMembers(database, writer, server_name)

    async def needs_authoriser(self, room: Room, user_id: UserID) -> bool:
        """Whether the user can come in by the room's conditions alone: it has some, and they are not invited."""
        state = await self._writer.state_for(room, [JOIN_RULES, ("m.room.member", user_id)])
        membership = content_of(state.get(("m.room.member", user_id))).get("membership")
        return is_restricted(room, content_of(state.get(JOIN_RULES))) and membership not in ("join", "invite", "ban")

    async def check_conditions(self, room: Room, user_id: UserID) -> None:
        """Raise Forbidden unless the user meets a condition, M_UNABLE_TO_AUTHORISE_JOIN where we cannot tell."""
        join_rules = content_of((await self._writer.state_for(room, [JOIN_RULES])).get(JOIN_RULES))
        wanted = allowed_rooms(join_rules)
        async with self._database.read() as tx:
            joined = await memberships.joined_among(tx, user_id, wanted, self._server_name)
        if any(joined.values()):
            return
        if len(joined) < len(wanted):
            raise MatrixError("M_UNABLE_TO_AUTHORISE_JOIN", "This server is not in the rooms whose members may join")
        raise Forbidden(f"{user_id} is in none of the rooms whose members may join")

    async def find_authoriser(self, room: Room) -> UserID:
        """A joined user of ours who may invite; raises M_UNABLE_TO_GRANT_JOIN where there is none."""
        user_id = await self._members.find(room, lambda levels: levels.invite)
        if user_id is None:
            raise _unable_to_grant("Nobody of this server may let anybody in")
        return user_id

    async def check_authoriser(self, room: Room, user_id: UserID) -> None:
        """Raise M_UNABLE_TO_GRANT_JOIN unless this user of ours is joined and may invite."""
        member_key: StateKey = ("m.room.member", user_id)
        state = await self._writer.state_for(room, [CREATE, POWER_LEVELS, member_key])
        levels = PowerLevels.from_state(state.get(POWER_LEVELS), state[CREATE])
        is_joined = content_of(state.get(member_key)).get("membership") == "join"
        if not is_joined or levels.of_user(user_id) < levels.invite:
            raise _unable_to_grant(f"{user_id} may not let anybody in")


def _unable_to_grant(message: str) -> MatrixError:
    return MatrixError("M_UNABLE_TO_GRANT_JOIN", message)


def is_restricted(room: Room, join_rules: JsonObject) -> bool:
    """Whether the room's join rule has conditions that its version knows of."""
    join_rule, rules = join_rules.get("join_rule"), room.rules
    return (join_rule == "restricted" and rules.restricted_joins) or (
        join_rule == "knock_restricted" and rules.knock_restricted
    )


def allowed_rooms(join_rules: JsonObject) -> set[RoomID]:
    """The rooms whose members may join."""
    allow = join_rules.get("allow")
    return {
        condition["room_id"]
        for condition in (allow if isinstance(allow, list) else [])
        if isinstance(condition, dict)
        and condition.get("type") == "m.room_membership"
        and is_room_id(condition.get("room_id"))
    }
