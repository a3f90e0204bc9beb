"""Searching messages (Client-Server API v1.19, "Server Side Search").

Results are what `federation/rooms/message_search.py` finds; here is what of them a request asks for: groups, context,
state. A token says where the search goes on, and allows nothing.
"""

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject, StateKey, UserID
from federation.rooms.aggregations import Onlooker
from federation.rooms.message_search import END, Cursor, Hit, MessageSearch, Results, SearchRequest
from federation.rooms.pages import PageRequest
from federation.rooms.reader import Access, Seen, StoredEvent
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.reading_events import RoomReading, fragments
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.services.requester import Requester
from homeserver.services.sync_filter import RoomEventFilter, parse_room_event_filter
from homeserver.tokens import page_token
from storage.database import Tx
from storage.search_index import Key

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
DEFAULT_CONTEXT = 5
MAX_CONTEXT = 20
"""Events before a result, and after it."""
MAX_CONTEXTS = 300
"""Of all results: if they have more, fewer are given at once."""
MAX_STATES = 5
"""Rooms whose whole state is told with the results: there are no more results than that then."""
MAX_TERM = 1_000

_KEYS = {"content.body": Key.BODY, "content.name": Key.NAME, "content.topic": Key.TOPIC}
_GROUPS = ("room_id", "sender")


class _Context(Struct, frozen=True):
    """What surrounds each result."""

    before: int
    after: int
    has_profiles: bool


class _Asked(Struct, frozen=True):
    """The criteria of one request."""

    term: str
    keys: Collection[Key]
    by_rank: bool
    limit: int
    wanted: RoomEventFilter
    context: _Context | None
    has_state: bool
    groups: Sequence[str]


class SearchAPI:
    """The endpoint."""

    def __init__(self, reading: RoomReading, search: MessageSearch) -> None:
        self._reading = reading
        self._reader = reading.reader
        self._search = search

    def routes(self) -> list[ClientRoute]:
        """The endpoint."""
        return [ClientRoute(method="POST", path="v3/search", endpoint=self.post_search, limit="requests")]

    async def post_search(self, call: Call) -> Answer:
        """POST /search."""
        who = requester(call)
        body = await call.body()
        if "search_categories" not in body:
            raise InvalidInput("search_categories is required", "M_MISSING_PARAM")
        categories = fields.get_object(body, "search_categories")
        if "room_events" not in categories:
            return {"search_categories": {}}
        asked = _parse(fields.get_object(categories, "room_events"))
        cursor = _parse_token(call.query_text("next_batch"))
        async with self._reading.database.transaction() as tx:
            request = SearchRequest(
                user_id=who.user_id,
                term=asked.term,
                keys=asked.keys,
                by_rank=asked.by_rank,
                limit=asked.limit,
                cursor=cursor,
                wanted=asked.wanted,
                allows_room=asked.wanted.allows_room,
                only_rooms=asked.wanted.rooms,
                ignored=await self._ignored(tx, who),
            )
            results = await self._search.find(tx, request)
            answer = await self._answer(tx, who, asked, results)
        return orjson.dumps({"search_categories": {"room_events": answer}})

    async def _answer(self, tx: Tx, who: Requester, asked: _Asked, results: Results) -> JsonObject:
        hits = results.hits
        accesses = await self._accesses(tx, who, hits) if asked.context is not None or asked.has_state else {}
        around = [await self._around(tx, who, accesses.get(hit.room.number), hit, asked.context) for hit in hits]
        onlooker = Onlooker(who.user_id, await self._ignored(tx, who), who.device)
        everything = [
            each for hit, (before, after) in zip(hits, around, strict=True) for each in (*before, hit.seen, *after)
        ]
        bundles = await self._reading.aggregations.bundle(tx, onlooker, everything)
        await self._reader.render(tx, everything, who.device, bundles)  # at once: what each needs is then there

        async def render(seen: Sequence[Seen]) -> list[orjson.Fragment]:
            return fragments(await self._reader.render(tx, seen, who.device, bundles))

        shown: list[JsonObject] = []
        for hit, (before, after) in zip(hits, around, strict=True):
            for event in await render([hit.seen]):
                result: JsonObject = {"rank": hit.rank, "result": event}
                if asked.context is not None:
                    edges = [*reversed(before), hit.seen, *after]
                    result["context"] = {
                        "start": page_token(edges[0].event.place - 1),
                        "end": page_token(edges[-1].event.place),
                        "events_before": await render(before),
                        "events_after": await render(after),
                    }
                    if asked.context.has_profiles:
                        result["context"]["profile_info"] = await self._profiles(tx, hit, edges)
                shown.append(result)
        answer: JsonObject = {
            "count": results.count,
            "highlights": sorted(results.highlights),
            "results": shown,
        }
        if asked.has_state:
            answer["state"] = await self._state(tx, asked.wanted, accesses, hits)
        if asked.groups:
            answer["groups"] = {key: _grouped(key, results) for key in asked.groups}
        if results.next is not None:
            answer["next_batch"] = _token(results.next)
        return answer

    async def _ignored(self, tx: Tx, who: Requester) -> Collection[UserID]:
        return await self._reading.account_data.ignored_users(tx, who.user_id)

    async def _accesses(self, tx: Tx, who: Requester, hits: Sequence[Hit]) -> dict[int, Access]:
        """How the user stands to the rooms of these results, as far as they may read there today."""
        found: dict[int, Access] = {}
        for room in {hit.room.number: hit.room for hit in hits}.values():
            try:
                found[room.number] = await self._reader.access(tx, room.room_id, who.user_id)
            except Forbidden:  # invited, and shown what invited users are shown
                continue
        return found

    async def _around(
        self, tx: Tx, who: Requester, access: Access | None, hit: Hit, wanted: _Context | None
    ) -> tuple[Sequence[Seen], Sequence[Seen]]:
        """What stands before a result, and after it, the nearest first, as far as the user may see it."""
        if access is None or wanted is None:
            return (), ()
        ignored, place = await self._ignored(tx, who), hit.seen.event.place
        before = PageRequest(backwards=True, start=place - 1, limit=wanted.before or None, ignored=ignored)
        after = PageRequest(backwards=False, start=place, limit=wanted.after or None, ignored=ignored)
        pages = [await self._reading.pages.read(tx, access, request) for request in (before, after)]
        return pages[0].seen, pages[1].seen

    async def _profiles(self, tx: Tx, hit: Hit, shown: Sequence[Seen]) -> JsonObject:
        """The profiles that the senders of these events had when the result was sent."""
        if not hit.seen.shows_state:
            return {}
        keys: set[StateKey] = {("m.room.member", each.event.sender) for each in shown}
        state = await self._reader.state_at(tx, hit.room, hit.seen.event.point_after, keys)
        return {event.state_key: _profile(event) for event in state if event.state_key is not None}

    async def _state(
        self, tx: Tx, wanted: RoomEventFilter, accesses: Mapping[int, Access], hits: Sequence[Hit]
    ) -> JsonObject:
        """The state of each room that has results, as the user may see it."""
        state: JsonObject = {}
        for access in accesses.values():
            stored = await self._reader.state(tx, access)
            if wanted.lazy_load_members:
                senders = {hit.seen.event.sender for hit in hits if hit.room.number == access.room.number}
                stored = [event for event in stored if event.type != "m.room.member" or event.state_key in senders]
            state[access.room.room_id] = fragments(await self._reader.render_state(tx, stored))
        return state


def _profile(member: StoredEvent) -> JsonObject:
    names = (("displayname", "displayname"), ("avatar_url", "avatar_url"))
    found = {name: member.content.get(key) for name, key in names}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _grouped(key: str, results: Results) -> JsonObject:
    """The page's results by room or sender, the group of the first result first."""
    groups: dict[str, list[str]] = {}
    for hit in results.hits:
        value: str = hit.room.room_id if key == "room_id" else hit.seen.event.sender
        groups.setdefault(value, []).append(hit.seen.event.event_id)
    answer: JsonObject = {}
    for order, (value, event_ids) in enumerate(groups.items(), 1):
        group: JsonObject = {"order": order, "results": event_ids}
        if results.next is not None:
            group["next_batch"] = _token(results.groups(key, value))
        answer[value] = group
    return answer


# --- what was asked


def _parse(criteria: JsonObject) -> _Asked:
    """The criteria of a request; raises for what is none."""
    term = fields.get_text(criteria, "search_term")
    if len(term) > MAX_TERM:
        raise InvalidInput(f"search_term may have {MAX_TERM} characters")
    keys = fields.get_texts(criteria, "keys")
    order = fields.find_text(criteria, "order_by") or "rank"
    groups = [
        fields.get_text(group, "key")
        for group in fields.get_objects(fields.get_object(criteria, "groupings"), "group_by")
    ]
    for name, given, known in (
        ("keys", keys, _KEYS),
        ("order_by", [order], ("rank", "recent")),
        ("key", groups, _GROUPS),
    ):
        unknown = [each for each in given if each not in known]
        if unknown:
            raise InvalidInput(f"{name} must be one of {', '.join(known)}")
    wanted = parse_room_event_filter(criteria.get("filter"), "filter")
    context = _parse_context(criteria)
    limit = min(wanted.limit or DEFAULT_LIMIT, MAX_LIMIT)
    if context is not None:
        limit = max(min(limit, MAX_CONTEXTS // max(context.before + context.after, 1)), 1)
    has_state = fields.get_bool(criteria, "include_state")
    if has_state:
        limit = min(limit, MAX_STATES)
    return _Asked(
        term=term,
        keys={_KEYS[key] for key in keys} or set(Key),
        by_rank=order == "rank",
        limit=limit,
        wanted=wanted,
        context=context,
        has_state=has_state,
        groups=list(dict.fromkeys(groups)),
    )


def _parse_context(criteria: JsonObject) -> _Context | None:
    if criteria.get("event_context") is None:
        return None
    context = fields.get_object(criteria, "event_context")
    limits: list[int] = []
    for name in ("before_limit", "after_limit"):
        limit = fields.find_int(context, name)
        if limit is not None and limit < 0:
            raise InvalidInput(f"{name} must not be negative")
        limits.append(DEFAULT_CONTEXT if limit is None else min(limit, MAX_CONTEXT))
    return _Context(limits[0], limits[1], fields.get_bool(context, "include_profile"))


# --- tokens


def _token(cursor: Cursor) -> str:
    parts = [cursor.below, cursor.floor, cursor.skipped, cursor.given, cursor.room_id, cursor.sender]
    return base64.urlsafe_b64encode(orjson.dumps(parts)).rstrip(b"=").decode()


def _parse_token(text: str | None) -> Cursor:
    """Where a search goes on; raises M_INVALID_PARAM for what this endpoint did not give out."""
    if text is None:
        return Cursor()
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        below, floor, skipped, given, room_id, sender = parts
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidInput("next_batch is no token of this endpoint") from error
    if not (
        _is_position(below)
        and (floor is None or _is_position(floor))
        and all(type(number) is int and 0 <= number <= END for number in (skipped, given))
        and all(value is None or isinstance(value, str) for value in (room_id, sender))
    ):
        raise InvalidInput("next_batch is no token of this endpoint")
    return Cursor(below, floor, skipped, given, room_id, sender)


def _is_position(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return type(value) is int and abs(value) <= END
