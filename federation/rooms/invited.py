"""Our users are invited by other servers (Server-Server API, "Inviting to a room").

The invite is signed by us once it is what it says: of this room and ID, by a user of the server that brings it, for a
user of ours who takes it. Of a room that we are not in, a row of `outside_memberships` is all that we keep.
"""

import logging
from collections.abc import Awaitable, Callable, Collection

from msgspec import Struct

from federation.outbound.keyring import VerifyEvents
from federation.protocol import event_format, signatures
from federation.protocol.auth_events import CREATE
from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName, UserID
from federation.rooms.outside import OutsideRooms
from federation.rooms.resident import Resident, check_member_event, incompatible, verify_whole
from federation.rooms.stripped_state import MAX_ENTRIES, strip, strip_leniently
from storage import accounts, outside_memberships, rooms
from storage.database import Database

logger = logging.getLogger(__name__)

MAX_PENDING = 1_000
"""Invites of one server that a user of ours has not answered yet: the user's first sync shows all of them."""
MAX_PENDING_BYTES = 4 * 1024 * 1024
"""Of what these tell of their rooms, which few take more than some thousand bytes for."""

MayBeInvited = Callable[[UserID, UserID], Awaitable[None]]
"""Raises M_INVITE_BLOCKED where the first user, ours, takes no invites from the second."""


class Invite(Struct, frozen=True, kw_only=True):
    """What another server brings."""

    room_id: str
    event_id: str
    """Both as the path says."""
    room_version: str
    event: JsonObject
    room_state: object
    """`invite_room_state`, unchecked."""


class Invitations:
    """Takes invites for our users."""

    def __init__(
        self,
        *,
        database: Database,
        outside: OutsideRooms,
        resident: Resident,
        verify_events: VerifyEvents,
        may_be_invited: MayBeInvited,
        signer: tuple[ServerName, SigningKey],
    ) -> None:
        self._database = database
        self._outside = outside
        self._resident = resident
        self._verify_events = verify_events
        self._may_be_invited = may_be_invited
        self._server_name, self._signing_key = signer

    async def receive(self, origin: ServerName, invite: Invite) -> bytes:
        """The JSON of the invite signed by us; its user hears of it, here and now where we are not in the room.

        Raises M_INCOMPATIBLE_ROOM_VERSION, M_INVALID_PARAM for what is no such invite, Forbidden where the user or the
        room's access control list does not take it.
        """
        rules = ROOM_VERSIONS.get(invite.room_version)
        if rules is None:
            raise incompatible(invite.room_version)
        pdu = event_format.parse(invite.event, rules)
        check_member_event(pdu, invite.room_id, invite.event_id, "invite")
        target = pdu.state_key
        if server_name_of(pdu.sender) != origin:
            raise InvalidInput("The invite is not by a user of the server that brings it")
        if not is_user_id(target) or server_name_of(target) != self._server_name:
            raise InvalidInput("The invite is not for a user of this server")
        is_resident = await self._is_resident(origin, pdu)
        verified = await verify_whole(self._verify_events, pdu)
        await self._check_takes(origin, target, verified.sender)
        told = await self._told(verified, invite.room_state)
        signed = signatures.add_signature(verified, self._server_name, self._signing_key)
        if not is_resident:
            await self._outside.note(signed, target, told=told, via=(origin,))
        logger.info("%s invited %s to %s", pdu.sender, target, pdu.room_id)
        return signed.canonical

    async def _is_resident(self, origin: ServerName, pdu: PDU) -> bool:
        """Whether we are in the room: then the invite comes again, as every event of the room does."""
        async with self._database.read() as tx:
            room = await rooms.find(tx, pdu.room_id)
        if room is None:
            return False
        if room.rules.version != pdu.rules.version and not pdu.rules.references_carry_hashes:
            raise InvalidInput("The room has another version")
        try:
            await self._resident.get_room(origin, pdu.room_id)
        except NotFound:
            return False
        return True

    async def _check_takes(self, origin: ServerName, target: UserID, sender: UserID) -> None:
        async with self._database.read() as tx:
            account = await accounts.find(tx, target)
            pending, size = await outside_memberships.count_invites(tx, target, origin, MAX_PENDING)
        if account is None or account.is_deactivated:
            raise Forbidden(f"{target} cannot be invited")
        if pending >= MAX_PENDING or size >= MAX_PENDING_BYTES:
            raise Forbidden(f"{target} has too many invites from your server that are not answered")
        await self._may_be_invited(target, sender)

    async def _told(self, invite: VerifiedPDU, entries: object) -> list[JsonObject]:
        """What the user is told of the room. From room version 12 on every entry must be an event that holds."""
        if not invite.rules.room_id_is_create_hash:
            return strip_leniently(entries, invite)
        if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
            raise InvalidInput(f"invite_room_state must be an array of at most {MAX_ENTRIES} events")
        pdus = await self._verified(entries, invite.room_id, invite.rules)
        if CREATE not in {pdu.state_pair for pdu in pdus}:
            raise InvalidInput("invite_room_state has no m.room.create")
        return strip([*(pdu.json for pdu in pdus if pdu.state_pair != invite.state_pair), invite.json])

    async def _verified(self, entries: Collection[object], room_id: str, rules: RoomVersionRules) -> list[VerifiedPDU]:
        pdus = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise InvalidInput("invite_room_state has what is no event")
            try:
                pdu = event_format.parse(entry, rules)
            except MatrixError as error:
                raise InvalidInput(f"invite_room_state has what is no event: {error.message}") from error
            if pdu.state_key is None or pdu.room_id != room_id:
                raise InvalidInput("invite_room_state has what is no state of the room")
            pdus.append(pdu)
        found = await self._verify_events(pdus)
        for each in found:
            if isinstance(each, MatrixError):
                raise InvalidInput(f"invite_room_state has an event that does not hold: {each.message}")
        return [each for each in found if isinstance(each, VerifiedPDU)]
