"""Another server knocks at the door: its users join, leave and knock by way of us (Server-Server API, "Joining
rooms", "Leaving rooms", "Knocking upon a room").

First it asks for a template, then it brings the event. What it brings is bound to what was asked for: room, event ID,
user and membership of path and body agree, and the user is of the server that asks. It is held to the room's current
state before it is written, so that nobody fills our database with events that come to nothing.
"""

import logging
from collections.abc import Collection

from msgspec import Struct

from federation.outbound.keyring import VerifyEvents
from federation.protocol import auth_rules, event_format, event_hashes, signatures
from federation.protocol.auth_events import CREATE, auth_keys_for
from federation.protocol.errors import Forbidden, InvalidEvent, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import PDU, Draft, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName
from federation.rooms import stripped_state
from federation.rooms.append import Outcome, RoomWriter
from federation.rooms.doors import RoomDoors
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.restricted_joins import RestrictedJoins
from federation.rooms.state import MissingEvents
from storage import events, memberships, room_state
from storage.database import Database
from storage.events import Flag, StoredEvent
from storage.memberships import Membership
from storage.outbox import EventRelayed
from storage.rooms import Room

logger = logging.getLogger(__name__)


class Entered(Struct, frozen=True):
    """A member event of another server's user that is in the room's graph now."""

    room: Room
    event: StoredEvent


class Resident:
    """Answers for rooms that this server is in."""

    def __init__(
        self,
        *,
        database: Database,
        writer: RoomWriter,
        doors: RoomDoors,
        incomplete: IncompleteRooms,
        verify_events: VerifyEvents,
        signer: tuple[ServerName, SigningKey],
    ) -> None:
        self._database = database
        self._writer = writer
        self._doors = doors
        self._incomplete = incomplete
        self._verify_events = verify_events
        self._server_name, self._signing_key = signer
        self._restricted = RestrictedJoins(database, writer, self._server_name)

    # --- templates

    async def template(
        self, origin: ServerName, room_id: str, user_id: str, membership: str, versions: Collection[str] | None = None
    ) -> tuple[JsonObject, str]:
        """The event that would give a user of `origin` this membership, for their server to sign; the room's version.

        Raises NotFound where we are not in the room, Forbidden where the user or the server may not, and
        M_INCOMPATIBLE_ROOM_VERSION where the version is none of `versions`.
        """
        if not is_user_id(user_id) or server_name_of(user_id) != origin:
            raise Forbidden("The user is not of the server that asks")
        room = await self.get_room(origin, room_id)
        if versions is not None and room.rules.version not in versions:
            raise incompatible(room.rules.version)
        content: JsonObject = {"membership": membership}
        if membership == "join" and await self._restricted.needs_authoriser(room, user_id):
            await self._restricted.check_conditions(room, user_id)
            content["join_authorised_via_users_server"] = await self._restricted.find_authoriser(room)
        draft = Draft(room_id=room.room_id, type="m.room.member", sender=user_id, content=content, state_key=user_id)
        return {**await self._writer.template(draft), "origin": self._server_name}, room.rules.version

    async def get_room(self, origin: ServerName, room_id: str) -> Room:
        """A room that we are in; raises NotFound for any other, Forbidden where its ACL shuts the server out, and
        BeingJoined where members are still to come."""
        room = await self._writer.get_room(room_id)
        if not await self._doors.is_ours(room):
            raise NotFound("This server is not in the room")
        await self._doors.check(room, origin)
        self._incomplete.check(room.number)
        return room

    # --- events

    async def accept(self, origin: ServerName, path: tuple[str, str], json: JsonObject, membership: str) -> Entered:
        """Take the event that `origin` brings for the room and event ID of `path`: verified, allowed, and written.

        A repeat finds what was written; not of a knock that was turned away since. Raises InvalidInput for what is not
        such an event, Forbidden for what the room does not allow.
        """
        room = await self.get_room(origin, path[0])
        pdu = event_format.parse(json, room.rules)
        check_member_event(pdu, room.room_id, path[1], membership)
        if pdu.state_key != pdu.sender or server_name_of(pdu.sender) != origin:
            raise InvalidInput("The event is not by and about one user of the server that brings it")
        if membership == "join":
            pdu = await self._vouched_for(room, pdu)
        verified = await verify_whole(self._verify_events, pdu)
        verified = await self._allowed(room, verified)
        if membership == "join":
            verified = signatures.add_signature(verified, self._server_name, self._signing_key)
            if len(verified.canonical) > event_format.MAX_EVENT_BYTES:  # which no server in the room would take
                raise InvalidInput("The event is too large to be signed by this server")
        try:
            received = await self._writer.append_remote(verified, changes=[EventRelayed(verified.event_id)])
        except MissingEvents as error:
            raise InvalidInput("The event refers to events that are not known here") from error
        if received.outcome in (Outcome.REJECTED, Outcome.SOFT_FAILED):
            raise Forbidden(received.reason)
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [verified.event_id]))[verified.event_id]
            standing = await memberships.membership_of(tx, room.number, pdu.sender)
        if membership == "knock" and standing in (Membership.LEAVE, Membership.BAN):
            raise Forbidden("The knock was turned away")
        if stored.flags & (Flag.REJECTED | Flag.SOFT_FAILED):
            raise Forbidden("The event was not accepted into the room")
        logger.info("%s: %s is %s by way of us", room.room_id, pdu.sender, membership)
        return Entered(room, stored)

    async def _vouched_for(self, room: Room, pdu: PDU) -> PDU:
        """The join signed by us, where it is one of our users who lets the user in, and does so rightly."""
        authoriser = pdu.content.get("join_authorised_via_users_server")
        if not room.rules.restricted_joins or not is_user_id(authoriser):
            return pdu
        if server_name_of(authoriser) != self._server_name:
            return pdu
        if await self._restricted.needs_authoriser(room, pdu.sender):
            await self._restricted.check_conditions(room, pdu.sender)
            await self._restricted.check_authoriser(room, authoriser)
        json = signatures.sign_event(pdu.json, pdu.rules, self._server_name, self._signing_key)
        return event_format.parse(json, pdu.rules)

    async def _allowed(self, room: Room, pdu: VerifiedPDU) -> VerifiedPDU:
        """The event with the signature of the room's policy server, where there is one.

        Raises Forbidden where the room's current state does not allow it, and what the policy server refused with,
        unless it is here already.
        """
        async with self._database.read() as tx:
            if pdu.event_id in await events.by_id(tx, [pdu.event_id]):
                return pdu
        keys = auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules)
        auth_rules.check(pdu, await self._writer.state_for(room, [*keys, CREATE]))
        return await self._writer.endorsed(room, pdu)

    # --- what knocking servers are told

    async def stripped_state(self, room: Room) -> list[JsonObject]:
        """The events that tell somebody outside what room it is, whole as servers exchange them."""
        async with self._database.read() as tx:
            stored = await room_state.current_events(tx, room.number, stripped_state.KEYS)
        return [
            as_federated(stored[key], room) for key in stripped_state.KEYS if key in stored and stored[key].is_readable
        ]


def as_federated(event: StoredEvent, room: Room) -> JsonObject:
    """A stored event as other servers may see it: redacted, if it is."""
    return event.json if event.redacted_by is None else redact(event.json, room.rules)


def check_member_event(pdu: PDU, room_id: str, event_id: str, membership: str) -> None:
    """Raise M_INVALID_PARAM unless this is the member event of room and ID that the path says, with this membership."""
    if pdu.event_id != event_id:
        raise InvalidInput(f"The event's ID is {pdu.event_id}, not that of the path")
    if pdu.room_id != room_id:
        raise InvalidInput("The event is of another room")
    if pdu.type != "m.room.member" or pdu.state_key is None or pdu.membership != membership:
        raise InvalidInput(f"The event is no m.room.member with membership {membership}")


async def verify_whole(verify_events: VerifyEvents, pdu: PDU) -> VerifiedPDU:
    """The event once its signatures and its hash hold; raises M_INVALID_PARAM otherwise.

    Of what is pushed to us for us to sign or to pass on a redacted copy will not do.
    """
    if not event_hashes.content_hash_matches(pdu.json):
        raise InvalidInput("The event's content hash is wrong")
    (found,) = await verify_events([pdu])
    if isinstance(found, InvalidEvent):
        raise InvalidInput(found.message)
    if isinstance(found, MatrixError):
        raise found
    return found


def incompatible(version: str) -> MatrixError:
    """The room's version is none that the other side, or we, know."""
    return MatrixError(
        "M_INCOMPATIBLE_ROOM_VERSION",
        f"The room has version {version}",
        400,
        {"room_version": version},
    )
