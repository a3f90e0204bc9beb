"""Memberships that come about with the help of another server: leaving and knocking from outside, inviting its users
(Server-Server API, "Leaving rooms", "Knocking upon a room", "Inviting to a room", "Third-party invites").

What becomes of the user's own membership is kept by `outside.py`.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from federation.outbound.client import path_of
from federation.protocol.errors import (
    Forbidden,
    InvalidInput,
    MatrixError,
    PeerRefused,
    RemoteServerError,
    Unavailable,
)
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.member_template import Wish
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, UserID
from federation.rooms.append import Outcome, RoomWriter
from federation.rooms.handshakes import Handshakes
from federation.rooms.outside import OutsideRooms
from federation.rooms.peer_answers import Refusals, candidates, is_unknown_endpoint
from federation.rooms.stripped_state import strip_leniently
from storage.outside_memberships import OutsideMembership
from storage.rooms import Room

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 1024 * 1024
"""Of an answer to a knock or an invite."""

StrippedState = Callable[[Room], Awaitable[list[JsonObject]]]
"""What an invited server is told of a room: whole events."""


class RemoteMemberships:
    """Asks other servers for what our users want to be in their rooms."""

    def __init__(
        self,
        *,
        writer: RoomWriter,
        outside: OutsideRooms,
        handshakes: Handshakes,
        stripped_state: StrippedState,
    ) -> None:
        self._writer = writer
        self._outside = outside
        self._handshakes = handshakes
        self._client = handshakes.client
        self._server_name = handshakes.server_name
        self._stripped_state = stripped_state

    # --- from outside

    async def leave(self, wish: Wish, servers: Sequence[str], before: OutsideMembership) -> EventID:
        """Reject an invite or take back a knock. Where no server in the room can be asked, the user is rid of it
        all the same."""
        refusals = Refusals(f"leaving {wish.room_id} for {wish.user_id}")
        try:
            pdu, _ = await self._hand_in(wish, servers, refusals)
        except Unavailable:
            raise
        except MatrixError:
            logger.warning("%s left %s, which no server in the room was told", wish.user_id, wish.room_id)
            return await self._outside.leave_untold(wish, before.room_version)
        await self._outside.note(pdu, wish.user_id)
        return pdu.event_id

    async def knock(self, wish: Wish, servers: Sequence[str]) -> EventID:
        """Ask to be let in; raises what a client is told when no server helped."""
        refusals = Refusals(f"knocking at {wish.room_id} for {wish.user_id}")
        pdu, answer = await self._hand_in(wish, servers, refusals)
        told = strip_leniently(await self._handshakes.holding(answer.get("knock_room_state"), pdu), pdu)
        await self._outside.note(pdu, wish.user_id, told=told, via=candidates(servers, besides=self._server_name))
        return pdu.event_id

    async def _hand_in(self, wish: Wish, servers: Sequence[str], refusals: Refusals) -> tuple[VerifiedPDU, JsonObject]:
        """Get a template from one server after the other, and bring it the event: that and the answer."""
        for destination in candidates(servers, besides=self._server_name):
            try:
                pdu = await self._handshakes.build(wish, destination)
                return pdu, await self._send(destination, pdu, wish.membership)
            except Unavailable:
                raise
            except MatrixError as error:
                refusals.note(destination, error)
        raise refusals.error

    async def _send(self, destination: ServerName, pdu: VerifiedPDU, membership: str) -> JsonObject:
        newest = "v1" if membership == "knock" else "v2"
        path = path_of(f"/_matrix/federation/{newest}/send_{membership}/{{}}/{{}}", pdu.room_id, pdu.event_id)
        try:
            return await self._client.put(destination, path, pdu.json, max_bytes=MAX_ANSWER_BYTES, patient=True)
        except PeerRefused as error:
            if newest == "v1" or not is_unknown_endpoint(error):
                raise
        path = path_of(f"/_matrix/federation/v1/send_{membership}/{{}}/{{}}", pdu.room_id, pdu.event_id)
        return await self._client.put(destination, path, pdu.json, max_bytes=MAX_ANSWER_BYTES, patient=True)

    # --- from inside

    async def invite(self, draft: Draft) -> EventID:
        """Invite a user of another server, who has to sign the invite before it is in the room.

        Raises what the room's rules say, and what a client is told when the server refuses.
        """
        room = await self._writer.get_room(draft.room_id)
        if draft.state_key is None or not is_user_id(draft.state_key):
            raise InvalidInput("Not a valid user ID")
        destination = server_name_of(draft.state_key)
        pdu = await self._writer.build(replace(draft, names_origin=True))
        stripped = await self._stripped_state(room)
        try:
            answer = await self._offer(destination, pdu, stripped)
        except PeerRefused as error:
            raise _refused_invite(error) from None
        try:
            signed = await self._handshakes.countersigned(pdu, answer.get("event"), destination)
        except InvalidInput as error:
            raise RemoteServerError(error.message, is_transient=False) from None
        received = await self._writer.append_signed(signed)
        if received.outcome in (Outcome.REJECTED, Outcome.SOFT_FAILED):
            raise Forbidden(received.reason)
        return signed.event_id

    async def _offer(self, destination: ServerName, pdu: VerifiedPDU, stripped: list[JsonObject]) -> JsonObject:
        path = path_of("/_matrix/federation/v2/invite/{}/{}", pdu.room_id, pdu.event_id)
        body: JsonObject = {"event": pdu.json, "invite_room_state": stripped, "room_version": pdu.rules.version}
        try:
            return await self._client.put(destination, path, body, max_bytes=MAX_ANSWER_BYTES, patient=True)
        except PeerRefused as error:
            # Version 1 says nothing of the room's version, which has to be 1 or 2 then.
            is_old = pdu.rules.event_id_format == "server" and error.status in (400, 404, 405)
            if not is_old or error.errcode in ("M_FORBIDDEN", "M_INCOMPATIBLE_ROOM_VERSION"):
                raise
        path = path_of("/_matrix/federation/v1/invite/{}/{}", pdu.room_id, pdu.event_id)
        return await self._client.put(
            destination,
            path,
            {**pdu.json, "unsigned": {"invite_room_state": stripped}},
            max_bytes=MAX_ANSWER_BYTES,
            patient=True,
        )

    async def exchange_third_party_invite(
        self, room_id: RoomID, sender: UserID, target: UserID, third_party_invite: JsonObject
    ) -> None:
        """Have the inviting server turn a third-party invite into an invite, which then comes to us as any other."""
        body: JsonObject = {
            "type": "m.room.member",
            "room_id": room_id,
            "sender": sender,
            "state_key": target,
            "content": {"membership": "invite", "third_party_invite": third_party_invite},
        }
        path = path_of("/_matrix/federation/v1/exchange_third_party_invite/{}", room_id)
        refusals = Refusals(f"accepting a third-party invite to {room_id} for {target}")
        destination = server_name_of(sender)
        try:
            await self._client.put(destination, path, body, patient=True)
        except Unavailable:
            raise
        except MatrixError as error:
            refusals.note(destination, error)
            raise refusals.error from None


def _refused_invite(error: PeerRefused) -> MatrixError:
    """What the client is told whose invite the other server does not take."""
    if error.status == 403:
        return Forbidden(error.error, error.errcode if error.errcode == "M_INVITE_BLOCKED" else "M_FORBIDDEN")
    if error.errcode in ("M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION"):
        return MatrixError(error.errcode, error.error, 400)
    return error
