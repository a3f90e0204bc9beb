"""Endpoints by which users of ours are invited by other servers (Server-Server API, "Inviting to a room")."""

import orjson

from federation.inbound.authentication import FederationCall
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from federation.rooms.invited import Invitations, Invite
from federation.rooms.third_party_invites import ThirdPartyInvites
from federation.web import Answer, Call

MAX_NOTICE_BYTES = 256 * 1024
FIRST_VERSION = "1"
"""An invite that names no room version is for a room of the first or the second, whose events look alike."""


class InvitationAPI:
    """What inviting servers ask for."""

    def __init__(self, invitations: Invitations) -> None:
        self._invitations = invitations

    async def invite(self, call: FederationCall) -> Answer:
        """`PUT /v2/invite/{roomId}/{eventId}`."""
        event, version = call.json.get("event"), call.json.get("room_version")
        if event is None or version is None:
            raise InvalidInput("event and room_version must be there", "M_MISSING_PARAM")
        if not isinstance(event, dict) or not isinstance(version, str):
            raise InvalidInput("event must be an object and room_version a string", "M_BAD_JSON")
        signed = await self._receive(call, version, event, call.json.get("invite_room_state"))
        return orjson.dumps({"event": orjson.Fragment(signed)})

    async def invite_v1(self, call: FederationCall) -> Answer:
        """`PUT /v1/invite/{roomId}/{eventId}`, which old servers ask: the answer stands in an array."""
        unsigned = call.json.get("unsigned")
        room_state = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
        signed = await self._receive(call, FIRST_VERSION, call.json, room_state)
        return orjson.dumps([200, {"event": orjson.Fragment(signed)}])

    async def _receive(self, call: FederationCall, version: str, event: JsonObject, room_state: object) -> bytes:
        invite = Invite(
            room_id=call.path["room_id"],
            event_id=call.path["event_id"],
            room_version=version,
            event=event,
            room_state=room_state,
        )
        return await self._invitations.receive(call.origin, invite)


class ThirdPartyInviteAPI:
    """What inviting servers and identity servers ask for."""

    def __init__(self, invites: ThirdPartyInvites) -> None:
        self._invites = invites

    async def exchange(self, call: FederationCall) -> Answer:
        """`PUT /v1/exchange_third_party_invite/{roomId}`."""
        await self._invites.exchange(call.origin, call.path["room_id"], call.json)
        return {}

    async def bind(self, call: Call) -> Answer:
        """`PUT /v1/3pid/onbind`, which identity servers ask without a signature, and with POST."""
        await self._invites.bind(await call.body(max_bytes=MAX_NOTICE_BYTES))
        return {}
