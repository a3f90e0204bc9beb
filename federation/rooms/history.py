"""History put in its place: where its events stand, and the state before each ("A room's state is its history").

A stretch of history is a line of its own, numbered downwards: it holds what differs from a state that is known. Its
events are judged by what they cite and by the state before them, as all are; the room's present has no say in it, and
they change nothing of it.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol import auth_rules
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.relations import related_event, thread_of
from federation.protocol.types import EventID, StateKey
from federation.rooms import outliers
from federation.rooms.append_remote import keys_for, note_redaction
from federation.rooms.incomplete_rooms import BeingJoined, StateBefore, StateDifference
from federation.rooms.ordering import cited_by
from federation.rooms.placing import difference_view
from federation.rooms.state import Graph, MissingEvents, View, resolve
from storage import event_pages, events, history, room_state, rooms
from storage import outliers as stored_outliers
from storage.auth_chains import references
from storage.database import Database, Tx
from storage.events import Flag, NewEvent, NewLine, StateWrite, StoredEvent
from storage.history import Gap, Placed
from storage.log_entries import Conflict
from storage.room_state import TRUNK, Point
from storage.rooms import Room

MAX_LINES = 16
"""Lines that may stand on one another: to look something up in the last, all are asked."""
_NOTHING: Point = (TRUNK, 0)

States = Mapping[EventID, StateBefore]
"""By event: the state before it, as another server gave it, with all of its events held here."""


class _Lines(Struct):
    """The states of a stretch, as lines that are about to be written."""

    last: int
    """The number of the last line of history that there is."""
    new: list[NewLine] = field(default_factory=list)
    writes: list[StateWrite] = field(default_factory=list)
    _points: dict[int, tuple[View, Point]] = field(default_factory=dict)
    """By the identity of a view: the view, and where it is written."""

    def point_of(self, view: View) -> Point:
        """Where this state is written; it is, from now on."""
        known = self._points.get(id(view))
        if known is not None:
            return known[1]
        if not view.changes:
            return view.point
        point = self._branch(None if view.point == _NOTHING else view.point, view.changes)
        self._points[id(view)] = (view, point)
        return point

    def extend(self, point: Point, after: View, key: StateKey, position: int) -> Point:
        """Write the state after a state event, which is `after`, given where the one before it is written."""
        line = next((line for line in self.new if line.line == point[0] and line.version == point[1]), None)
        if line is None:
            point = self._branch(point, {key: position})
        else:
            line.version += 1
            point = (line.line, line.version)
            self._write(point, {key: position})
        self._points[id(after)] = (after, point)
        return point

    def _branch(self, parent: Point | None, changes: Mapping[StateKey, int | None]) -> Point:
        number = self.last - len(self.new) - 1
        parent_line, parent_version = (None, None) if parent is None else parent
        self.new.append(NewLine(line=number, parent_line=parent_line, parent_version=parent_version))
        self._write((number, 1), changes)
        return (number, 1)

    def _write(self, point: Point, changes: Mapping[StateKey, int | None]) -> None:
        self.writes.extend(
            StateWrite(line=point[0], type=key[0], state_key=key[1], event_id=None, since=point[1], position=position)
            for key, position in changes.items()
        )


class _Stretch(Struct, kw_only=True):
    """One attempt to place a stretch of history."""

    room: Room
    gap: Gap
    states: States
    graph: Graph
    lines: _Lines
    held: Mapping[EventID, StoredEvent]
    """Those of its events, and of those before them, that are here in whatever form."""
    above: Point
    """The state before the event above the gap."""
    continues: bool
    """Whether that is the state before all of the events."""
    anchor: Point
    """From which most states hardly differ: the same, or the room's present one."""
    trunk_version: int
    lacks_members: bool
    """Whether only what differs from a state can be told of another one."""
    after: dict[EventID, View] = field(default_factory=dict)
    """The states after the events that were placed."""
    placed: list[Placed] = field(default_factory=list)


class HistoryAppender:
    """Puts history where it belongs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self, room: Room, gap: Gap, pdus: Sequence[VerifiedPDU], states: States, *, first_place: int
    ) -> list[EventID]:
        """Write a stretch of history into a gap, the oldest first, at the places from `first_place` on.

        An event of which neither all previous events are here or among them, nor the state before it is given, is left
        out, and so is what cites events that are not here. Where none of them is what the gap asks for, they stand by
        themselves in its middle. Answers what was written; raises Conflict when the gap has changed meanwhile, and
        BeingJoined where a member has a say in it who is not known yet.
        """
        async with self._database.transaction() as tx:
            reserved = await stored_outliers.reserve(tx, room, len(pdus))
        continues = await self.continues(room, gap, pdus)
        async with self._database.read() as tx:
            stretch = await self._begin(tx, room, gap, (pdus, states), continues=continues)
            for index, pdu in enumerate(pdus):
                await _place(stretch, pdu, first_place + index, reserved.first + index)
        if not stretch.placed:
            return []
        async with self._database.transaction() as tx:
            if await history.lock(tx, room.number, gap.position) != gap:
                raise Conflict("The room's history has grown meanwhile")
            await _write(tx, stretch)
            for changed in _gaps_after(stretch):
                await history.save(tx, room.number, changed)
        return [placed.event.pdu.event_id for placed in stretch.placed]

    async def place_held(self, room: Room, pdu: VerifiedPDU, state_before: StateBefore | None) -> bool:
        """Give an outlier that comes once more, by itself, its place in the graph: where it has stood since it was
        first heard of, before all that made us hold it. So nothing current changes by it.

        Whether it has one now. Its previous events must be here, or the state before it be given; raises Conflict when
        others write to the room's history at the same time.
        """
        states = {} if state_before is None else {pdu.event_id: state_before}
        async with self._database.read() as tx:
            held = (await events.by_id(tx, [pdu.event_id])).get(pdu.event_id)
            if held is None or held.room != room.number or not held.flags & Flag.OUTLIER:
                return False
            place = Gap(held.position, held.position - 1, held.position, is_first=False, frontier=())
            stretch = await self._begin(tx, room, place, ([pdu], states), continues=False)
            await _place(stretch, pdu, held.position, held.arrival)
        if not stretch.placed:
            return False
        async with self._database.transaction() as tx:
            await history.lock(tx, room.number, held.position)
            await _write(tx, stretch)
            await _open_up(tx, room, stretch.placed[0])
        return True

    async def pass_over(self, room: Room, gap: Gap) -> bool:
        """Have a gap no longer ask for what has come by other ways meanwhile; whether there was any of that.

        What such an event follows is asked for where it stands. Raises Conflict when the gap has changed meanwhile.
        """
        async with self._database.transaction() as tx:
            if await history.lock(tx, room.number, gap.position) != gap:
                raise Conflict("The room's history has grown meanwhile")
            found = await events.flags_of(tx, gap.frontier)
            left = tuple(
                event_id
                for event_id in gap.frontier
                if event_id not in found or (found[event_id][0] == room.number and found[event_id][1] & Flag.OUTLIER)
            )
            if left != gap.frontier:
                await history.save(tx, room.number, replace(gap, frontier=left))
        return left != gap.frontier

    async def continues(self, room: Room, gap: Gap, pdus: Sequence[VerifiedPDU]) -> bool:
        """Whether these events are messages in a line that ends at the event above the gap.

        The state before that one is the state before all of them then.
        """
        if any(pdu.state_key is not None for pdu in pdus):
            return False
        chain = [pdu.event_id for pdu in pdus]
        if any(pdu.prev_event_ids != (before,) for pdu, before in zip(pdus[1:], chain, strict=False)):
            return False
        async with self._database.read() as tx:
            above = await event_pages.preceding(tx, room.number, gap.bottom, 1)
        return bool(above) and references(above[0], "prev_events", room) == [chain[-1]]

    async def _begin(
        self, tx: Tx, room: Room, gap: Gap, given: tuple[Sequence[VerifiedPDU], States], *, continues: bool
    ) -> _Stretch:
        pdus, states = given
        row = (await rooms.rows(tx, [room.number]))[room.number]
        wanted = {pdu.event_id for pdu in pdus}.union(*(pdu.prev_event_ids for pdu in pdus))
        held = {event_id: stored for event_id, stored in (await events.by_id(tx, wanted)).items()}
        above = await event_pages.preceding(tx, room.number, gap.bottom, 1)
        anchor = before_above = (above[0].line, above[0].version) if above else (TRUNK, 0)
        known = await room_state.lines(tx, room.number, [anchor[0]]) if anchor[0] != TRUNK else {}
        if len(room_state.path(anchor, known)) > MAX_LINES:
            anchor = (TRUNK, row.state_version)
        version = (await events.trunk_versions_at(tx, [room.number], gap.low))[room.number] if not gap.is_first else 0
        graph = Graph(tx, room, row=row)
        graph.keep(stored for stored in held.values() if stored.room == room.number)
        lines = _Lines(await history.newest_line(tx, room.number))
        stretch = _Stretch(
            room=room,
            gap=gap,
            states=states,
            graph=graph,
            lines=lines,
            held=held,
            above=before_above,
            continues=continues,
            anchor=anchor,
            trunk_version=version,
            lacks_members=row.lacks_members,
        )
        stretch.after = {
            event_id: View(stored.point_after)
            for event_id, stored in held.items()
            if stored.room == room.number and not stored.flags & Flag.OUTLIER
        }
        return stretch


async def _write(tx: Tx, stretch: _Stretch) -> None:
    """Write what was placed; the room's history is locked."""
    room = stretch.room.number
    if await history.newest_line(tx, room) != stretch.lines.last:
        raise Conflict("The room's history has grown meanwhile")
    positions = {write.position for write in stretch.lines.writes if write.position is not None}
    positions -= {placed.position for placed in stretch.placed if not placed.was_held}
    if positions and not await history.are_here(tx, room, positions):
        raise Conflict("What was held has come meanwhile")
    if stretch.lines.new:
        await history.write_lines(tx, room, stretch.lines.new, stretch.lines.writes)
    written = await history.insert(tx, room, stretch.placed)
    if len(written) != len(stretch.placed):
        raise Conflict("Some of the room's history came by other ways meanwhile")


async def _open_up(tx: Tx, room: Room, placed: Placed) -> None:
    """Have readers come to an event that got its place by itself, and ask above it for what it follows."""
    above = [gap for gap in await history.gaps(tx, room.number) if gap.bottom > placed.place]
    for gap in above:
        changed = replace(gap, is_first=gap.is_first and gap.low < placed.place)
        if gap is above[-1]:
            frontier = tuple(dict.fromkeys((*gap.frontier, *placed.event.missing)))
            changed = replace(changed, frontier=frontier[: history.MAX_FRONTIER])
        if changed != gap:
            await history.save(tx, room.number, changed)


async def _place(stretch: _Stretch, pdu: VerifiedPDU, place: int, arrival: int) -> None:
    """Find out what the state before the event is, and judge the event."""
    held = stretch.held.get(pdu.event_id)
    if pdu.event_id in stretch.after or (held is not None and held.room != stretch.room.number):
        return
    is_root = not stretch.placed and stretch.continues and pdu.event_id not in stretch.states
    before = View(stretch.above) if is_root else await _state_before(stretch, pdu)
    if before is None:
        return
    graph = stretch.graph
    try:
        await graph.load(cited_by(pdu))
    except MissingEvents:
        return
    if held is None and any(graph.arrivals[each] > arrival for each in cited_by(pdu)):
        raise Conflict("What an event cites has come just now")
    position = place if held is None else held.position
    graph.add(pdu, position, arrival if held is None else held.arrival)
    state = await graph.state(before, keys_for(pdu))
    flags = Flag.NONE
    try:
        if held is not None and held.flags & Flag.REJECTED:
            raise AuthRuleViolated("", "It was rejected before")
        outliers.judge(pdu, graph.pdus, graph.rejected)
        auth_rules.check(pdu, state)
    except AuthRuleViolated:
        flags = Flag.REJECTED
        graph.rejected.add(pdu.event_id)
    point = stretch.lines.point_of(before)
    after, point_after = before, None
    if pdu.state_key is not None and not flags:
        after = before.with_entry(pdu.state_pair, position)
        point_after = stretch.lines.extend(point, after, pdu.state_pair, position)
    new = NewEvent(
        pdu=pdu,
        line=point[0],
        version=point[1],
        after=point_after,
        trunk_version=stretch.trunk_version,
        flags=int(flags),
        thread=thread_of(pdu.json),
        relation=related_event(pdu.content),
        missing=[event_id for event_id in pdu.prev_event_ids if event_id not in stretch.after],
        is_extremity=False,
    )
    note_redaction(new, state)
    stretch.after[pdu.event_id] = after
    stretch.placed.append(Placed(event=new, position=position, place=place, arrival=arrival, was_held=held is not None))


async def _state_before(stretch: _Stretch, pdu: VerifiedPDU) -> View | None:
    given = stretch.states.get(pdu.event_id)
    if given is not None:
        return await _view_of(stretch, given)
    if not pdu.prev_event_ids:
        return View(_NOTHING)
    views = [stretch.after[event_id] for event_id in pdu.prev_event_ids if event_id in stretch.after]
    if not views or len(views) < len(pdu.prev_event_ids):
        return None
    if all(view is views[0] for view in views):
        return views[0]
    resolved = await resolve(stretch.graph, views)
    return views[min(resolved.same_as)] if resolved.same_as else resolved.view


async def _view_of(stretch: _Stretch, given: StateBefore) -> View:
    """A state that another server gave: what differs from the anchor's, where most of it does not; else all of it."""
    graph, room = stretch.graph, stretch.room
    if isinstance(given, StateDifference):
        return await difference_view(graph.tx, room, given)
    if stretch.lacks_members:
        raise BeingJoined
    positions = await events.positions_of(graph.tx, room.number, given.values())
    state = {key: positions[event_id] for key, event_id in given.items() if event_id in positions}
    known = (await room_state.at(graph.tx, room.number, [stretch.anchor]))[stretch.anchor]
    changes: dict[StateKey, int | None] = dict.fromkeys(known.keys() - state.keys())
    changes.update((key, position) for key, position in state.items() if known.get(key) != position)
    if len(changes) <= len(state):
        return View(stretch.anchor, changes)
    return View(_NOTHING, state)


def _gaps_after(stretch: _Stretch) -> list[Gap]:
    """What is left of the gap: nearer to its bottom, or in two, where the stretch stands by itself in its middle."""
    gap, placed = stretch.gap, stretch.placed
    written = {each.event.pdu.event_id for each in placed}
    missing = tuple(dict.fromkeys(event_id for each in placed for event_id in each.event.missing))
    frontier = tuple(event_id for event_id in gap.frontier if event_id not in stretch.after)
    lowest, highest = min(each.place for each in placed), max(each.place for each in placed)
    if written.isdisjoint(gap.frontier):
        upper = replace(gap, low=highest, is_first=False, frontier=frontier)
        lower = Gap(
            position=placed[0].place,
            low=gap.low,
            bottom=lowest,
            is_first=gap.is_first,
            frontier=missing[: history.MAX_FRONTIER],
        )
        return [upper, lower]
    frontier = tuple(dict.fromkeys((*frontier, *missing)))[: history.MAX_FRONTIER]
    return [replace(gap, bottom=lowest, frontier=frontier)]
