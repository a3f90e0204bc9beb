"""Creating and upgrading rooms (Client-Server API v1.19, "Creation", "Room Upgrades")."""

import logging

from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.types import JsonObject, StateKey
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.identifiers import third_party_invite
from homeserver.client_api.routing import requester
from homeserver.services.room_creation import PRESETS, Creation, RoomCreationService
from homeserver.services.room_upgrades import RoomUpgradeService
from homeserver.services.third_party_inviting import ThirdPartyInviting

logger = logging.getLogger(__name__)

MAX_INVITES_BY_ADDRESS = 20
"""Of a new room: each is up to three requests to an identity server."""


class RoomCreationAPI:
    """New rooms."""

    def __init__(
        self, creation: RoomCreationService, upgrades: RoomUpgradeService, third_party: ThirdPartyInviting
    ) -> None:
        self._creation = creation
        self._upgrades = upgrades
        self._third_party = third_party

    async def create(self, call: Call) -> Answer:
        """POST /createRoom."""
        who, body = requester(call), await call.body()
        by_address = [third_party_invite(each) for each in fields.get_objects(body, "invite_3pid")]
        if len(by_address) > MAX_INVITES_BY_ADDRESS:
            raise InvalidInput(f"At most {MAX_INVITES_BY_ADDRESS} people can be invited at once by address")
        room_id = await self._creation.create(who, _creation(body))
        for invite in by_address:
            try:
                await self._third_party.invite(who, room_id, invite)
            except MatrixError as error:  # the room is there, and its creator sees who is invited
                logger.warning("somebody could not be invited to the new room %s: %s", room_id, error)
        return {"room_id": room_id}

    async def upgrade(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/upgrade."""
        body = await call.body()
        version, creators = fields.get_text(body, "new_version"), fields.get_texts(body, "additional_creators")
        return {
            "replacement_room": await self._upgrades.upgrade(requester(call), call.path["room_id"], version, creators)
        }


def _creation(body: JsonObject) -> Creation:
    visibility = fields.find_text(body, "visibility") or "private"
    if visibility not in ("public", "private"):
        raise InvalidInput("visibility must be public or private", "M_BAD_JSON")
    preset = fields.find_text(body, "preset") or ("public_chat" if visibility == "public" else "private_chat")
    if preset not in PRESETS:
        raise InvalidInput(f"There is no preset {preset!r}", "M_BAD_JSON")
    return Creation(
        room_version=fields.find_text(body, "room_version"),
        preset=preset,
        is_public=visibility == "public",
        alias_name=fields.find_text(body, "room_alias_name"),
        name=fields.find_text(body, "name"),
        topic=fields.find_text(body, "topic"),
        invites=fields.get_texts(body, "invite"),
        is_direct=fields.get_bool(body, "is_direct"),
        creation_content=fields.get_object(body, "creation_content"),
        initial_state=[_state(entry) for entry in fields.get_objects(body, "initial_state")],
        power_levels=fields.get_object(body, "power_level_content_override"),
    )


def _state(entry: JsonObject) -> tuple[StateKey, JsonObject]:
    event_type, state_key, content = entry.get("type"), entry.get("state_key", ""), entry.get("content")
    if not isinstance(event_type, str) or not isinstance(state_key, str) or not isinstance(content, dict):
        raise InvalidInput("initial_state must hold type, state_key and content", "M_BAD_JSON")
    return (event_type, state_key), content
