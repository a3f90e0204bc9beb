"""An event of another server on its way into a room: where it stands, and what it writes into the room's state.

Beside the trunk the state after an event is a line, or the next version of one (`docs/how-it-works.md`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, StateKey
from federation.rooms.incomplete_rooms import BeingJoined, StateBefore, StateDifference
from federation.rooms.state import NEW, Graph, MissingEvents, View
from storage import events, room_state
from storage.database import Tx
from storage.events import Flag, NewLine, StateWrite, StoredEvent
from storage.log_entries import Change, Work
from storage.memberships import Membership
from storage.room_state import TRUNK, Point
from storage.rooms import Room, RoomRow

MAX_EXTREMITIES = 50
"""Forward extremities: for an event that would be one more, the oldest of the server that has most of them gives way.
Where that would not even things out the event is kept and shown, but counts only once it is followed."""

NOTHING: Point = (TRUNK, 0)
"""Before the first event."""


class Sending(Struct, frozen=True, kw_only=True):
    """What a client's request has to do with the events that it makes: as `RoomWriter.append` says."""

    device: int | None
    txn_id: str | None
    work: Work | None


class Circumstances(Struct, frozen=True, kw_only=True):
    """What there is to say of an event besides what it is."""

    is_local: bool = False
    changes: Sequence[Change] = ()
    sending: Sending | None = None
    """Of what is written only if it is accepted."""
    at_version: int | None = None
    """The version of the room at which it was authorised; at another it is to be looked at anew."""
    refusal: str | None = None
    """Why it has no signature of the room's policy server, which was asked."""


class Placing(Struct, kw_only=True):
    """One attempt to place an event."""

    room: Room
    row: RoomRow
    pdu: VerifiedPDU
    graph: Graph
    prev: dict[EventID, StoredEvent]
    missing: list[EventID]
    how: Circumstances
    held_at: int | None = None
    """Its position, where it is here as an outlier."""
    enters: bool = False
    """Whether it is, although it was an outlier, the newest of the room: nothing that counts here has followed it."""
    flags: Flag = Flag.NONE
    reason: str = ""
    lines: list[NewLine] = field(default_factory=list)
    writes: list[StateWrite] = field(default_factory=list)
    followed: set[EventID] = field(default_factory=set)
    """Events that it follows, directly or by way of hidden ones, or that give way to it: none of them is a forward
    extremity any longer."""
    gaps: list[EventID] = field(default_factory=list)
    differences: int = 0
    """Entries in which a state that was given differs from ours, as far as they are paid for (`given_states.py`)."""
    follower: int | None = None
    """Where an accepted event stands that came before this one, and after it in the graph."""

    @property
    def head(self) -> View:
        """The room's current state."""
        return View((TRUNK, self.row.state_version))

    @property
    def covers(self) -> set[EventID]:
        """The forward extremities that it follows, or that give way to it."""
        return self.followed.intersection(self.row.extremities)

    @property
    def is_end(self) -> bool:
        """Whether it would be a forward extremity of a room with space for it: nothing follows it."""
        return self.follower is None and not self.flags

    @property
    def is_extremity(self) -> bool:
        """Whether nothing follows it, as far as the room has space for such events."""
        return self.is_end and len(self.row.extremities) - len(self.covers) < MAX_EXTREMITIES

    async def make_space(self) -> None:
        """Have another event give way, as `MAX_EXTREMITIES` says: nobody can fill a room with forks of their own,
        and so keep what others do from counting."""
        if self.is_extremity or not self.is_end:
            return
        covers = self.covers
        ends = (await self.graph.load_stored(each for each in self.row.extremities if each not in covers)).values()
        of_server = Counter(server_name_of(stored.sender) for stored in ends)
        crowd, most = of_server.most_common(1)[0]
        if most > of_server[server_name_of(self.pdu.sender)] + 1:
            theirs = (stored for stored in ends if server_name_of(stored.sender) == crowd)
            self.followed.add(min(theirs, key=lambda stored: stored.position).event_id)

    @property
    def state_pair(self) -> StateKey | None:
        """What the event changes in the state, if it is accepted as a state event."""
        if self.pdu.state_key is None or self.flags & Flag.REJECTED:
            return None
        return self.pdu.state_pair

    async def given_state(self, tx: Tx, state_before: StateBefore) -> View:
        """The state that another server gave: what differs from ours, where most of it does not; else a whole line."""
        if isinstance(state_before, StateDifference):
            return await difference_view(tx, self.room, state_before)
        if self.row.lacks_members:
            raise BeingJoined
        positions = await events.positions_of(tx, self.room.number, state_before.values())
        missing = [event_id for event_id in state_before.values() if event_id not in positions]
        if missing:
            raise MissingEvents(auth=missing)
        given = {key: positions[event_id] for key, event_id in state_before.items()}
        ours = await room_state.current_whole(tx, self.room.number)
        changes: dict[StateKey, int | None] = dict.fromkeys(ours.keys() - given.keys())
        changes.update((key, position) for key, position in given.items() if ours.get(key) != position)
        if len(changes) <= len(given):
            return View(self.head.point, changes)
        return View(NOTHING, given)

    def store(self, view: View) -> Point:
        """The stored point that is this state; a new line where there is none yet."""
        if not view.changes:
            return view.point
        line = self.row.last_line + len(self.lines) + 1
        parent_line, parent_version = (None, None) if view.point == NOTHING else view.point
        self.lines.append(NewLine(line=line, parent_line=parent_line, parent_version=parent_version))
        self.writes += self._branch_writes(line, 1, view.changes)
        return (line, 1)

    async def branch(self, point: Point, key: StateKey, *, extends: bool) -> Point:
        """Note the state after an accepted event beside the trunk: at the end of its line, or on a new one.

        Only what makes a new version of the room may extend a line, so that no two do it at once.
        """
        line, version = point
        for made in self.lines:
            if made.line == line:
                made.version = version = version + 1
                self.writes += self._branch_writes(line, version, {key: NEW})
                return (line, version)
        known = (await self.graph.branches([point])).get(line) if extends and line != TRUNK else None
        if known is None or known.version != version:
            return self.store(View(point, {key: NEW}))
        parent_line, parent_version = (None, None) if known.parent is None else known.parent
        version += 1
        self.lines.append(NewLine(line=line, parent_line=parent_line, parent_version=parent_version, version=version))
        self.writes += self._branch_writes(line, version, {key: NEW})
        return (line, version)

    def _branch_writes(self, line: int, version: int, changes: Mapping[StateKey, int | None]) -> list[StateWrite]:
        return [
            StateWrite(
                line=line,
                type=key[0],
                state_key=key[1],
                event_id=self.pdu.event_id if position == NEW else None,
                since=version,
                position=None if position == NEW else position,
            )
            for key, position in changes.items()
        ]

    async def change_trunk(self, version: int, changes: Mapping[StateKey, int | None]) -> None:
        """Note a new version of the room's current state."""
        await self.graph.load_positions(
            position for key, position in changes.items() if position is not None and key[0] == "m.room.member"
        )
        writes = self._branch_writes(TRUNK, version, changes)
        for write, position in zip(writes, changes.values(), strict=True):
            if write.type == "m.room.member" and position is not None:
                write.membership = Membership.of(self.graph.at(position).membership)
        self.writes += writes


async def difference_view(tx: Tx, room: Room, difference: StateDifference) -> View:
    """A state that differs from one of the trunk; raises MissingEvents where what it has instead is not held."""
    wanted = {event_id for event_id in difference.changes.values() if event_id is not None}
    positions = await events.positions_of(tx, room.number, wanted)
    missing = wanted - positions.keys()
    if missing:
        raise MissingEvents(auth=missing)
    changes = {key: None if each is None else positions[each] for key, each in difference.changes.items()}
    return View((TRUNK, difference.version), changes)
