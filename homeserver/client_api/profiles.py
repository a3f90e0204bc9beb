"""Profiles (Client-Server API v1.16, "Profiles")."""

from federation.protocol.errors import Forbidden
from federation.protocol.types import UserID
from federation.web import Answer, Call
from homeserver.client_api.own_user import own_user
from homeserver.client_api.routing import optional_requester, requester
from homeserver.services.profiles import MAX_PROFILE_BYTES, ProfileService

_MAX_BODY_BYTES = 4 * MAX_PROFILE_BYTES
"""More than any profile, so that one which is a little too large is told so by its own error."""


class ProfilesAPI:
    """Profiles are public; each user changes their own."""

    def __init__(self, profiles: ProfileService) -> None:
        self._profiles = profiles

    async def get_profile(self, call: Call) -> Answer:
        """GET /profile/{userId}."""
        return await self._profiles.get(call.path["user_id"], may_ask_others=optional_requester(call) is not None)

    async def get_field(self, call: Call) -> Answer:
        """GET /profile/{userId}/{keyName}."""
        user_id, key = call.path["user_id"], call.path["key"]
        may_ask_others = optional_requester(call) is not None
        return {key: await self._profiles.get_field(user_id, key, may_ask_others=may_ask_others)}

    async def put_field(self, call: Call) -> Answer:
        """PUT /profile/{userId}/{keyName}."""
        user_id, key = _own_field(call)
        await self._profiles.put_field(user_id, key, await call.body(max_bytes=_MAX_BODY_BYTES))
        return {}

    async def delete_field(self, call: Call) -> Answer:
        """DELETE /profile/{userId}/{keyName}."""
        await self._profiles.delete_field(*_own_field(call))
        return {}


def _own_field(call: Call) -> tuple[UserID, str]:
    """The caller and the field to change; raises where they may not: guests have only a name ("Guest Access")."""
    user_id, key, who = own_user(call), call.path["key"], requester(call)
    who.check_not_suspended()
    if who.is_guest and key != "displayname":
        raise Forbidden("Guests may only change their name", "M_GUEST_ACCESS_FORBIDDEN")
    return user_id, key
