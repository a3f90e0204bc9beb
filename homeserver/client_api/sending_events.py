"""Sending messages and state, redacting (Client-Server API v1.19, "Sending events to a room", "Redactions")."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.delayed_events import DelayedEventService
from homeserver.services.membership import MembershipService
from homeserver.services.messages import Message, MessageService
from homeserver.services.presence import PresenceService

MAX_REL_TYPES = 100
MAX_EVENT_BODY = 128 * 1024
"""An event has at most 64 KiB; a body may spell it out longer, not much."""


class SendingEventsAPI:
    """Events that clients send."""

    def __init__(
        self,
        messages: MessageService,
        memberships: MembershipService,
        presence: PresenceService,
        delayed_events: DelayedEventService,
    ) -> None:
        self._messages = messages
        self._memberships = memberships
        self._presence = presence
        self._delayed_events = delayed_events

    async def send(self, call: Call) -> Answer:
        """PUT /rooms/{roomId}/send/{eventType}/{txnId}."""
        message = Message(
            room_id=call.path["room_id"],
            type=call.path["event_type"],
            content=await call.body(max_bytes=MAX_EVENT_BODY),
            txn_id=call.path["txn_id"],
            origin_server_ts=_timestamp(call),
        )
        if (delay_ms := _delay(call)) is not None:
            return {"delay_id": await self._delayed_events.delay(requester(call), message, None, delay_ms)}
        event_id = await self._messages.send(requester(call), message)
        await self._presence.acted(requester(call).user_id)
        return {"event_id": event_id}

    async def redact(self, call: Call) -> Answer:
        """PUT /rooms/{roomId}/redact/{eventId}/{txnId}."""
        body = await call.body(optional=True, max_bytes=MAX_EVENT_BODY)
        rel_types = _with_rel_types(body)
        message = Message(
            room_id=call.path["room_id"],
            type="m.room.redaction",
            content=body,
            txn_id=call.path["txn_id"],
            redacts=call.path["event_id"],
            origin_server_ts=_timestamp(call),
        )
        event_id = await self._messages.send(requester(call), message)
        if rel_types:
            await self._messages.redact_related(
                requester(call), message.room_id, call.path["event_id"], rel_types, message.content
            )
        return {"event_id": event_id}

    async def put_state(self, call: Call) -> Answer:
        """PUT /rooms/{roomId}/state/{eventType}/{stateKey}; the key may be left out with its slash when empty."""
        content: JsonObject = await call.body(max_bytes=MAX_EVENT_BODY)
        room_id, event_type, state_key = call.path["room_id"], call.path["event_type"], call.path.get("state_key", "")
        who = requester(call)
        message = Message(room_id=room_id, type=event_type, content=content, origin_server_ts=_timestamp(call))
        if (delay_ms := _delay(call)) is not None:
            return {"delay_id": await self._delayed_events.delay(who, message, state_key, delay_ms)}
        if event_type == "m.room.member":
            return {"event_id": await self._memberships.set(who, room_id, state_key, content, exactly=True)}
        return {"event_id": await self._messages.send_state(who, message, state_key)}


def _with_rel_types(body: JsonObject) -> list[str]:
    """Takes out of a request how events relate to the one that are to be redacted with it (MSC3912)."""
    found: list[str] = []
    for name in ("with_rel_types", "org.matrix.msc3912.with_relations"):
        given = body.pop(name, None) or []
        if not isinstance(given, list) or len(given) > MAX_REL_TYPES:
            raise InvalidInput(f"{name} must be a list of at most {MAX_REL_TYPES} types")
        if not all(isinstance(each, str) and "\0" not in each for each in given):
            raise InvalidInput(f"{name} must be a list of strings")
        found += given
    return found


def _delay(call: Call) -> int | None:
    """In how many milliseconds the event is to be sent (MSC4140); None for now."""
    if call.query_text("org.matrix.msc4140.delay") is None:
        return None
    return call.query_int("org.matrix.msc4140.delay", 0, minimum=1)


def _timestamp(call: Call) -> int | None:
    """`ts`, which application services alone may give ("Timestamp massaging")."""
    if requester(call).application_service is None or call.query_text("ts") is None:
        return None
    return call.query_int("ts", 0)
