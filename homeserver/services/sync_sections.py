"""One room of a sync answer: its timeline, state, ephemeral events and counts, as clients read them. Pure but for the
events' client form, which may have to be made (Client-Server API, "Syncing").
"""

from collections.abc import Collection, Sequence
from typing import Any

import orjson
from msgspec import Struct, field

from federation.protocol.types import JsonObject, UserID
from federation.rooms.aggregations import Bundles
from federation.rooms.client_events import as_sent
from federation.rooms.room_news import RoomNews, StoredEvent
from federation.rooms.timelines import Timelines
from homeserver.services.account_data import client_event
from homeserver.services.receipts import receipt_events
from homeserver.services.sync_sorting import RoomsRequest
from homeserver.services.unread_counts import Unread
from homeserver.tokens import page_token
from storage.account_data import AccountDataChanged
from storage.receipts import ReceiptMoved


class Besides(Struct):
    """What a room holds besides events."""

    typing: Collection[UserID] | None = None
    """Who types, where that changed."""
    receipts: dict[Any, ReceiptMoved] = field(default_factory=dict)
    """The newest of each kind, user and thread."""
    account_data: dict[str, AccountDataChanged] = field(default_factory=dict)
    is_read: bool = False
    """The user's own reading moved, and with it the counts."""


NOTHING = Besides()


def is_news(request: RoomsRequest, news: RoomNews) -> bool:
    """Whether a room's events are worth telling."""
    return bool(news.timeline or news.is_limited or shown_state(request, news))


async def section(
    timelines: Timelines, request: RoomsRequest, news: RoomNews, besides: Besides, bundles: Bundles
) -> JsonObject:
    """One room."""
    shown = shown_state(request, news)
    timeline = [each.event for each in news.timeline]
    if request.filter.federation_format:
        events, state = _as_sent(request, news, timeline), _as_sent(request, news, shown)
    else:
        events = _fragments(request, await timelines.render(news.timeline, request.device, bundles))
        rendered = await timelines.render_state(shown, request.device, is_shared=news.is_shared)
        state = _fragments(request, rendered)
    return {
        "timeline": {"events": events, "limited": news.is_limited, "prev_batch": page_token(news.before)},
        request.state_name: {"events": state},
        "ephemeral": {"events": _ephemeral(besides)},
        "account_data": {"events": [orjson.Fragment(client_event(each)) for each in besides.account_data.values()]},
    }


def shown_state(request: RoomsRequest, news: RoomNews) -> list[StoredEvent]:
    """The state that the request asks for."""
    wanted = request.filter.state
    if not wanted.allows_room(news.room.room_id):
        return []
    shown = news.state_after if request.use_state_after else news.state
    if wanted.is_trivial:
        return shown
    return [event for event in shown if wanted.allows_event(event.type, event.sender, event.content)]


def _fragments(request: RoomsRequest, events: Sequence[bytes]) -> list[Any]:
    if request.filter.event_fields is None:
        return [orjson.Fragment(event) for event in events]
    return [request.filter.shape(orjson.loads(event)) for event in events]


def _as_sent(request: RoomsRequest, news: RoomNews, events: Sequence[StoredEvent]) -> list[Any]:
    return [request.filter.shape(as_sent(event, news.room)) for event in events if event.is_readable]


def _ephemeral(besides: Besides) -> list[JsonObject]:
    events = receipt_events(sorted(besides.receipts.values(), key=lambda receipt: receipt.thread))
    if besides.typing is not None:
        events.insert(0, {"type": "m.typing", "content": {"user_ids": list(besides.typing)}})
    return events


def add_counts(section: JsonObject, unread: Unread | None, *, by_thread: bool) -> None:
    """What the user has not read."""
    if unread is None:
        return
    if not by_thread:
        section["unread_notifications"] = _counts(unread.total)
        return
    section["unread_notifications"] = _counts(unread.main.count)
    threads = {root: _counts(counts.count) for root, counts in unread.threads.items() if any(counts.count)}
    if threads:
        section["unread_thread_notifications"] = threads


def _counts(pair: tuple[int, int]) -> JsonObject:
    return {"notification_count": pair[0], "highlight_count": pair[1]}
