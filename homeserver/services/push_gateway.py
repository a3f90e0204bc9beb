"""Telling push gateways (Push Gateway API v1.19, `POST /_matrix/push/v1/notify`)."""

from typing import Any, Final

import orjson
from msgspec import Struct
from yarl import URL

from federation.outbound.egress import Egress, EgressRequest
from federation.protocol.types import JsonObject, UserID
from federation.rooms.notices import Notice
from homeserver.services.pushers import WITHOUT_BADGE
from storage.pushers import Pusher
from storage.spans import NO_SPANS, Spans

TIMEOUT_SECONDS = 20.0
MAX_ANSWER_BYTES = 64 * 1024
EVENT_ID_ONLY: Final = "event_id_only"


class GatewayAnswer(Struct, frozen=True):
    """What a gateway said."""

    status: int
    is_rejected: bool
    """It says that the pusher's key is not valid, or no longer."""

    @property
    def is_told(self) -> bool:
        """Whether it has taken what it was told."""
        return 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether it is of no use to tell it the same for long: the request is at fault, not the moment."""
        return 400 <= self.status < 500 and self.status not in (408, 425, 429)


def wants_badge(pusher: Pusher) -> bool:
    """Whether it is to be told of counts (MSC4076)."""
    return pusher.data.get(WITHOUT_BADGE) is not True


def wants_whole_event(pusher: Pusher) -> bool:
    """Whether it is to be told more of an event than its ID."""
    return pusher.data.get("format") != EVENT_ID_ONLY


def notification(pusher: Pusher, notice: Notice | None, tweaks: JsonObject, unread: int) -> JsonObject:
    """What the pusher's gateway is told of an event, or of the user's count alone."""
    device: JsonObject = {
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.pushkey_ts // 1000,
        "data": {name: value for name, value in pusher.data.items() if name != "url"},
    }
    told: JsonObject = {"devices": [device]}
    # A count of zero is left out, as specified, unless it is all that is told: it takes the badge away.
    if wants_badge(pusher) and (unread or notice is None):
        told["counts"] = {"unread": unread}
    if notice is None:
        return {"notification": {"prio": "low", **told}}
    told |= {"event_id": notice.event_id, "room_id": notice.room_id, "prio": _priority(notice, tweaks)}
    if wants_whole_event(pusher):
        device |= {"tweaks": tweaks} if tweaks else {}
        told |= _event(notice, pusher.user_id)
    return {"notification": told}


def _priority(notice: Notice, tweaks: JsonObject) -> str:
    """Low for what makes no sound and is no highlight; of what is encrypted only the client can tell."""
    is_loud = bool(tweaks.get("sound")) or tweaks.get("highlight") is True
    return "high" if is_loud or notice.type == "m.room.encrypted" else "low"


def _event(notice: Notice, user_id: UserID) -> JsonObject:
    told: dict[str, Any] = {
        "type": notice.type,
        "sender": notice.sender,
        "content": notice.content,
        "sender_display_name": notice.sender_display_name,
        "room_name": notice.room_name,
        "room_alias": notice.room_alias,
    }
    if notice.type == "m.room.member":
        told["user_is_target"] = notice.state_key == user_id
    return {name: value for name, value in told.items() if value is not None}


class PushGateways:
    """Speaks to all gateways."""

    def __init__(self, egress: Egress, spans: Spans = NO_SPANS) -> None:
        self._egress = egress
        self._spans = spans

    async def tell(self, pusher: Pusher, told: JsonObject) -> GatewayAnswer:
        """Send a notification to the pusher's gateway; raises EgressError where there is no answer."""
        request = EgressRequest(
            method="POST",
            url=pusher.url,
            headers={"Content-Type": "application/json"},
            body=orjson.dumps(told),
            max_bytes=MAX_ANSWER_BYTES,
            timeout=TIMEOUT_SECONDS,
        )
        with self._spans.begin("push", {"server.address": host_of(pusher)}):
            answer = await self._egress.fetch(request)
        is_rejected = 200 <= answer.status < 300 and pusher.pushkey in _rejected(answer.body)
        return GatewayAnswer(answer.status, is_rejected)


def host_of(pusher: Pusher) -> str:
    """Who is asked, for whatever is counted by it."""
    url = URL(pusher.url, encoded=True)
    return f"{url.raw_host}:{url.port}"


def _rejected(body: bytes) -> list[Any]:
    """The keys that an answer rejects; none where it cannot be read, since what it was told it has taken."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return []
    rejected = answer.get("rejected") if isinstance(answer, dict) else None
    return rejected if isinstance(rejected, list) else []
