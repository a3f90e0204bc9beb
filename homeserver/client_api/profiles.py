"""Profiles (Client-Server API v1.16, "Profiles")."""

from federation.web import Answer, Call
from homeserver.client_api.own_user import own_user
from homeserver.services.profiles import MAX_PROFILE_BYTES, ProfileService

_MAX_BODY_BYTES = 4 * MAX_PROFILE_BYTES
"""More than any profile, so that one which is a little too large is told so by its own error."""


class ProfilesAPI:
    """Profiles are public; each user changes their own."""

    def __init__(self, profiles: ProfileService) -> None:
        self._profiles = profiles

    async def get_profile(self, call: Call) -> Answer:
        """GET /profile/{userId}."""
        return await self._profiles.get(call.path["user_id"])

    async def get_field(self, call: Call) -> Answer:
        """GET /profile/{userId}/{keyName}."""
        key = call.path["key"]
        return {key: await self._profiles.get_field(call.path["user_id"], key)}

    async def put_field(self, call: Call) -> Answer:
        """PUT /profile/{userId}/{keyName}."""
        user_id = own_user(call)
        await self._profiles.put_field(user_id, call.path["key"], await call.body(max_bytes=_MAX_BODY_BYTES))
        return {}

    async def delete_field(self, call: Call) -> Answer:
        """DELETE /profile/{userId}/{keyName}."""
        await self._profiles.delete_field(own_user(call), call.path["key"])
        return {}
