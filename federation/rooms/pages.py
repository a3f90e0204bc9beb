"""Pages of a room's history, for one reader (Client-Server API, "Getting events for a room").

A page looks at a bounded number of events, whatever its filter: it may hold less than was asked for, or nothing, and
say where to go on. Only at the true end of what the reader may see it says so. Order is that of the log: when this
server came to know of an event, with history that was fetched later in its place (`storage/history.py`). Going back, a
page ends where history is missing.
"""

from collections.abc import Collection
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol.types import UserID
from federation.rooms.reader import BEGINNING, END, Access, RoomReader, Seen
from storage import event_pages, history, rooms, strings
from storage.database import Tx
from storage.event_pages import Scan
from storage.events import StoredEvent
from storage.history import Gap
from storage.rooms import Room

MAX_SCANNED = 2_000
"""Events looked at for one page."""
MAX_TIMESTAMPS_SCANNED = 1_000
MAX_PAGE_BYTES = 4 * 1024 * 1024
"""Of events: a page that has more ends, since somebody may ask for many of them at once."""
_CHUNK = 200


class Names(Protocol):
    """Event types that a filter lists (`homeserver/services/sync_filter.py`)."""

    @property
    def plain(self) -> Collection[str] | None:
        """The types, where none of them is a pattern."""


class Wanted(Protocol):
    """Which events a reader asked for."""

    @property
    def is_trivial(self) -> bool:
        """Whether every event passes."""

    @property
    def types(self) -> Names | None:
        """Only these types."""

    @property
    def not_types(self) -> Names | None:
        """None of these types."""

    @property
    def senders(self) -> Collection[str] | None:
        """Only these senders."""

    @property
    def not_senders(self) -> Collection[str]:
        """None of these senders."""

    @property
    def contains_url(self) -> bool | None:
        """Only events with a URL in their content, or without."""

    @property
    def related_by_senders(self) -> Collection[str] | None:
        """Only events that one of these users relates to."""

    @property
    def related_by_rel_types(self) -> Collection[str] | None:
        """Only events that others relate to in one of these ways."""

    def allows_event(self, event_type: str, sender: str | None, content: object) -> bool:
        """Whether an event passes."""


class PageRequest(Struct, frozen=True, kw_only=True):
    """What part of a room's history somebody asks for."""

    backwards: bool
    start: int | None = None
    """The place to start from: the page holds events after this position, or at it and before when going backwards.
    None: either end of the room."""
    stop: int | None = None
    """The place to stop at."""
    limit: int | None
    """How many events at most; None for no event at all, wherever one looks."""
    wanted: Wanted | None = None
    ignored: Collection[UserID] = ()
    """Whose messages the reader does not want."""
    stops_at_gaps: bool = True
    """Whether a page going backwards ends where history is missing that other servers may have."""


class Page(Struct):
    """Events in the order asked for, and where to go on; no `end` where there is nothing more."""

    start: int
    seen: list[Seen] = field(default_factory=list)
    end: int | None = None
    gap: Gap | None = None
    """What is missing before more can be read; there may be room for it in the page."""


class Pages:
    """Reads pages behind the visibility gate."""

    def __init__(self, reader: RoomReader) -> None:
        self._reader = reader

    async def read(self, tx: Tx, access: Access, request: PageRequest) -> Page:
        """One page of what the reader may see."""
        start = request.start
        if start is None:
            start = END if request.backwards else BEGINNING
        page = Page(start)
        limit = request.limit
        scan = await _scan(tx, request)
        if limit is None or scan is None:
            return page
        gap, floor = await _next_gap(tx, access.room, request, start)
        request = request if floor is None else replace(request, stop=floor)
        ranges, is_narrowed = clip([(BEGINNING, END)], request, start), False
        budget, size = MAX_SCANNED, 0
        while ranges:
            looked_at = min(_CHUNK, budget)
            wanted = min(limit - len(page.seen) + 1, looked_at) if _is_whole(request) else looked_at
            scanned = await event_pages.scan(
                tx, access.room.number, replace(scan, ranges=ranges, budget=looked_at, limit=wanted)
            )
            seen = await self._reader.visible(tx, access.room, access.user_id, scanned.events)
            for each in seen:
                if not _passes(each.event, request):
                    continue
                if len(page.seen) == limit or size > MAX_PAGE_BYTES:
                    page.end = end_of(page, request)
                    return page
                page.seen.append(each)
                size += len(each.event.canonical)
            if scanned.last is None:
                break
            budget -= looked_at
            page.end = scanned.last - 1 if request.backwards else scanned.last
            if budget <= 0:
                return page
            if not is_narrowed and len(seen) < len(scanned.events):
                ranges, is_narrowed = await self._reader.ranges(tx, access), True
            ranges = clip(ranges, request, page.end)
        page.gap = gap
        page.end = None if gap is None else gap.bottom - 1
        return page

    async def read_rooms(self, tx: Tx, user_id: UserID, numbers: Collection[int], request: PageRequest) -> Page:
        """What the user may see of all these rooms together, oldest first, between the request's two places."""
        start, stop = request.start or 0, END if request.stop is None else request.stop
        limit = request.limit or 0
        page = Page(start)
        stored = await event_pages.after_in_rooms(tx, numbers, after=start, upto=stop, limit=limit)
        known = await rooms.get_many(tx, {event.room for event in stored})
        by_room: dict[Room, list[StoredEvent]] = {}
        for event in stored:
            by_room.setdefault(known[event.room], []).append(event)
        seen = await self._reader.visible_in(tx, user_id, by_room)
        shown = [each for of_room in seen.values() for each in of_room]
        page.seen = [each for each in shown if _passes(each.event, request)]
        page.seen.sort(key=lambda each: each.event.position)
        page.end = stored[-1].position if stored and len(stored) == limit else None
        return page

    async def find_by_timestamp(self, tx: Tx, access: Access, ts: int, *, backwards: bool) -> Seen | None:
        """The visible event nearest to a time, on one side of it."""
        beyond: int | None = None
        for _ in range(MAX_TIMESTAMPS_SCANNED // _CHUNK):
            stored = await event_pages.find_by_timestamp(
                tx, access.room.number, ts, backwards=backwards, limit=_CHUNK, beyond=beyond
            )
            seen = await self._reader.visible(tx, access.room, access.user_id, stored)
            if seen:
                return seen[0]
            if len(stored) < _CHUNK:
                return None
            ts, beyond = stored[-1].json["origin_server_ts"], stored[-1].position
        return None


async def _next_gap(tx: Tx, room: Room, request: PageRequest, start: int) -> tuple[Gap | None, int | None]:
    """The first gap on the way back, and where to stop: there, or where the room begins."""
    if not request.backwards:
        return None, None
    floor = request.stop
    for gap in await history.gaps(tx, room.number):
        if gap.is_first and (floor is None or gap.low > floor):
            floor = gap.low  # below stands only what is no part of the history
        ends_before = request.stop is None or gap.bottom - 1 > request.stop
        if gap.frontier and request.stops_at_gaps and ends_before and gap.low < start and gap.bottom <= start + 1:
            return gap, gap.bottom - 1
    return None, floor


def clip(ranges: Collection[tuple[int, int]], request: PageRequest, place: int) -> list[tuple[int, int]]:
    """What of the ranges lies between a place and the end of the request, in its direction."""
    if request.backwards:
        low, high = BEGINNING if request.stop is None else request.stop, place
    else:
        low, high = place, END if request.stop is None else request.stop
    clipped = ((max(first, low), min(last, high)) for first, last in ranges)
    return [(first, last) for first, last in clipped if first < last]


def end_of(page: Page, request: PageRequest) -> int:
    """Just behind the last event of the page; where it has none, where it started."""
    if not page.seen:
        return page.start
    last = page.seen[-1].event.place
    return last - 1 if request.backwards else last


def _passes(event: StoredEvent, request: PageRequest) -> bool:
    if event.state_key is None and event.sender in request.ignored:
        return False
    wanted = request.wanted
    return wanted is None or wanted.is_trivial or wanted.allows_event(event.type, event.sender, event.content)


def _is_whole(request: PageRequest) -> bool:
    """Whether the database can tell of the whole filter, so that what it finds is wanted."""
    wanted = request.wanted
    if request.ignored:
        return False
    if wanted is None or wanted.is_trivial:
        return True
    listed = [names.plain for names in (wanted.types, wanted.not_types) if names is not None]
    return wanted.contains_url is None and None not in listed


async def _scan(tx: Tx, request: PageRequest) -> Scan | None:
    """What the database can tell of the filter; None where nothing can pass it."""
    scan = Scan(ranges=(), newest_first=request.backwards, budget=0, limit=0)
    wanted = request.wanted
    if wanted is None:
        return scan
    lists = (
        None if wanted.types is None else wanted.types.plain,
        wanted.senders,
        wanted.related_by_senders,
        wanted.related_by_rel_types,
    )
    not_types = (None if wanted.not_types is None else wanted.not_types.plain) or ()
    texts = {*not_types, *wanted.not_senders, *(text for each in lists for text in each or ())}
    numbers = await strings.find(tx, [text for text in texts if "\0" not in text])
    known = [None if each is None else _known(numbers, each) for each in lists]
    if [] in known:
        return None
    return replace(
        scan,
        types=known[0],
        not_types=_known(numbers, not_types),
        senders=known[1],
        not_senders=_known(numbers, wanted.not_senders),
        related_by_senders=known[2],
        related_by_types=known[3],
    )


def _known(numbers: dict[str, int], texts: Collection[str]) -> list[int]:
    return [numbers[text] for text in texts if text in numbers]
