"""Joining, inviting, leaving, kicking, banning, knocking, forgetting (Client-Server API v1.19, "Room membership")."""

from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.identifiers import third_party_invite
from homeserver.client_api.routing import requester
from homeserver.services.membership import MembershipService
from homeserver.services.room_directory import RoomDirectory
from homeserver.services.third_party_inviting import ThirdPartyInviting


class RoomMembershipAPI:
    """Who is where."""

    def __init__(
        self, memberships: MembershipService, directory: RoomDirectory, third_party: ThirdPartyInviting
    ) -> None:
        self._memberships = memberships
        self._third_party = third_party
        self._directory = directory

    async def joined_rooms(self, call: Call) -> Answer:
        """GET /joined_rooms."""
        return {"joined_rooms": await self._memberships.joined_rooms(requester(call).user_id)}

    async def join(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/join and POST /join/{roomIdOrAlias}."""
        body = await call.body(optional=True)
        room_id, via = await self._room_id(call)
        joined = await self._memberships.join(
            requester(call),
            room_id,
            reason=_reason(body),
            third_party_signed=fields.get_object(body, "third_party_signed"),
            via=via,
        )
        return {"room_id": joined}

    async def knock(self, call: Call) -> Answer:
        """POST /knock/{roomIdOrAlias}."""
        body = await call.body(optional=True)
        room_id, via = await self._room_id(call)
        knocked = await self._memberships.knock(requester(call), room_id, reason=_reason(body), via=via)
        return {"room_id": knocked}

    async def _room_id(self, call: Call) -> tuple[str, list[str]]:
        """The room, and servers that may be in it: whom the client names (`server_name` is the older word), then whom
        the alias' server names."""
        via = [value for name, value in call.query if name in ("via", "server_name")]
        room = call.path["room_id"]
        if room.startswith("#"):
            room, servers = await self._directory.resolve(room)
            via += servers
        return room, via

    async def invite(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/invite, by user ID or by address."""
        body = await call.body()
        if "user_id" not in body and "medium" in body:
            await self._third_party.invite(
                requester(call), call.path["room_id"], third_party_invite(body), reason=_reason(body)
            )
            return {}
        target = fields.get_text(body, "user_id")
        await self._memberships.invite(requester(call), call.path["room_id"], target, reason=_reason(body))
        return {}

    async def leave(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/leave."""
        body = await call.body(optional=True)
        await self._memberships.leave(requester(call), call.path["room_id"], reason=_reason(body))
        return {}

    async def kick(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/kick."""
        body = await call.body()
        target = fields.get_text(body, "user_id")
        await self._memberships.kick(requester(call), call.path["room_id"], target, reason=_reason(body))
        return {}

    async def ban(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/ban."""
        body = await call.body()
        target = fields.get_text(body, "user_id")
        await self._memberships.ban(requester(call), call.path["room_id"], target, reason=_reason(body))
        return {}

    async def unban(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/unban."""
        body = await call.body()
        target = fields.get_text(body, "user_id")
        await self._memberships.unban(requester(call), call.path["room_id"], target, reason=_reason(body))
        return {}

    async def forget(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/forget."""
        await self._memberships.forget(requester(call), call.path["room_id"])
        return {}


def _reason(body: JsonObject) -> str | None:
    return fields.find_text(body, "reason")
