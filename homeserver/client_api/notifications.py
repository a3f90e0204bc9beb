"""GET /notifications (Client-Server API, "Listing Notifications")."""

from typing import Any

import orjson

from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.notifications import NEWEST, NotificationService
from homeserver.tokens import page_token, parse_page_token

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


class NotificationsAPI:
    """What the caller was notified of."""

    def __init__(self, notifications: NotificationService) -> None:
        self._notifications = notifications

    async def list_notifications(self, call: Call) -> Answer:
        """GET /notifications."""
        start = call.query_text("from")
        found, following = await self._notifications.page(
            requester(call).user_id,
            before=NEWEST if start is None else parse_page_token(start),
            limit=call.query_int("limit", DEFAULT_LIMIT, minimum=1, maximum=MAX_LIMIT),
            only_highlights=call.query_text("only") == "highlight",
        )
        answer: dict[str, Any] = {"notifications": found}
        if following is not None:
            answer["next_token"] = page_token(following)
        return orjson.dumps(answer)
