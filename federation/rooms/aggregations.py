"""What relates to events, bundled with them (Client-Server API v1.19, "Aggregations of child events").

A page that nothing relates to costs one query; one to which something does some ten, however long it is and however
many rooms it is from.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import orjson
from msgspec import Struct, field

from federation.protocol.relations import REFERENCE, REPLACE, THREAD, related_event
from federation.protocol.types import EventID, JsonObject, UserID
from federation.rooms import client_events
from federation.rooms.current_rooms import CurrentRooms
from federation.rooms.reader import BEGINNING, END, RoomReader, Seen
from storage import related_events, rooms, strings
from storage.database import Tx
from storage.events import StoredEvent
from storage.related_events import Eyes, Thread
from storage.relations import EDITS, REFERENCES, REPLIES

Bundles = Mapping[int, bytes]
"""By an event's position, its `m.relations` as JSON."""

NO_BUNDLES: Bundles = {}


class Onlooker(Struct, frozen=True):
    """For whom something is bundled."""

    user_id: UserID
    ignored: Collection[UserID] = ()
    device: int | None = None
    upto: int | None = None
    """A place in the log: what came later they hear of later. None: all that is here."""


class _Found(Struct):
    """What relates to the events of a page, by their positions."""

    edits: Mapping[int, StoredEvent] = field(default_factory=dict)
    threads: Mapping[int, Thread] = field(default_factory=dict)
    references: Mapping[int, Sequence[EventID]] = field(default_factory=dict)


class Aggregations:
    """Bundles what relates to events with them."""

    def __init__(self, reader: RoomReader, current_rooms: CurrentRooms | None = None) -> None:
        """`current_rooms` may know of events to which nothing relates."""
        self._reader = reader
        self._current_rooms = current_rooms

    async def bundle(self, tx: Tx, onlooker: Onlooker, seen: Iterable[Seen]) -> Bundles:
        """What to give `RoomReader.render` or `Timelines.render` with these events, of whatever rooms."""
        return await self._bundle(tx, onlooker, seen, None)

    async def _bundle(self, tx: Tx, onlooker: Onlooker, seen: Iterable[Seen], eyes: Eyes | None) -> Bundles:
        """As `bundle`; `eyes` where it is known already what is seen in the rooms of these events."""
        shown = {each.event.position: each.event for each in seen if self._may_be_parent(each.event)}
        if not shown:
            return NO_BUNDLES
        kinds = await self._bundled_kinds(tx, shown)
        if not kinds:
            return NO_BUNDLES
        parents = {position: shown[position] for position in kinds}
        eyes = eyes or await self.eyes(tx, onlooker, {event.room for event in parents.values()})
        found = _Found(
            edits=await related_events.newest_edits(
                tx, eyes, [event for at, event in parents.items() if EDITS in kinds[at] and _may_be_edited(event)]
            ),
            threads=await related_events.threads_from(
                tx, eyes, [event for at, event in parents.items() if REPLIES in kinds[at] and may_be_root(event)]
            ),
            references=await related_events.references(
                tx, eyes, [event for at, event in parents.items() if REFERENCES in kinds[at]]
            ),
        )
        rendered = await self._render(tx, onlooker, eyes, found)
        bundles: dict[int, bytes] = {}
        for position, event in parents.items():
            if bundle := _bundle(event, found, rendered, onlooker):
                bundles[position] = orjson.dumps(bundle)
        return bundles

    def _may_be_parent(self, event: StoredEvent) -> bool:
        known = self._current_rooms
        return may_be_parent(event) and (known is None or not known.is_childless(event))

    async def _bundled_kinds(self, tx: Tx, shown: Mapping[int, StoredEvent]) -> dict[int, set[int]]:
        """By position, in what ways others relate to those of these events to which any do."""
        known = self._current_rooms
        changes = {} if known is None else known.changes_of({event.room for event in shown.values()})
        kinds = await related_events.bundled_kinds(tx, shown.values())
        if known is not None:
            known.note_childless((event for position, event in shown.items() if position not in kinds), changes)
        return kinds

    async def eyes(self, tx: Tx, onlooker: Onlooker, numbers: Collection[int]) -> Eyes:
        """Where in these rooms somebody sees what."""
        known = await strings.find(tx, [onlooker.user_id, *onlooker.ignored])
        ranges = await self._reader.ranges_in(tx, onlooker.user_id, numbers)
        user = known.pop(onlooker.user_id, None)
        return Eyes(
            user,
            [*known.values()],
            {room: shown for room, shown in ranges.items() if shown != [(BEGINNING, END)]},
            onlooker.upto,
        )

    async def _render(self, tx: Tx, onlooker: Onlooker, eyes: Eyes, found: _Found) -> dict[int, bytes]:
        """The client form of edits and newest replies that pass the gate, the latter with what relates to them."""
        latest = [thread.latest for thread in found.threads.values()]
        stored = {event.position: event for event in (*found.edits.values(), *latest)}
        if not stored:
            return {}
        known = await rooms.get_many(tx, {event.room for event in stored.values()})
        by_room: dict[rooms.Room, list[StoredEvent]] = {}
        for event in stored.values():
            by_room.setdefault(known[event.room], []).append(event)
        visible = await self._reader.visible_in(tx, onlooker.user_id, by_room)
        seen = [each for of_room in visible.values() for each in of_room]
        replies = {event.position for event in latest}
        # Ends there: a reply relates to the root, and so is the root of no thread.
        inner = await self._bundle(tx, onlooker, [each for each in seen if each.event.position in replies], eyes)
        await client_events.prepare(tx, [each.event for each in seen])
        return {
            each.event.position: client_events.finish(
                each.event,
                membership=each.membership,
                device=onlooker.device,
                relations=inner.get(each.event.position),
            )
            for each in seen
            if client_events.is_presentable(each.event)
        }


def _bundle(event: StoredEvent, found: _Found, rendered: Mapping[int, bytes], onlooker: Onlooker) -> JsonObject:
    bundle: JsonObject = {}
    edit = found.edits.get(event.position)
    if edit is not None and edit.position in rendered:
        bundle[REPLACE] = orjson.Fragment(rendered[edit.position])
    thread = found.threads.get(event.position)
    if thread is not None and thread.latest.position in rendered:
        bundle[THREAD] = {
            "latest_event": orjson.Fragment(rendered[thread.latest.position]),
            "count": thread.count,
            "current_user_participated": thread.is_participant or event.sender == onlooker.user_id,
        }
    if event.position in found.references:
        bundle[REFERENCE] = {"chunk": [{"event_id": event_id} for event_id in found.references[event.position]]}
    return bundle


def may_be_parent(event: StoredEvent) -> bool:
    """Whether anything is bundled with such an event."""
    return event.state_key is None and event.is_readable


def may_be_root(event: StoredEvent) -> bool:
    """Whether a thread may start at the event ("Threading")."""
    return may_be_parent(event) and (event.redacted_by is not None or related_event(event.content) is None)


def _may_be_edited(event: StoredEvent) -> bool:
    if event.redacted_by is not None:
        return False
    relation = related_event(event.content)
    return relation is None or relation.type != REPLACE
