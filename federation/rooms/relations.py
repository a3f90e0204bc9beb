"""Events by what they relate to, for one reader: an event's children, a room's threads (Client-Server API v1.19,
"Relationships API", "Querying threads in a room").
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from federation.rooms.aggregations import Aggregations, Bundles, Onlooker, may_be_root
from federation.rooms.pages import Page, PageRequest, clip, end_of
from federation.rooms.reader import BEGINNING, END, Access, RoomReader, Seen
from storage import related_events, strings
from storage.database import Tx
from storage.events import StoredEvent
from storage.related_events import DEPTH as DEPTH
from storage.related_events import Children, Threads
from storage.rooms import Room

ROUNDS = 5
"""How often more is looked at for one page, where the reader may not see, or does not want, what was found."""
_BY_NOBODY = 0
"""What stands for the redaction of an event that only this reader sees redacted: no event has this position."""


class Wanted(Struct, frozen=True):
    """Which children somebody asks for."""

    parent: Seen
    rel_type: str | None = None
    event_type: str | None = None
    recurses: bool = False


class ThreadPage(Struct, frozen=True):
    """Roots of threads, and the place to go on from; none where there is nothing more."""

    roots: Sequence[Seen]
    bundles: Bundles
    end: int | None


class RelationReader:
    """Reads relations behind the visibility gate."""

    def __init__(self, reader: RoomReader, aggregations: Aggregations) -> None:
        self._reader = reader
        self._aggregations = aggregations

    # --- children

    async def children(self, tx: Tx, access: Access, wanted: Wanted, request: PageRequest) -> Page:
        """One page of the events that relate to one which the reader was shown."""
        start = request.start
        if start is None:
            start = END if request.backwards else BEGINNING
        page, limit = Page(start), request.limit or 0
        asked = await _asked(tx, access.room, wanted, request)
        if asked is None:
            return page
        seen = await self._reader.ranges(tx, access)
        ranges = clip(seen, request, start)
        for _ in range(ROUNDS):
            found = await _look(tx, wanted, replace(asked, ranges=ranges, seen=seen))
            for each in await self._reader.visible(tx, access.room, access.user_id, found):
                if each.event.state_key is None and each.event.sender in request.ignored:
                    continue
                if len(page.seen) == limit:
                    page.end = end_of(page, request)
                    return page
                page.seen.append(each)
            if len(found) < asked.limit:
                page.end = None
                return page
            last = found[-1].place
            page.end = last - 1 if request.backwards else last
            ranges = clip(ranges, request, page.end)
        return page

    # --- threads

    async def threads(
        self, tx: Tx, access: Access, onlooker: Onlooker, request: PageRequest, *, participated: bool
    ) -> ThreadPage:
        """The threads whose newest reply stands at the request's start or before, the newest first."""
        before = END if request.start is None else request.start + 1
        limit = request.limit or 0
        eyes = await self._aggregations.eyes(tx, onlooker, [access.room.number])
        wanted = Threads(room=access.room.number, before=before, limit=limit + 1, participated=participated)
        roots: list[Seen] = []
        for _ in range(ROUNDS):
            found = await related_events.list_threads(tx, eyes, wanted)
            places = dict(found)
            stored = await related_events.roots(tx, access.room.number, list(places))
            stored = [_as_shown(root, onlooker) for root in stored if may_be_root(root)]
            seen = await self._reader.visible(tx, access.room, access.user_id, stored)
            room_left = limit - len(roots)
            roots += seen[:room_left]
            if len(seen) > room_left:
                end = places[roots[-1].event.event_id] - 1 if room_left else wanted.before - 1
                return await self._with_bundles(tx, onlooker, roots, end)
            if len(found) <= limit:
                return await self._with_bundles(tx, onlooker, roots, None)
            wanted = replace(wanted, before=found[-1][1])
        return await self._with_bundles(tx, onlooker, roots, wanted.before - 1)

    async def _with_bundles(self, tx: Tx, onlooker: Onlooker, roots: Sequence[Seen], end: int | None) -> ThreadPage:
        return ThreadPage(roots, await self._aggregations.bundle(tx, onlooker, roots), end)


def _as_shown(root: StoredEvent, onlooker: Onlooker) -> StoredEvent:
    """The root, redacted where the reader ignores its sender."""
    if root.sender not in onlooker.ignored or root.redacted_by is not None:
        return root
    return replace(root, redacted_by=_BY_NOBODY, client=None)


async def _asked(tx: Tx, room: Room, wanted: Wanted, request: PageRequest) -> Children | None:
    """What to ask the database for; None where nothing can be found."""
    names = [name for name in (wanted.rel_type, wanted.event_type) if name is not None]
    numbers: Mapping[str, int] = {}
    if names:
        numbers = await strings.find(tx, names)
    if any(name not in numbers for name in names):
        return None
    return Children(
        room=room.number,
        parent=wanted.parent.event.event_id,
        type=None if wanted.rel_type is None else numbers[wanted.rel_type],
        event_type=None if wanted.event_type is None else numbers[wanted.event_type],
        ranges=(),
        seen=(),
        newest_first=request.backwards,
        limit=(request.limit or 0) + 1,
    )


async def _look(tx: Tx, wanted: Wanted, asked: Children) -> list[StoredEvent]:
    """The nearest children, or descendants, in the order asked for."""
    if not asked.ranges:
        return []
    found = await related_events.children(tx, asked)
    if wanted.recurses:
        deeper = await related_events.descendants(tx, asked)
        merged = {event.position: event for event in (*found, *deeper)}
        merged.pop(wanted.parent.event.position, None)
        found = sorted(merged.values(), key=lambda event: event.place, reverse=asked.newest_first)[: asked.limit]
    return found
