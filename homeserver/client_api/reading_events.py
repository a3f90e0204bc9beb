"""Reading a room's history (Client-Server API v1.19, "Getting events for a room", "Event context").

Every read goes through `federation/rooms/reader.py`; who may read nothing of a room is answered as if it did not exist.
"""

import time
from collections.abc import Collection, Sequence
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from federation.protocol import canonical_json
from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.types import UserID
from federation.rooms.aggregations import Aggregations, Onlooker
from federation.rooms.backfill import Backfill, Moment
from federation.rooms.incomplete_rooms import BeingJoined, IncompleteRooms
from federation.rooms.pages import Page, PageRequest, Pages
from federation.rooms.reader import Access, Point, RoomReader, Seen, StoredEvent
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.account_data import AccountDataService
from homeserver.services.requester import Requester
from homeserver.services.sync_filter import MAX_LIMIT, RoomEventFilter, parse_room_event_filter
from homeserver.tokens import page_token, parse_page_token
from storage import rooms
from storage.database import Database, Tx
from storage.tail import Tail

DEFAULT_LIMIT = 10
MAX_FILTER_BYTES = 16 * 1024
MAX_FILTER_DEPTH = 16


class RoomReading(Struct, frozen=True):
    """What every endpoint that reads rooms needs."""

    database: Database
    tail: Tail
    reader: RoomReader
    aggregations: Aggregations
    pages: Pages
    account_data: AccountDataService
    backfill: Backfill
    incomplete: IncompleteRooms

    async def render(self, tx: Tx, who: Requester, seen: Sequence[Seen]) -> list[bytes]:
        """The client form of events, with what relates to them."""
        ignored = await self.account_data.ignored_users(tx, who.user_id)
        bundles = await self.aggregations.bundle(tx, Onlooker(who.user_id, ignored, who.device), seen)
        return await self.reader.render(tx, seen, who.device, bundles)

    async def until_complete(self, room_id: str) -> None:
        """Wait for the members of a room that was joined without them; raises BeingJoined when that takes too long."""
        deadline = time.monotonic() + self.incomplete.wait_seconds
        while True:
            async with self.database.read() as tx:
                room = await rooms.find(tx, room_id)
                # This process may not have heard of it, and reads what others have written all the same.
                if room is None or not (await rooms.rows(tx, [room.number]))[room.number].lacks_members:
                    return
            if time.monotonic() > deadline:
                raise BeingJoined
            await self.incomplete.wait(room.number, was_refused=True)


class ReadingEventsAPI:
    """Events of rooms, one by one and by pages."""

    def __init__(self, reading: RoomReading) -> None:
        self._database = reading.database
        self._tail = reading.tail
        self._reader = reading.reader
        self._pages = reading.pages
        self._account_data = reading.account_data
        self._backfill = reading.backfill
        self._reading = reading

    async def get_messages(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/messages."""
        who = requester(call)
        backwards, wanted = direction(call), room_event_filter(call)
        start, stop = place(call, "from"), place(call, "to")
        limit = _limit(call, wanted)
        if start is None:
            start = self._tail.position if backwards else None
        request = PageRequest(
            backwards=backwards,
            start=start,
            stop=stop,
            limit=limit if wanted.allows_room(call.path["room_id"]) else None,
            wanted=wanted,
        )
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            request = replace(request, ignored=await self._account_data.ignored_users(tx, who.user_id))

            async def look(history: Tx) -> tuple[Page, bytes | None]:
                page = await self._pages.read(history, access, request)
                is_enough = page.gap is None or len(page.seen) >= limit
                return page, await self._messages(history, call, access, page) if is_enough else None

            page, answer = await self._database.read_history(tx, look)
        if answer is not None:
            return answer
        assert page.gap is not None  # else it was enough
        stops_at_gaps = await self._backfill.reach(access.room, page.gap, page.start, limit)
        async with self._database.read() as tx:
            page = await self._pages.read(tx, access, replace(request, stops_at_gaps=stops_at_gaps))
            return await self._messages(tx, call, access, page)

    async def _messages(self, tx: Tx, call: Call, access: Access, page: Page) -> bytes:
        """The answer that a page makes."""
        answer: dict[str, Any] = {
            "start": call.query_text("from") or page_token(page.start),
            "chunk": fragments(await self._reading.render(tx, requester(call), page.seen)),
        }
        if page.end is not None:
            answer["end"] = page_token(page.end)
        if room_event_filter(call).lazy_load_members:
            point = _last_point(page.seen[::-1] if direction(call) else page.seen)
            answer["state"] = await self._members(tx, access, point, _senders(page.seen))
        return orjson.dumps(answer)

    async def _members(
        self, tx: Tx, access: Access, point: Point | None, members: Collection[UserID]
    ) -> list[orjson.Fragment]:
        """The member events of these users at a point."""
        if point is None:
            return []
        keys = [("m.room.member", user_id) for user_id in members]
        state = await self._reader.state_at(tx, access.room, point, keys)
        return fragments(await self._reader.render_state(tx, state))

    async def get_event(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/event/{eventId}: M_NOT_FOUND also for what the reader may not see."""
        who = requester(call)
        async with self._database.read() as tx:
            try:
                access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            except Forbidden as error:
                raise NotFound("There is no such event") from error
            seen = await self._reader.event(tx, access, call.path["event_id"])
            return one(await self._reading.render(tx, who, [seen]))

    async def find_event(self, call: Call) -> Answer:
        """GET /events/{eventId}: as `get_event`, in whatever room it is."""
        who = requester(call)
        async with self._database.read() as tx:
            seen = await self._reader.event_anywhere(tx, call.path["event_id"], who.user_id)
            return one(await self._reading.render(tx, who, [seen]))

    async def get_context(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/context/{eventId}."""
        who = requester(call)
        wanted = room_event_filter(call)
        limit = _limit(call, wanted)
        if not wanted.lazy_load_members:
            await self._reading.until_complete(call.path["room_id"])
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            target = await self._reader.event(tx, access, call.path["event_id"])
            ignored = await self._account_data.ignored_users(tx, who.user_id)
            size = limit // 2 if wanted.allows_room(access.room.room_id) else None
            request = PageRequest(
                backwards=True, start=target.event.place - 1, limit=size, wanted=wanted, ignored=ignored
            )

            async def look(history: Tx) -> tuple[Page, bytes | None]:
                before = await self._pages.read(history, access, request)
                is_enough = size is None or before.gap is None or len(before.seen) >= size
                return before, await self._context(history, call, access, (before, target)) if is_enough else None

            before, answer = await self._database.read_history(tx, look)
        if answer is not None:
            return answer
        assert size is not None  # else it was enough
        assert before.gap is not None
        stops_at_gaps = await self._backfill.reach(access.room, before.gap, before.start, size)
        async with self._database.read() as tx:
            before = await self._pages.read(tx, access, replace(request, stops_at_gaps=stops_at_gaps))
            return await self._context(tx, call, access, (before, target))

    async def _context(self, tx: Tx, call: Call, access: Access, found: tuple[Page, Seen]) -> bytes:
        """The answer, given the event and what comes before it."""
        who, wanted, (before, target) = requester(call), room_event_filter(call), found
        limit = _limit(call, wanted)
        request = PageRequest(
            backwards=False,
            start=target.event.place,
            limit=limit - limit // 2 if wanted.allows_room(access.room.room_id) else None,
            wanted=wanted,
            ignored=await self._account_data.ignored_users(tx, who.user_id),
        )
        after = await self._pages.read(tx, access, request)
        shown = [*reversed(before.seen), target, *after.seen]
        state = await self._state_for(tx, access, shown, wanted)
        onlooker = Onlooker(who.user_id, request.ignored, who.device)
        bundles = await self._reading.aggregations.bundle(tx, onlooker, shown)

        async def render(seen: Sequence[Seen]) -> list[bytes]:
            return await self._reader.render(tx, seen, who.device, bundles)

        answer = {
            "start": page_token(shown[0].event.place - 1),
            "end": page_token(shown[-1].event.place),
            "events_before": fragments(await render(before.seen)),
            "event": orjson.Fragment(one(await render([target]))),
            "events_after": fragments(await render(after.seen)),
            "state": fragments(await self._reader.render_state(tx, state)),
        }
        return orjson.dumps(answer)

    async def _state_for(
        self, tx: Tx, access: Access, shown: Sequence[Seen], wanted: RoomEventFilter
    ) -> Sequence[StoredEvent]:
        """The state at the last of these events, as far as it is the reader's and they want it."""
        last = _last_point(shown)
        if last is None:
            return []
        if wanted.lazy_load_members:
            state = await self._reader.lazy_state_at(tx, access.room, last, _senders(shown))
        else:
            state = await self._reader.state_at(tx, access.room, last)
        if wanted.is_trivial:
            return state
        return [event for event in state if wanted.allows_event(event.type, event.sender, event.content)]

    async def get_by_timestamp(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/timestamp_to_event."""
        who = requester(call)
        backwards = direction(call)
        if call.query_text("ts") is None:
            raise InvalidInput("ts is required", "M_MISSING_PARAM")
        ts = call.query_int("ts", 0)
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            seen = await self._pages.find_by_timestamp(tx, access, ts, backwards=backwards)
        nearest = None if seen is None else (seen.event.place, seen.event.json["origin_server_ts"])
        if await self._backfill.find_by_time(access.room, Moment(ts, backwards, nearest)) is not None:
            async with self._database.read() as tx:
                seen = await self._pages.find_by_timestamp(tx, access, ts, backwards=backwards)
        if seen is None:
            raise NotFound("There is no event on that side of that time")
        return {"event_id": seen.event.event_id, "origin_server_ts": seen.event.json["origin_server_ts"]}


def direction(call: Call) -> bool:
    """Whether `dir` is backwards; it must be there."""
    text = call.query_text("dir")
    if text is None:
        raise InvalidInput("dir is required", "M_MISSING_PARAM")
    if text not in ("b", "f"):
        raise InvalidInput("dir must be b or f")
    return text == "b"


def room_event_filter(call: Call) -> RoomEventFilter:
    """The filter in the query; everything passes without one."""
    text = call.query_text("filter")
    if not text:
        return RoomEventFilter()
    data = text.encode()
    if len(data) > MAX_FILTER_BYTES:
        raise InvalidInput("The filter is too long")
    return parse_room_event_filter(canonical_json.loads(data, max_depth=MAX_FILTER_DEPTH))


def fragments(events: Sequence[bytes]) -> list[orjson.Fragment]:
    """Encoded events as parts of an answer."""
    return [orjson.Fragment(event) for event in events]


def one(rendered: Sequence[bytes]) -> bytes:
    """The only event; raises M_NOT_FOUND where it has no form that clients could be shown."""
    if not rendered:
        raise NotFound("There is no such event")
    return rendered[0]


def _limit(call: Call, wanted: RoomEventFilter) -> int:
    return call.query_int("limit", wanted.limit or DEFAULT_LIMIT, maximum=MAX_LIMIT)


def place(call: Call, name: str) -> int | None:
    """The place that a token in the query stands for."""
    text = call.query_text(name)
    return parse_page_token(text) if text else None


def _last_point(seen: Sequence[Seen]) -> Point | None:
    """After the last of these events at which the reader may see the room's state."""
    return next((each.event.point_after for each in reversed(seen) if each.shows_state), None)


def _senders(seen: Sequence[Seen]) -> set[UserID]:
    return {each.event.sender for each in seen}
