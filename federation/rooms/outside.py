"""Rooms that this server is not in, but users of ours are invited to or knock at: what we hear of them.

All that is kept of such a room is `storage/outside_memberships.py`.
"""

import logging
import secrets
import time
from collections.abc import Collection, Sequence

from federation.outbound.keyring import VerifyEvents
from federation.protocol import canonical_json, event_format
from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import is_room_id, is_user_id, server_name_of
from federation.protocol.member_template import Wish
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, JsonObject, ServerName, UserID
from federation.rooms import stripped_state
from federation.rooms.resident import verify_whole
from storage import memberships, outside_memberships, rooms
from storage.database import Database
from storage.log import Log
from storage.log_entries import Entry
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership

logger = logging.getLogger(__name__)


class OutsideRooms:
    """Notes memberships of our users in rooms of which we have no state."""

    def __init__(self, database: Database, log: Log, verify_events: VerifyEvents, server_name: ServerName) -> None:
        self._database = database
        self._log = log
        self._verify_events = verify_events
        self._server_name = server_name

    async def note(
        self,
        pdu: VerifiedPDU,
        target: UserID,
        *,
        told: Sequence[JsonObject] = (),
        via: Collection[ServerName] = (),
    ) -> None:
        """Have the user hear of a member event about them, and of what was told of its room; once, if it comes again.

        Raises InvalidInput for a membership that nobody has from outside.
        """
        membership = Membership.of(pdu.membership)
        if membership is None or membership is Membership.JOIN:
            raise InvalidInput("This is no membership in a room that we are not in")
        async with self._database.read() as tx:
            known = await outside_memberships.find(tx, target, pdu.room_id)
        if known is not None and known.event_id == pdu.event_id:
            return
        change = OutsideMembership(
            user_id=target,
            room_id=pdu.room_id,
            membership=membership,
            room_version=pdu.rules.version,
            event_id=pdu.event_id,
            json=pdu.canonical,
            stripped_state=stripped_state.encode(told),
            via=tuple(via),
        )
        await self._log.append(Entry(changes=[change]))

    async def leave_untold(self, wish: Wish, room_version: str) -> EventID:
        """Note a leave of which nobody else knows: no PDU, for it has no place in the room's graph."""
        event: JsonObject = {
            "content": wish.content,
            "origin_server_ts": time.time_ns() // 1_000_000,
            "room_id": wish.room_id,
            "sender": wish.user_id,
            "state_key": wish.user_id,
            "type": "m.room.member",
        }
        change = OutsideMembership(
            user_id=wish.user_id,
            room_id=wish.room_id,
            membership=Membership.LEAVE,
            room_version=room_version,
            event_id=EventID("$" + secrets.token_urlsafe(32)),
            json=canonical_json.encode(event),
        )
        await self._log.append(Entry(changes=[change]))
        return change.event_id

    async def retract(self, origin: ServerName, json: JsonObject) -> EventID | None:
        """Take an event that ends the invite or the knock of a user of ours in a room that we are not in.

        Its ID; None where it is no such event. It must cite the membership that it ends, of which none but the servers
        in the room know. Raises InvalidInput or InvalidEvent where it does not hold.
        """
        known = await self._find_ended(json)
        if known is None:
            return None
        pdu = event_format.parse(json, get_rules(known.room_version))
        if pdu.membership not in ("leave", "ban") or known.event_id not in pdu.auth_event_ids:
            return None
        if server_name_of(pdu.sender) == self._server_name:
            return None
        verified = await verify_whole(self._verify_events, pdu)
        await self.note(verified, known.user_id, via=known.via)
        logger.info("%s, sent by %s, ends the %s of %s", pdu.event_id, origin, known.membership.text, known.user_id)
        return pdu.event_id

    async def _find_ended(self, json: JsonObject) -> OutsideMembership | None:
        """The invite or knock that the event may end."""
        target, room_id = json.get("state_key"), json.get("room_id")
        if json.get("type") != "m.room.member" or not is_user_id(target) or not is_room_id(room_id):
            return None
        if server_name_of(target) != self._server_name:
            return None
        async with self._database.read() as tx:
            known = await outside_memberships.find(tx, target, room_id)
            if known is None or known.membership not in (Membership.INVITE, Membership.KNOCK):
                return None
            room = await rooms.find(tx, room_id)
            if room is not None and await memberships.local_members(tx, room.number, self._server_name, limit=1):
                return None  # the room's state will say so
        return known
