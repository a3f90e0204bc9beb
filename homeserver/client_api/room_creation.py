"""Creating and upgrading rooms (Client-Server API v1.19, "Creation", "Room Upgrades")."""

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject, StateKey
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.routing import requester
from homeserver.services.room_creation import PRESETS, Creation, RoomCreationService
from homeserver.services.room_upgrades import RoomUpgradeService


class RoomCreationAPI:
    """New rooms."""

    def __init__(self, creation: RoomCreationService, upgrades: RoomUpgradeService) -> None:
        self._creation = creation
        self._upgrades = upgrades

    async def create(self, call: Call) -> Answer:
        """POST /createRoom."""
        return {"room_id": await self._creation.create(requester(call), _creation(await call.body()))}

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
    if fields.get_objects(body, "invite_3pid"):
        raise Forbidden("This server has no identity server to invite by", "M_THREEPID_DENIED")
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
