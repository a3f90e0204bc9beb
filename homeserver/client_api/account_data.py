"""Account data and tags (Client-Server API, "Client Config", "Room Tagging")."""

from federation.web import Answer, Call
from homeserver.client_api.own_user import own_user
from homeserver.services.account_data import MAX_CONTENT_BYTES, AccountDataService


class AccountDataAPI:
    """What users keep for themselves. The path's `room_id` is absent for what belongs to no room."""

    def __init__(self, service: AccountDataService) -> None:
        self._service = service

    async def get_data(self, call: Call) -> Answer:
        """GET /user/{userId}[/rooms/{roomId}]/account_data/{type}."""
        return await self._service.get(own_user(call), call.path.get("room_id"), call.path["type"])

    async def put_data(self, call: Call) -> Answer:
        """PUT /user/{userId}[/rooms/{roomId}]/account_data/{type}."""
        user_id = own_user(call)
        content = await call.body(max_bytes=MAX_CONTENT_BYTES)
        await self._service.put(user_id, call.path.get("room_id"), call.path["type"], content)
        return {}

    async def delete_data(self, call: Call) -> Answer:
        """DELETE the same (MSC3391)."""
        await self._service.delete(own_user(call), call.path.get("room_id"), call.path["type"])
        return {}

    async def get_tags(self, call: Call) -> Answer:
        """GET /user/{userId}/rooms/{roomId}/tags."""
        return {"tags": await self._service.tags(own_user(call), call.path["room_id"])}

    async def put_tag(self, call: Call) -> Answer:
        """PUT /user/{userId}/rooms/{roomId}/tags/{tag}."""
        user_id = own_user(call)
        info = await call.body(optional=True, max_bytes=MAX_CONTENT_BYTES)
        await self._service.put_tag(user_id, call.path["room_id"], call.path["tag"], info)
        return {}

    async def delete_tag(self, call: Call) -> Answer:
        """DELETE /user/{userId}/rooms/{roomId}/tags/{tag}."""
        await self._service.delete_tag(own_user(call), call.path["room_id"], call.path["tag"])
        return {}
