"""The state of a room where its graph forks and merges (`docs/how-it-works.md`; Room Versions, "State resolution").

A state is a `View`: a stored point and what differs from it. Nothing here loads a whole state, except where a point
on a line without a parent meets another line: what may differ is then all of it. Everywhere else the cost follows the
keys that changed on either side since the states parted.

The disputed keys, and then their events with what authorises them, are loaded first; the decision itself is
`federation/protocol/state_resolution.py`, which reads nothing.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field

from federation.protocol import state_resolution
from federation.protocol.auth_events import POWER_LEVELS
from federation.protocol.auth_graph import conflicted_subgraph
from federation.protocol.errors import MatrixError
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.state_resolution import Conflict
from federation.protocol.types import EventID, StateKey
from federation.rooms.heads import to_pdu
from federation.rooms.incomplete_rooms import BeingJoined
from storage import events, room_state
from storage.database import Tx
from storage.events import Flag, StoredEvent
from storage.room_state import TRUNK, Line, Point
from storage.rooms import Room, RoomRow

NEW = 1 << 62
"""The position of the event that is about to be appended: after all others."""

_LARGE = 50
"""Entries in conflict from which on a resolution leaves the event loop."""

Values = Mapping[StateKey, int | None]
"""Entries as positions of events; None: there is none."""


class MissingEvents(MatrixError):
    """Events that must be here before this one can be judged. They are to be fetched, then it is tried again."""

    def __init__(self, *, prev: Collection[EventID] = (), auth: Collection[EventID] = ()) -> None:
        super().__init__("M_UNKNOWN", "Events that this event refers to are not known", 400)
        self.prev = frozenset(prev)
        self.auth = frozenset(auth)


class View(Struct, frozen=True):
    """A state: a stored point, and the entries in which it differs."""

    point: Point
    changes: Values = field(default_factory=dict)

    def with_entry(self, key: StateKey, position: int) -> "View":
        """The state after a state event."""
        return View(self.point, {**self.changes, key: position})


class Comparison(Struct, frozen=True):
    """Every key under which some of several states may differ, with each state's entry."""

    keys: Collection[StateKey]
    stored: Mapping[Point, Values]
    values: Sequence[Values]

    @property
    def conflicted(self) -> dict[StateKey, set[int]]:
        """The keys that are not the same in all states, with the events under them."""
        found: dict[StateKey, set[int]] = {}
        for key in self.keys:
            present = {values.get(key) for values in self.values}
            if len(present) > 1:
                found[key] = {position for position in present if position is not None}
        return found


class Resolved(Struct, frozen=True):
    """What several states resolve to."""

    view: View
    same_as: frozenset[int]
    """The indexes of those states that are just this one."""


class Graph:
    """Events and lines of one room as far as one decision needs them, each read once."""

    def __init__(self, tx: Tx, room: Room, new: VerifiedPDU | None = None, row: RoomRow | None = None) -> None:
        self.tx = tx
        self.room = room
        self._lacks_members = row is not None and row.lacks_members
        self._completed_at = 0 if row is None else row.completed_at or 0
        self.pdus: dict[EventID, VerifiedPDU] = {}
        self.positions: dict[EventID, int] = {}
        self.arrivals: dict[EventID, int] = {}
        """When events came, as places in the log: each after all that it cites."""
        self.rejected: set[EventID] = set()
        self._by_arrival: dict[int, StoredEvent] = {}
        self._ids: dict[int, EventID] = {}
        self._branches: dict[int, Line] = {}
        if new is not None:
            self.pdus[new.event_id] = new
            self.positions[new.event_id] = self.arrivals[new.event_id] = NEW
            self._ids[NEW] = new.event_id

    async def load(self, event_ids: Iterable[EventID]) -> None:
        """Have these events at hand; raises MissingEvents for what is not held in this room."""
        wanted = [event_id for event_id in dict.fromkeys(event_ids) if event_id not in self.pdus]
        if wanted:
            self.keep((await events.by_id(self.tx, wanted)).values())
            missing = [event_id for event_id in wanted if event_id not in self.pdus]
            if missing:
                raise MissingEvents(auth=missing)

    async def load_stored(self, event_ids: Iterable[EventID]) -> dict[EventID, StoredEvent]:
        """Those of these events that have a place in the room's graph."""
        wanted = list(event_ids)
        if not wanted:
            return {}
        found = await events.by_id(self.tx, wanted)
        self.keep(found.values())
        return {
            event_id: stored
            for event_id, stored in found.items()
            if stored.room == self.room.number and not stored.flags & Flag.OUTLIER
        }

    async def load_positions(self, positions: Iterable[int]) -> None:
        """Have the events at these positions at hand."""
        wanted = [position for position in set(positions) if position not in self._ids]
        if wanted:
            self.keep((await events.by_position(self.tx, self.room.number, wanted)).values())

    def keep(self, stored: Iterable[StoredEvent]) -> None:
        """Remember events that were loaded otherwise."""
        for event in stored:
            if event.room == self.room.number:
                self.pdus[event.event_id] = to_pdu(event, self.room)
                self.positions[event.event_id] = event.position
                self.arrivals[event.event_id] = event.arrival
                self._by_arrival[event.arrival] = event
                self._ids[event.position] = event.event_id
                if event.flags & Flag.REJECTED:
                    self.rejected.add(event.event_id)

    def add(self, pdu: VerifiedPDU, position: int, arrival: int) -> None:
        """Know an event that is about to be stored."""
        self.pdus[pdu.event_id] = pdu
        self.positions[pdu.event_id] = position
        self.arrivals[pdu.event_id] = arrival
        self._ids[position] = pdu.event_id

    def at(self, position: int) -> VerifiedPDU:
        """The event at a position, which was loaded."""
        return self.pdus[self._ids[position]]

    async def branches(self, points: Iterable[Point]) -> Mapping[int, Line]:
        """The lines on which these points stand, and those that they branch off from; more, where they are known."""
        missing = {line for line, _ in points if line != TRUNK and line not in self._branches}
        if missing:
            self._branches.update(await room_state.lines(self.tx, self.room.number, missing))
        return self._branches

    async def entries(self, view: View, keys: Collection[StateKey]) -> dict[StateKey, int]:
        """Those entries of a state; raises BeingJoined where one is a member event that is still to come."""
        asked = [key for key in keys if key not in view.changes]
        found: dict[StateKey, int] = {}
        if asked:
            found = (await room_state.at(self.tx, self.room.number, [view.point], asked))[view.point]
        if self._lacks_members and any(key[0] == "m.room.member" and key not in found for key in asked):
            raise BeingJoined
        found.update({key: at for key in keys if (at := view.changes.get(key)) is not None})
        return found

    async def state(self, view: View, keys: Collection[StateKey]) -> dict[StateKey, VerifiedPDU]:
        """Those entries of a state, as events."""
        found = await self.entries(view, keys)
        await self.load_positions(found.values())
        return {key: self.at(position) for key, position in found.items()}

    async def recent(self, view: View, after: int) -> list[EventID]:
        """The events of a state that came after a place in the log."""
        if self._lacks_members:
            raise BeingJoined
        oldest = self._by_arrival.get(after)
        since = 0 if oldest is None else oldest.trunk_version
        if oldest is not None and oldest.flags & (Flag.OUTLIER | Flag.HISTORY):
            since = -1 if oldest.flags & Flag.HISTORY else since - 1  # it came together with the version's own events
        elif oldest is not None and oldest.other_arrival is not None:  # it was an outlier at first
            since = -1
        if after < self._completed_at:  # members of the first version came later than others did
            since = -1
        found = await room_state.recent_at(
            self.tx, self.room.number, view.point, since, await self.branches([view.point])
        )
        found.update(view.changes)
        positions = {position for position in found.values() if position is not None}
        late = await events.arrivals_of(self.tx, self.room.number, positions)
        wanted = {position for position in positions if late.get(position, position) > after}
        await self.load_positions(wanted)
        return [self._ids[position] for position in wanted]

    async def load_history(self, key: StateKey) -> None:
        """Have every event at hand that ever was the room's current one under a key."""
        spans = (await room_state.history(self.tx, self.room.number, [key]))[key]
        await self.load_positions(span.event for span in spans if span.event is not None)

    async def compare(self, views: Sequence[View]) -> Comparison:
        """Where these states may differ."""
        points = {view.point for view in views}
        keys: set[StateKey] = {key for view in views for key in view.changes}
        if len(points) > 1:
            spans = room_state.differing_spans(points, await self.branches(points))
            keys |= await room_state.keys_changed(self.tx, self.room.number, spans)
        stored = await room_state.at(self.tx, self.room.number, points, keys) if keys else {}
        values = [{**stored.get(view.point, {}), **view.changes} for view in views]
        return Comparison(keys, {point: stored.get(point, {}) for point in points}, values)

    async def difference(self, old: View, new: View) -> dict[StateKey, int | None]:
        """What the second state holds where it is not as the first."""
        compared = await self.compare([old, new])
        before, after = compared.values
        return {key: after.get(key) for key in compared.keys if before.get(key) != after.get(key)}

    def to_ids(self, values: Mapping[StateKey, int]) -> dict[StateKey, EventID]:
        """Entries as event IDs; the events were loaded."""
        return {key: self._ids[position] for key, position in values.items()}


async def resolve(graph: Graph, views: Sequence[View]) -> Resolved:
    """The resolution of these states. Of equal ways to name it, that with the fewest differences, on the trunk."""
    if all(view == views[0] for view in views):
        return Resolved(views[0], frozenset(range(len(views))))
    compared = await graph.compare(views)
    disputed = compared.conflicted
    decided: dict[StateKey, int | None] = {}
    if disputed:
        decided = await _decide(graph, views, compared, disputed)
    wanted = {key: decided[key] if key in decided else compared.values[0].get(key) for key in compared.keys}
    wanted.update(decided)
    same_as = frozenset(
        index
        for index, values in enumerate(compared.values)
        if all(values.get(key) == position for key, position in wanted.items())
    )
    found = [
        View(point, {key: position for key, position in wanted.items() if stored.get(key) != position})
        for point, stored in compared.stored.items()
    ]
    return Resolved(min(found, key=_preference), same_as)


def _preference(view: View) -> tuple[int, bool, int]:
    line, version = view.point
    return len(view.changes), line != TRUNK, -version


async def _decide(
    graph: Graph, views: Sequence[View], compared: Comparison, disputed: Mapping[StateKey, Collection[int]]
) -> dict[StateKey, int | None]:
    """What the resolved state holds under the disputed keys, and under keys that only the auth difference has."""
    rules = graph.room.rules
    await graph.load_positions(position for positions in disputed.values() for position in positions)
    common = Common(graph, views[0], disputed)
    conflicted = {key: [graph.at(each).event_id for each in positions] for key, positions in disputed.items()}
    difference: Collection[EventID] = ()
    subgraph: Collection[EventID] = ()
    if rules.state_resolution != "v1":
        await graph.load_history(POWER_LEVELS)
        sets = [
            {graph.at(position).event_id for key in disputed if (position := values.get(key)) is not None}
            for values in compared.values
        ]
        difference = await load_auth_difference(graph, sets, common)
    if rules.state_resolution == "v2.1":
        subgraph = await load_subgraph(graph, set().union(*conflicted.values()))
    while True:
        await common.look_up(
            state_resolution.list_keys(set(difference).union(subgraph, *conflicted.values()), graph.pdus)
        )
        conflict = Conflict(
            conflicted=conflicted,
            unconflicted=graph.to_ids(common.found),
            auth_difference=difference,
            subgraph=subgraph,
            rejected=graph.rejected,
        )
        missing = state_resolution.list_missing(rules, graph.room.room_id, conflict, graph.pdus)
        if not missing:
            break
        await graph.load(missing)
    if len(conflicted) + len(difference) > _LARGE:
        resolved = await asyncio.to_thread(state_resolution.resolve, rules, conflict, graph.pdus)
    else:
        resolved = state_resolution.resolve(rules, conflict, graph.pdus)
    return {key: None if event_id is None else graph.positions[event_id] for key, event_id in resolved.items()}


class Common:
    """What several states hold alike, looked up key by key."""

    def __init__(self, graph: Graph, view: View, disputed: Collection[StateKey]) -> None:
        self._graph = graph
        self._view = view
        self._known: set[StateKey] = set(disputed)
        self.disputed = frozenset(disputed)
        self.found: dict[StateKey, int] = {}

    async def look_up(self, keys: Iterable[StateKey]) -> None:
        """Know what stands under these keys, if it is the same in all states; its events are loaded."""
        wanted = {key for key in keys if key not in self._known}
        if wanted:
            self._known |= wanted
            found = await self._graph.entries(self._view, wanted)
            await self._graph.load_positions(found.values())
            self.found.update(found)

    async def since(self, position: int) -> list[EventID]:
        """The events of all states alike that came after a position."""
        recent = await self._graph.recent(self._view, position)
        return [event_id for event_id in recent if self._graph.pdus[event_id].state_pair not in self.disputed]


async def load_auth_difference(graph: Graph, sets: Sequence[Collection[EventID]], common: Common) -> set[EventID]:
    """The auth difference of states that hold these events under the disputed keys, and `common` besides.

    Exact, without walking every chain to its end: an event stands at a higher position than all that it cites, so
    a walk may stop where everything still open lies above. Usually that is where the states parted. Only if an
    event is left that no state of the dispute cites in all of its forms, the undisputed entries that came after it
    are read too, because one of them may cite it: at worst, for a dispute as old as the room, the whole state.
    """
    walk = _Walk(graph, len(sets), set().union(*sets))
    for index, event_ids in enumerate(sets):
        for event_id in event_ids:
            walk.reach(event_id, 1 << index)
    await walk.run(common)
    if walk.list_open():
        for event_id in await common.since(walk.floor()):
            walk.reach(event_id, walk.full)
        await walk.run(common)
    return walk.list_partial()


class _Walk:
    """Down the auth chains of several sets at once: which of them reach which event."""

    def __init__(self, graph: Graph, count: int, disputed: Collection[EventID]) -> None:
        self._graph = graph
        self._disputed = disputed
        self._masks: dict[EventID, int] = {}
        self._bounds: dict[EventID, int] = {}
        """Of events that were not visited: a position that they stand below."""
        self._visited: set[EventID] = set()
        self.full = (1 << count) - 1

    def reach(self, event_id: EventID, mask: int, below: int = NEW + 1) -> None:
        """Note that these sets reach an event, and hence all that it cites, as far as that was visited."""
        frontier = [(event_id, mask, below)]
        while frontier:
            event_id, mask, below = frontier.pop()
            before = self._masks.get(event_id, 0)
            self._masks[event_id] = before | mask
            if event_id not in self._visited:
                self._bounds[event_id] = min(below, self._bounds.get(event_id, below))
            elif before | mask != before:
                position = self._graph.arrivals[event_id]
                cited = self._graph.pdus[event_id].auth_event_ids
                frontier.extend((each, before | mask, position) for each in cited)

    def list_partial(self) -> set[EventID]:
        """The events that some sets reach and others do not."""
        return {event_id for event_id, mask in self._masks.items() if mask != self.full}

    def list_open(self) -> list[EventID]:
        """Those of them that are not in dispute anyhow."""
        return [event_id for event_id in self.list_partial() if event_id not in self._disputed]

    def floor(self) -> int:
        """The lowest position of an open event."""
        return min((self._graph.arrivals[event_id] for event_id in self.list_open()), default=NEW)

    async def run(self, common: Common) -> None:
        """Visit events until nothing that was not visited could change what is partial."""
        while True:
            pending = [event_id for event_id in self._masks if event_id not in self._visited]
            await self._graph.load(event_id for event_id in pending if self._masks[event_id] != self.full)
            floor = self.floor_of_visited()
            wave = [
                event_id for event_id in pending if self._masks[event_id] != self.full or self._bounds[event_id] > floor
            ]
            if not wave:
                return
            await self._graph.load(wave)
            await self._mark_common(wave, common)
            for event_id in wave:
                self._visited.add(event_id)
                self._bounds.pop(event_id, None)
                mask, position = self._masks[event_id], self._graph.arrivals[event_id]
                for cited in self._graph.pdus[event_id].auth_event_ids:
                    self.reach(cited, mask, position)

    def floor_of_visited(self) -> int:
        """As `floor`, for events of which some may be loaded only now."""
        arrivals = self._graph.arrivals
        return min((arrivals[event_id] for event_id in self.list_open() if event_id in arrivals), default=NEW)

    async def _mark_common(self, wave: Iterable[EventID], common: Common) -> None:
        """What all states hold is reached by all; so is, most likely, what stood there before it."""
        pdus = self._graph.pdus
        open_events = [pdus[each] for each in wave if self._masks[each] != self.full]
        keys = {pdu.state_pair for pdu in open_events if pdu.state_key is not None}
        await common.look_up(keys)
        for key in keys:
            position = common.found.get(key)
            if position is not None:
                self.reach(self._graph.at(position).event_id, self.full)


async def load_subgraph(graph: Graph, conflicted: Collection[EventID]) -> set[EventID]:
    """The conflicted state subgraph. What stands below the lowest event in conflict is on no path to it."""
    floor = min(graph.arrivals[event_id] for event_id in conflicted)
    frontier = set(conflicted)
    seen: set[EventID] = set()
    while frontier:
        await graph.load(frontier)
        seen |= frontier
        frontier = {
            cited
            for event_id in frontier
            if graph.arrivals[event_id] > floor
            for cited in graph.pdus[event_id].auth_event_ids
            if cited not in seen
        }
    return conflicted_subgraph(conflicted, {event_id: graph.pdus[event_id].auth_event_ids for event_id in seen})
