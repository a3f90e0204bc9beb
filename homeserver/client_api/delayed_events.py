"""Events that wait to be sent (MSC4140)."""

from federation.protocol.errors import InvalidInput
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.routing import requester
from homeserver.services.delayed_events import DelayedEventService

MAX_BODY_BYTES = 4096


class DelayedEventsAPI:
    """What waits, and what becomes of it. Who knows a delay's ID may decide that."""

    def __init__(self, delayed_events: DelayedEventService) -> None:
        self._delayed_events = delayed_events
        self._actions = {
            "restart": delayed_events.restart,
            "cancel": delayed_events.cancel,
            "send": delayed_events.send,
        }

    async def list_waiting(self, call: Call) -> Answer:
        """GET /delayed_events: in the words of the earlier drafts and of the later."""
        waiting = await self._delayed_events.list_waiting(requester(call).user_id)
        return {"delayed_events": waiting, "scheduled": waiting, "finalised": []}

    async def update(self, call: Call) -> Answer:
        """POST /delayed_events/{delayId}, with the action in the body."""
        return await self._act(call, fields.get_text(await call.body(max_bytes=MAX_BODY_BYTES), "action"))

    async def act(self, call: Call) -> Answer:
        """POST /delayed_events/{delayId}/{action}."""
        await call.raw_body(MAX_BODY_BYTES)
        return await self._act(call, call.path["action"])

    async def _act(self, call: Call, name: str) -> Answer:
        action = self._actions.get(name)
        if action is None:
            raise InvalidInput("action must be restart, cancel or send")
        await action(call.path["delay_id"])
        return {}
