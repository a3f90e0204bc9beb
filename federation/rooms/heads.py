"""What the writer knows of the rooms that are being written to: where each stands, as seen by its next event.

A head runs ahead of the log: it moves when an event is enqueued, so that the next one builds on it without waiting
for the commit. When an append is refused its head is broken, and so is all that was built on it.
"""

from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct, field

from federation.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from federation.protocol.errors import InvalidEvent, NotFound
from federation.protocol.event_format import from_stored
from federation.protocol.event_hashes import reference_hash
from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.policy_server import POLICY
from federation.protocol.redaction import redact
from federation.protocol.types import EventID, ServerName, StateKey
from federation.rooms.incomplete_rooms import BeingJoined, IncompleteRooms
from storage import events, room_state, rooms
from storage.append_events import AtEnd, RoomEvents
from storage.database import Database, Tx
from storage.events import Flag, StoredEvent
from storage.figures import Figures, Lookups
from storage.log_entries import Change
from storage.room_completeness import RoomCompleteness
from storage.rooms import Room
from storage.strings import remember_committed

MAX_HEADS = 2_000
MAX_STATE = 5_000
"""Entries of a room's state that its head remembers."""

_FIRST_KEYS = (CREATE, POWER_LEVELS, JOIN_RULES, POLICY)
"""What every head knows, so that nothing is looked up for a room that has no policy server."""


class RoomHead(Struct):
    """Where a room stands: what its next event refers to and is authorised by."""

    room: Room
    version: int
    extremities: dict[EventID, tuple[int, str]]
    """Forward extremities: depth, and for room versions 1 and 2 the reference hash."""
    state: dict[StateKey, VerifiedPDU | None] = field(default_factory=dict)
    """Those entries of the current state that were asked for; None where there is none."""
    joined: int = 0
    """How many members are joined."""
    lacks_members: bool = False
    """Whether a member event that is not found may be part of the state all the same."""
    is_broken: bool = False
    logged_version: int = 0
    """The room's version by the log, without what is in flight."""
    read_at: int = 0
    """The log's position when the head was read: it holds all that came up to there."""
    in_flight: set[EventID] = field(default_factory=set)
    """Events that the head is past and that the log has not brought back yet."""

    def advance(self, pdu: VerifiedPDU) -> None:
        """Put an event of ours, which refers to all extremities, at the end."""
        self.put(pdu.event_id, pdu.prev_event_ids, described(pdu))
        self.in_flight.add(pdu.event_id)
        if pdu.state_key is not None:
            self.version += 1
            if pdu.type == "m.room.member":
                before = self.state.get((pdu.type, pdu.state_key))
                self.joined += (pdu.membership == "join") - (before is not None and before.membership == "join")
            self.state[pdu.type, pdu.state_key] = pdu

    def put(self, event_id: EventID, prev_event_ids: Iterable[EventID], description: tuple[int, str]) -> None:
        """Make an event an extremity instead of those that it follows."""
        for each in prev_event_ids:
            self.extremities.pop(each, None)
        self.extremities[event_id] = description

    def forget_state(self) -> None:
        """Keep only what is in flight, which the database does not have yet, and what every event needs."""
        self.state = {
            key: pdu
            for key, pdu in self.state.items()
            if key in _FIRST_KEYS or (pdu is not None and pdu.event_id in self.in_flight)
        }


class RoomHeads:
    """The heads in memory, newest used last; a view of the log."""

    def __init__(self, database: Database, incomplete: IncompleteRooms, server_name: ServerName) -> None:
        self._database = database
        self._server_name = server_name
        self.incomplete = incomplete
        self._heads: OrderedDict[int, RoomHead] = OrderedDict()
        self._lookups = Lookups("room_heads")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._heads))

    def apply(self, _position: int, change: Change) -> None:
        """Keep up with the log: entries of others move a head on, or make it worthless."""
        if isinstance(change, RoomCompleteness):
            self._heads.pop(change.room, None)
        if not isinstance(change, RoomEvents):
            return
        if change.numbers:
            remember_committed(self._database.memory, change.numbers)
        change.settle()
        head = self._heads.get(change.room.number)
        if head is None:
            return
        for event in change.stored:
            if event.position > head.read_at and not self._follow(head, event, change.at_end):
                # What is in flight on it decides for itself whether it still holds.
                del self._heads[change.room.number]
                return

    def _follow(self, head: RoomHead, event: StoredEvent, at_end: AtEnd | None) -> bool:
        """Move a head past an event; False when more than the room's end has changed."""
        if event.event_id in head.in_flight:
            head.in_flight.discard(event.event_id)
            head.logged_version = event.trunk_version
            return True
        if event.trunk_version != head.logged_version:
            return False
        if event.flags & events.HIDDEN == 0:
            if at_end is not None:
                head.put(event.event_id, at_end.prev_event_ids, (at_end.depth, ""))
                return True
            try:
                prev_event_ids, description = _placed(event, head.room)
            except (InvalidEvent, LookupError, TypeError):
                return False  # who reads the room meets it
            # One of ours is by another process, which had not heard of all.
            is_ours = server_name_of(event.sender) == self._server_name
            if not is_ours and not head.extremities.keys() >= prev_event_ids:
                return False  # by way of hidden events it may follow more of them than it names
            head.put(event.event_id, prev_event_ids, description)
        return True

    def add_new(self, room: Room) -> RoomHead:
        """The head of a room without any event yet."""
        head = RoomHead(room, 0, {}, dict.fromkeys(_FIRST_KEYS))
        self._heads[room.number] = head
        return head

    def drop(self, head: RoomHead) -> None:
        """Have the room looked at anew by its next event."""
        head.is_broken = True
        if self._heads.get(head.room.number) is head:
            del self._heads[head.room.number]

    def find(self, room: Room) -> RoomHead | None:
        """The head, if it is in memory."""
        head = self._heads.get(room.number)
        self._lookups.note(is_hit=head is not None)
        if head is not None and head.is_broken:  # refused, and the rest of its batch is not committed yet
            del self._heads[room.number]
            return None
        if head is not None:
            self._heads.move_to_end(room.number)
        return head

    async def load(self, room: Room, keys: Iterable[StateKey]) -> RoomHead:
        """The room's head, with these entries of its state; raises NotFound for a room without events, BeingJoined
        where one of them is a member event that is still to come.

        What is read here may be newer than the head, never older: what is in flight is in the head already. An
        event that is built on a mixture is refused, because the room's version is then not the head's.
        """
        head = self.find(room)
        if head is not None and len(head.state) > MAX_STATE:
            head.forget_state()
        wanted = [key for key in keys if head is None or key not in head.state]
        if head is not None and not wanted:
            return head
        async with self._database.read() as tx:
            if head is None:
                fresh = await self._read(tx, room)
                head = self._heads.setdefault(room.number, fresh)
                wanted.extend(_FIRST_KEYS)
            loaded = await load_state(tx, room, wanted)
        unknown = {key for key in wanted if key not in loaded and key[0] == "m.room.member" and head.lacks_members}
        for key in wanted:
            if key not in unknown:
                head.state.setdefault(key, loaded.get(key))
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        if unknown:
            raise BeingJoined
        return head

    async def _read(self, tx: Tx, room: Room) -> RoomHead:
        row, read_at = await rooms.row_and_position(tx, room.number)
        if not row.extremities:
            raise NotFound("There is no such room")
        found = await events.by_id(tx, row.extremities)
        extremities = {event_id: _described(stored, room) for event_id, stored in found.items()}
        return RoomHead(
            room,
            row.state_version,
            extremities,
            joined=row.joined_members,
            lacks_members=row.lacks_members,
            logged_version=row.state_version,
            read_at=read_at,
        )


async def load_state(tx: Tx, room: Room, keys: Iterable[StateKey]) -> dict[StateKey, VerifiedPDU]:
    """The current state events under these keys."""
    stored = await room_state.current_events(tx, room.number, keys)
    return {key: to_pdu(event, room) for key, event in stored.items() if event.flags & Flag.REJECTED == 0}


def _described(stored: StoredEvent, room: Room) -> tuple[int, str]:
    """As `described`; of a row that is no event only its ID is used, so that it does not close the room."""
    try:
        return described(to_pdu(stored, room))
    except InvalidEvent:
        return 0, ""


def to_pdu(stored: StoredEvent, room: Room) -> VerifiedPDU:
    """The stored event as it was verified."""
    return from_stored(stored.canonical, stored.event_id, room.room_id, room.rules)


def _placed(event: StoredEvent, room: Room) -> tuple[set[EventID], tuple[int, str]]:
    """What an event follows, and how later ones refer to it; raises one of several errors for what is no event."""
    if room.rules.references_carry_hashes:
        pdu = from_stored(event.canonical, event.event_id, room.room_id, room.rules)
        return set(pdu.prev_event_ids), described(pdu)
    prev_event_ids, depth = event.json["prev_events"], event.json["depth"]
    if type(prev_event_ids) is not list or type(depth) is not int:
        raise TypeError
    return set(prev_event_ids), (depth, "")


def described(pdu: VerifiedPDU) -> tuple[int, str]:
    """An event as later ones refer to it: its depth, and where references carry hashes, its reference hash."""
    return pdu.depth, reference_hash(
        redact(pdu.json, pdu.rules), pdu.rules
    ) if pdu.rules.references_carry_hashes else ""
