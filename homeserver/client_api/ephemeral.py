"""Typing, receipts, read markers and presence (Client-Server API, the modules of these names)."""

from typing import Final, get_args

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import check_user_id
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.own_user import own_user
from homeserver.client_api.routing import requester
from homeserver.services.account_data import FULLY_READ
from homeserver.services.presence import PresenceService
from homeserver.services.receipts import TYPES, ReceiptService
from homeserver.services.typing import TypingService
from storage.ephemeral import PresenceState

MAX_BODY_BYTES = 64 * 1024
MAX_STATUS_LENGTH = 1000
DEFAULT_TYPING_MS = 30_000
ALLOW_BACKWARD: Final = "com.beeper.allow_backward"
"""MSC4446: the fully read marker may move backwards."""


class EphemeralAPI:
    """What is true for a moment, and how far somebody has read."""

    def __init__(self, typing: TypingService, receipts: ReceiptService, presence: PresenceService) -> None:
        self._typing = typing
        self._receipts = receipts
        self._presence = presence

    async def put_typing(self, call: Call) -> Answer:
        """PUT /rooms/{roomId}/typing/{userId}."""
        user_id = own_user(call)
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        typing, timeout_ms = body.get("typing"), body.get("timeout", DEFAULT_TYPING_MS)
        if typing is None:
            raise InvalidInput("typing is missing", "M_MISSING_PARAM")
        if not isinstance(typing, bool):
            raise InvalidInput("typing must be true or false", "M_BAD_JSON")
        if type(timeout_ms) is not int:
            raise InvalidInput("timeout must be an integer", "M_BAD_JSON")
        await self._typing.put(user_id, call.path["room_id"], max(1, timeout_ms) if typing else 0)
        return {}

    async def post_receipt(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/receipt/{receiptType}/{eventId}."""
        kind = call.path["receipt_type"]
        if kind not in TYPES:
            raise InvalidInput(f"Unknown type of receipt: {kind}")
        body = await call.body(optional=True, max_bytes=MAX_BODY_BYTES)
        thread = body.get("thread_id")
        if thread is not None and (not isinstance(thread, str) or not thread):
            raise InvalidInput("thread_id must be a non-empty string")
        if thread is not None and kind == FULLY_READ:
            raise InvalidInput("The fully read marker belongs to no thread")
        await self._receipts.send(
            requester(call).user_id,
            call.path["room_id"],
            [(kind, call.path["event_id"])],
            thread=thread or "",
            back=_allows_backward(body),
        )
        await self._presence.acted(requester(call).user_id)
        return {}

    async def post_read_markers(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/read_markers."""
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        marks: list[tuple[str, str]] = []
        for kind in TYPES:
            event_id = body.get(kind)
            if event_id is None:
                continue
            if not isinstance(event_id, str):
                raise InvalidInput(f"{kind} must be an event ID", "M_BAD_JSON")
            marks.append((kind, event_id))
        user_id = requester(call).user_id
        await self._receipts.send(user_id, call.path["room_id"], marks, back=_allows_backward(body))
        await self._presence.acted(user_id)
        return {}

    async def get_presence(self, call: Call) -> Answer:
        """GET /presence/{userId}/status."""
        return await self._presence.get(requester(call).user_id, check_user_id(call.path["user_id"]))

    async def put_presence(self, call: Call) -> Answer:
        """PUT /presence/{userId}/status."""
        user_id = own_user(call)
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        if "presence" not in body:
            raise InvalidInput("presence is missing", "M_MISSING_PARAM")
        state = _state(body["presence"])
        status_msg = body.get("status_msg")
        if status_msg is not None and (not isinstance(status_msg, str) or "\0" in status_msg):
            raise InvalidInput("status_msg must be a string", "M_BAD_JSON")
        if status_msg is not None and len(status_msg) > MAX_STATUS_LENGTH:
            raise InvalidInput("The status message is too long")
        requester(call).check_not_suspended()
        await self._presence.set_status(user_id, state, status_msg or None)
        return {}


def _state(value: object) -> PresenceState:
    for state in get_args(PresenceState):
        if value == state:
            known: PresenceState = state
            return known
    raise InvalidInput("presence must be online, unavailable or offline", "M_BAD_JSON")


def _allows_backward(body: JsonObject) -> bool:
    return body.get(ALLOW_BACKWARD) is True
