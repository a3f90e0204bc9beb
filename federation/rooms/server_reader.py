"""What other servers read of rooms: events, states, auth chains and stretches of history, as PDUs ("PDUs").

Everything passes `server_access.py`. Walks along the graph are bounded, and read ahead what stands nearby, so that a
line of events costs two statements. A state and its auth chain are handed out some events at a time.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Collection, Iterable, Sequence

from msgspec import Struct

from federation.protocol.errors import NotFound
from federation.protocol.types import EventID, ServerName
from federation.rooms.server_access import ServerAccess, is_given, render
from storage import auth_chains, event_pages, events, room_state, rooms
from storage.database import Database, Tx
from storage.events import Flag, StoredEvent
from storage.room_state import Point
from storage.rooms import Room

MAX_EVENTS = 100
"""Of a stretch of history, whatever was asked for."""
MAX_WALKED = 1_000
"""Events looked at for one answer."""
MAX_TIMESTAMPS_LOOKED_AT = 1_000
_CHUNK = 200
_STATES_AT_ONCE = 2
"""Whole states with their auth chains that are being put together: each may be large."""


class State(Struct, frozen=True):
    """A room's state, and what authorises it: where the events stand, and their IDs."""

    room: Room
    state: dict[int, EventID]
    auth_chain: dict[int, EventID]


class Missing(Struct, frozen=True):
    """What somebody asks for who knows the room's end but not what leads to it."""

    latest: Sequence[EventID]
    earliest: Collection[EventID]
    limit: int
    min_depth: int


class ServerReader:
    """Reads rooms on behalf of other servers."""

    def __init__(self, database: Database, access: ServerAccess) -> None:
        self._database = database
        self._access = access
        self._states = asyncio.Semaphore(_STATES_AT_ONCE)

    async def event(self, origin: ServerName, event_id: str) -> bytes:
        """One event; raises NotFound where there is none that the server may know of.

        A server that takes part in the room gets what it may not see redacted; others do not get it.
        """
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
            if stored is None or not is_given(stored):
                raise NotFound("There is no such event")
            room = (await rooms.get_many(tx, [stored.room]))[stored.room]
            await self._access.check_acl(tx, room, origin)
            if await self._access.is_in_room(tx, room, origin):
                return (await self._access.visible_to_server(tx, room, origin, [stored]))[0]
            if not await self._access.seen_by(tx, room, origin, [stored]):
                raise NotFound("There is no such event")
            return (await render(tx, room, [stored]))[0]

    # --- states and auth chains

    async def state(self, origin: ServerName, room_id: str, event_id: str) -> State:
        """The state before an event of the room, for a server that takes part in it; raises Forbidden, NotFound."""
        async with self._states, self._database.read() as tx:
            room = await self._access.check_in_room(tx, room_id, origin)
            stored = await _placed(tx, room, event_id)
            point: Point = (stored.line, stored.version)
            positions = sorted((await room_state.at(tx, room.number, [point]))[point].values())
            ids: dict[int, EventID] = {}
            for part in auth_chains.chunks(positions):
                ids.update(await events.ids_of(tx, room.number, part))
            return State(room, ids, await auth_chains.positions_of_chain(tx, room, ids))

    async def event_auth(self, origin: ServerName, room_id: str, event_id: str) -> State:
        """The auth chain of an event of the room, as `state`."""
        async with self._database.read() as tx:
            room = await self._access.check_in_room(tx, room_id, origin)
            stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
            if stored is None or stored.room != room.number:
                raise NotFound(f"There is no event {event_id} in this room")
            chain = await auth_chains.positions_of_chain(tx, room, [stored.position])
            return State(room, {}, chain)

    async def pdus(self, room: Room, positions: Iterable[int]) -> AsyncIterator[list[bytes]]:
        """Events of a state or an auth chain, some at a time."""
        for part in auth_chains.chunks(list(positions)):
            async with self._database.read() as tx:
                held = await events.by_position(tx, room.number, part)
                stored = [held[position] for position in part if position in held and held[position].is_readable]
                pdus = await render(tx, room, stored, erases=False)
            yield pdus  # without the connection: who reads them may be slow

    # --- stretches of history

    async def backfill(self, origin: ServerName, room_id: str, event_ids: Sequence[EventID], limit: int) -> list[bytes]:
        """These events and what precedes them, the nearest first; at most `limit`, and MAX_EVENTS."""
        async with self._database.read() as tx:
            room = await self._access.check_in_room(tx, room_id, origin)

            async def look(history: Tx) -> list[bytes]:
                graph = _Graph(history, room)
                await graph.load(event_ids)
                start = [each for each in event_ids if each in graph.held]
                found = await _walk_by_depth(graph, start, min(limit, MAX_EVENTS))
                return await self._access.visible_to_server(history, room, origin, found)

            return await self._database.read_history(tx, look)

    async def missing_events(self, origin: ServerName, room_id: str, missing: Missing) -> list[bytes]:
        """What leads to the latest events, without the earliest and what came before them, the oldest first."""
        async with self._database.read() as tx:
            room = await self._access.check_in_room(tx, room_id, origin)

            async def look(history: Tx) -> list[bytes]:
                found = await _walk_breadth_first(_Graph(history, room), missing)
                return await self._access.visible_to_server(history, room, origin, found)

            return await self._database.read_history(tx, look)

    async def by_timestamp(self, origin: ServerName, room_id: str, ts: int, *, backwards: bool) -> tuple[EventID, int]:
        """The event nearest to a time, on one side of it, that the server may see: ID and time; raises NotFound."""
        async with self._database.read() as tx:
            room = await self._access.check_in_room(tx, room_id, origin)
            beyond: int | None = None
            for _ in range(MAX_TIMESTAMPS_LOOKED_AT // _CHUNK):
                stored = await event_pages.find_by_timestamp(
                    tx, room.number, ts, backwards=backwards, limit=_CHUNK, beyond=beyond
                )
                seen = await self._access.seen_by(tx, room, origin, stored)
                if seen:
                    return seen[0].event_id, seen[0].json["origin_server_ts"]
                if len(stored) < _CHUNK:
                    break
                ts, beyond = stored[-1].json["origin_server_ts"], stored[-1].position
        raise NotFound("There is no event on that side of that time")


async def _placed(tx: Tx, room: Room, event_id: str) -> StoredEvent:
    """An event of the room whose place in the graph is known."""
    stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
    if stored is None or stored.room != room.number or stored.flags & (Flag.OUTLIER | Flag.REJECTED):
        raise NotFound(f"The state at {event_id} is not known")
    return stored


class _Graph:
    """Events of a room that have a place in its graph, read some at a time."""

    def __init__(self, tx: Tx, room: Room) -> None:
        self._tx = tx
        self._room = room
        self.held: dict[EventID, StoredEvent] = {}
        self._asked: set[EventID] = set()

    async def load(self, event_ids: Iterable[EventID]) -> None:
        """Have these events at hand, as far as they are held, with those that stand before them."""
        wanted = [event_id for event_id in event_ids if event_id not in self._asked]
        if not wanted:
            return
        found = await events.by_id(self._tx, wanted)
        self._asked.update(wanted)
        self._keep(found.values())
        newest = max((event.place for event in found.values() if event.event_id in self.held), default=None)
        if newest is not None:
            self._keep(await event_pages.preceding(self._tx, self._room.number, newest, MAX_EVENTS))

    def _keep(self, stored: Iterable[StoredEvent]) -> None:
        for event in stored:
            if event.room == self._room.number and not event.flags & Flag.OUTLIER and event.is_readable:
                self.held[event.event_id] = event
                self._asked.add(event.event_id)

    def depth_of(self, event: StoredEvent) -> int:
        """The event's depth, whatever the row holds."""
        depth = event.json.get("depth")
        return depth if isinstance(depth, int) else 0

    def prev_of(self, event: StoredEvent) -> list[EventID]:
        """What the event follows."""
        return auth_chains.references(event, "prev_events", self._room)


async def _walk_by_depth(graph: _Graph, start: Sequence[EventID], limit: int) -> list[StoredEvent]:
    """These events and those before them, the deepest first. Rejected ones are walked past."""
    heap = [(-graph.depth_of(graph.held[event_id]), event_id) for event_id in set(start)]
    heapq.heapify(heap)
    seen = set(start)
    found: list[StoredEvent] = []
    for _ in range(MAX_WALKED):
        if not heap or len(found) >= limit:
            break
        event = graph.held[heapq.heappop(heap)[1]]
        if is_given(event):
            found.append(event)
        fresh = [event_id for event_id in graph.prev_of(event) if event_id not in seen]
        seen.update(fresh)
        await graph.load(fresh)
        for event_id in fresh:
            if event_id in graph.held:
                heapq.heappush(heap, (-graph.depth_of(graph.held[event_id]), event_id))
    return found


async def _walk_breadth_first(graph: _Graph, missing: Missing) -> list[StoredEvent]:
    """What precedes the latest events, without them and the earliest, the oldest first."""
    await graph.load(missing.latest)
    limit = min(missing.limit, MAX_EVENTS)
    seen = {*missing.latest, *missing.earliest}
    level = [graph.held[event_id] for event_id in missing.latest if event_id in graph.held]
    found: list[StoredEvent] = []
    walked = 0
    while level and len(found) < limit and walked < MAX_WALKED:
        walked += len(level)
        fresh = [event_id for event in level for event_id in graph.prev_of(event) if event_id not in seen]
        fresh = list(dict.fromkeys(fresh))
        seen.update(fresh)
        await graph.load(fresh)
        level = [graph.held[event_id] for event_id in fresh if event_id in graph.held]
        level = [event for event in level if graph.depth_of(event) >= missing.min_depth]
        found.extend(event for event in level if is_given(event))
    found = found[:limit]
    found.sort(key=lambda event: (graph.depth_of(event), event.place))
    return found
