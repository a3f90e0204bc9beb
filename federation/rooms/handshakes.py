"""What the handshakes with resident servers have in common: their templates, our events, their signatures."""

import secrets
import time
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from federation.outbound.client import FederationClient, path_of
from federation.outbound.keyring import Keyring
from federation.protocol import canonical_json, event_format, member_template
from federation.protocol.errors import InvalidEvent, InvalidInput, Unauthorized
from federation.protocol.member_template import Wish
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName
from federation.rooms.append import RoomWriter
from federation.rooms.doors import RoomDoors
from federation.rooms.stripped_state import MAX_ENTRIES
from storage import rooms
from storage.database import Database


class Handshakes(Struct, frozen=True, kw_only=True):
    """Makes events of ours that have to pass through another server."""

    client: FederationClient
    keyring: Keyring
    server_name: ServerName
    signing_key: SigningKey
    database: Database
    writer: RoomWriter
    doors: RoomDoors

    async def build(self, wish: Wish, destination: ServerName) -> VerifiedPDU:
        """Our user's event at the place that the server offers, signed by us (`member_template.py`).

        Where we are in the room ourselves, it has the signature of the policy server that the room uses; where we are
        not, we cannot know of one, and who is in the room asks it for us. Raises as `RoomWriter.endorsed`.
        """
        path = path_of(f"/_matrix/federation/v1/make_{wish.membership}/{{}}/{{}}", wish.room_id, wish.user_id)
        versions = [] if wish.membership == "leave" else [("ver", version) for version in ROOM_VERSIONS]
        answer = await self.client.get(destination, path, versions, patient=True)
        pdu = member_template.read(answer, wish).build(
            server_name=self.server_name,
            signing_key=self.signing_key,
            now_ts=time.time_ns() // 1_000_000,
            event_id_localpart=secrets.token_urlsafe(12),
        )
        async with self.database.read() as tx:
            room = await rooms.find(tx, wish.room_id)
        if room is None or room.rules.version != pdu.rules.version or not await self.doors.is_ours(room):
            return pdu
        return await self.writer.endorsed(room, pdu)

    async def holding(self, entries: object, member: VerifiedPDU) -> list[JsonObject]:
        """Those of the state events that another server tells of a room which hold, redacted where their hashes do not.

        Below room version 12 what nobody signed is left among them: so servers told of rooms before version 1.16 of
        the specification.
        """
        offered = entries[:MAX_ENTRIES] if isinstance(entries, list) else []
        told: list[JsonObject] = []
        pdus: list[PDU] = []
        for entry in offered:
            if not isinstance(entry, dict):
                continue
            if "signatures" not in entry and not member.rules.room_id_is_create_hash:
                told.append(entry)
                continue
            with suppress(InvalidEvent):
                pdu = event_format.parse(entry, member.rules)
                if pdu.state_key is not None and pdu.room_id == member.room_id:
                    pdus.append(pdu)
        found = await self.keyring.verify_events(pdus)
        return [*(pdu.json for pdu in found if isinstance(pdu, VerifiedPDU)), *told]

    async def countersigned(self, pdu: VerifiedPDU, answered: object, server_name: ServerName) -> VerifiedPDU:
        """Our event with the other server's signature, which has to hold. Nothing else is taken from what it answered.

        Raises InvalidInput where it did not sign this very event.
        """
        by_server = answered.get("signatures") if isinstance(answered, dict) else None
        theirs = by_server.get(server_name) if isinstance(by_server, dict) else None
        if not isinstance(theirs, dict) or not theirs:
            raise InvalidInput(f"{server_name} did not sign the event", "M_BAD_JSON")
        json = {**pdu.json, "signatures": {**pdu.json["signatures"], server_name: theirs}}
        event_format.parse(json, pdu.rules)
        try:
            await self.keyring.verify_json(server_name, redact(json, pdu.rules))
        except Unauthorized:
            raise InvalidInput(f"The signature of {server_name} does not hold", "M_BAD_JSON") from None
        return replace(pdu, json=json, canonical=canonical_json.encode(json))
