"""Backups of room keys (Client-Server API, "Server-side key backups")."""

from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.key_backups import KeyBackupService, key_of_session, keys_of_room, keys_of_rooms


class KeyBackupAPI:
    """A user's backups: versions, and the keys in them."""

    def __init__(self, backups: KeyBackupService) -> None:
        self._backups = backups

    async def create_version(self, call: Call) -> Answer:
        """POST /room_keys/version."""
        return await self._backups.create(requester(call).user_id, await call.body())

    async def get_current_version(self, call: Call) -> Answer:
        """GET /room_keys/version."""
        return await self._backups.get_current(requester(call).user_id)

    async def get_version(self, call: Call) -> Answer:
        """GET /room_keys/version/{version}."""
        return await self._backups.get(requester(call).user_id, call.path["version"])

    async def put_version(self, call: Call) -> Answer:
        """PUT /room_keys/version/{version}."""
        await self._backups.update(requester(call).user_id, call.path["version"], await call.body())
        return {}

    async def delete_version(self, call: Call) -> Answer:
        """DELETE /room_keys/version/{version}."""
        await self._backups.delete(requester(call).user_id, call.path["version"])
        return {}

    async def put_keys(self, call: Call) -> Answer:
        """PUT /room_keys/keys, for all rooms, one room or one session."""
        body = await call.body()
        match call.path:
            case {"room_id": room_id, "session_id": session_id}:
                keys = [key_of_session(room_id, session_id, body)]
            case {"room_id": room_id}:
                keys = keys_of_room(room_id, body)
            case _:
                keys = keys_of_rooms(body)
        return await self._backups.put_keys(requester(call).user_id, call.query_text("version"), keys)

    async def get_keys(self, call: Call) -> Answer:
        """GET /room_keys/keys, of all rooms, one room or one session."""
        user_id, version = requester(call).user_id, call.query_text("version")
        match call.path:
            case {"room_id": room_id, "session_id": session_id}:
                return await self._backups.get_session(user_id, version, room_id, session_id)
            case {"room_id": room_id}:
                return await self._backups.get_room(user_id, version, room_id)
        return await self._backups.get_rooms(user_id, version)

    async def delete_keys(self, call: Call) -> Answer:
        """DELETE /room_keys/keys, of all rooms, one room or one session."""
        return await self._backups.delete_keys(
            requester(call).user_id, call.query_text("version"), call.path.get("room_id"), call.path.get("session_id")
        )
