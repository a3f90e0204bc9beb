"""Pushers (Client-Server API, "Push Notifications", client behaviour)."""

from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.pushers import PusherService, client_form

MAX_BODY_BYTES = 64 * 1024


class PushersAPI:
    """The caller's own pushers."""

    def __init__(self, pushers: PusherService) -> None:
        self._pushers = pushers

    async def list_pushers(self, call: Call) -> Answer:
        """GET /pushers."""
        return {"pushers": [client_form(pusher) for pusher in await self._pushers.list(requester(call).user_id)]}

    async def set_pusher(self, call: Call) -> Answer:
        """POST /pushers/set."""
        await self._pushers.set(requester(call), await call.body(max_bytes=MAX_BODY_BYTES))
        return {}
