"""Appending many events of another server at once, where they continue the room's end one after the other.

That is what almost all transactions hold. What one event needs beyond that (a fork, a gap, a refusal) is left to
`append_remote.py`, which places a single event wherever it belongs; both come to the same result where both apply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE, POWER_LEVELS
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import EventID, StateKey, UserID
from federation.rooms import outliers
from federation.rooms.append_remote import Outcome, Received, keys_for, note_redaction
from federation.rooms.contention import Contention
from federation.rooms.counting import Counter, related_event, thread_of
from federation.rooms.ordering import cited_by
from federation.rooms.state import Graph, View
from storage import events, rooms
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.events import Flag, NewEvent, StateWrite, StoredEvent
from storage.log import Conflict, Entry, Log
from storage.memberships import Membership
from storage.room_state import TRUNK
from storage.rooms import Room, RoomRow


@dataclass(slots=True, kw_only=True)
class _End:
    """The room's end, as the events that were added leave it."""

    row: RoomRow
    graph: Graph
    held: Mapping[EventID, StoredEvent]
    referred: frozenset[EventID]
    """Those of the events that others refer to, which came first."""
    state: dict[StateKey, VerifiedPDU]
    version: int
    joined: int
    extremities: set[EventID]
    change: RoomEvents
    results: list[Received] = field(default_factory=list)


class LineAppender:
    """Puts events at the end of a room."""

    def __init__(self, *, database: Database, log: Log, counter: Counter) -> None:
        self._database = database
        self._log = log
        self._counter = counter

    async def append(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[Received]:
        """Append as many of the first of these events as continue the room's end and are accepted, in one entry.

        Answers what became of those; the event after them, if there is one, is for `RemoteAppender`.
        """
        contention = Contention()
        while True:
            async with self._database.read() as tx:
                row = (await rooms.rows(tx, [room.number]))[room.number]
                if not row.extremities or set(pdus[0].prev_event_ids) != set(row.extremities):
                    return []
                end = await self._look(tx, room, row, pdus)
            for pdu in pdus:
                if not self._add(end, pdu):
                    break
            if not end.change.new:
                return end.results
            try:
                appended = await self._log.append(Entry(changes=[end.change]))
            except Conflict as error:
                await contention.give_way(error)
                continue
            return _with_positions(end.results, appended.position)

    async def _look(self, tx: Tx, room: Room, row: RoomRow, pdus: Sequence[VerifiedPDU]) -> _End:
        event_ids = [pdu.event_id for pdu in pdus]
        held = await events.by_id(tx, {*event_ids, *(cited for pdu in pdus for cited in cited_by(pdu))})
        graph = Graph(tx, room)
        graph.keep(held.values())
        referred = await events.find_followers(tx, room.number, event_ids)
        keys = dict.fromkeys(key for pdu in pdus for key in keys_for(pdu))
        change = RoomEvents(
            room=room,
            new=[],
            expected_version=row.state_version,
            new_version=row.state_version,
            may_be_duplicate=True,
        )
        return _End(
            row=row,
            graph=graph,
            held=held,
            referred=frozenset(referred),
            state=await graph.state(View((TRUNK, row.state_version)), list(keys)),
            version=row.state_version,
            joined=row.joined_members,
            extremities=set(row.extremities),
            change=change,
        )

    def _add(self, end: _End, pdu: VerifiedPDU) -> bool:
        """Put the event into the change, if it is for this module."""
        held = end.held.get(pdu.event_id)
        if held is not None and not held.flags & Flag.OUTLIER:
            end.results.append(Received(pdu.event_id, Outcome.DUPLICATE, 0))
            return True
        continues = set(pdu.prev_event_ids) == end.extremities
        if held is not None or not continues or pdu.event_id in end.referred or pdu.type == "m.room.create":
            return False
        if any(event_id not in end.graph.pdus for event_id in cited_by(pdu)):
            return False
        try:
            outliers.judge(pdu, end.graph.pdus, end.graph.rejected)
            auth_rules.check(pdu, end.state)
        except AuthRuleViolated:
            return False
        new = self._new_event(end, pdu)
        note_redaction(new, end.state)
        end.change.new.append(new)
        end.graph.pdus[pdu.event_id] = pdu
        end.extremities = {pdu.event_id}
        if pdu.state_key is not None:
            _change_state(end, pdu, pdu.state_key)
        end.results.append(Received(pdu.event_id, Outcome.ACCEPTED, 0))
        return True

    def _new_event(self, end: _End, pdu: VerifiedPDU) -> NewEvent:
        levels = PowerLevels.from_state(end.state.get(POWER_LEVELS), end.state[CREATE])
        counted = self._counter.count(end.change.room, pdu, levels, end.joined)
        return NewEvent(
            pdu=pdu,
            line=TRUNK,
            version=end.version,
            trunk_version=end.version + (pdu.state_key is not None),
            thread=thread_of(pdu),
            relation=related_event(pdu.content),
            notifies=counted.notifies,
            highlights=counted.highlights,
            personal=counted.personal,
        )


def _change_state(end: _End, pdu: VerifiedPDU, state_key: str) -> None:
    """A state event makes a new version of the room, and needs all that the old one was made of to stay."""
    end.version += 1
    change = end.change
    change.new_version = end.version
    change.expected_extremities = frozenset(end.row.extremities)
    membership = Membership.of(pdu.membership) if pdu.type == "m.room.member" else None
    change.state.append(
        StateWrite(
            line=TRUNK,
            type=pdu.type,
            state_key=state_key,
            event_id=pdu.event_id,
            since=end.version,
            membership=membership,
        )
    )
    if pdu.type == "m.room.member":
        before = end.state.get(pdu.state_pair)
        end.joined += (pdu.membership == "join") - (before is not None and before.membership == "join")
        change.concerned = tuple(dict.fromkeys((*change.concerned, UserID(state_key))))
    end.state[pdu.state_pair] = pdu


def _with_positions(results: Sequence[Received], last: int) -> list[Received]:
    """The results with the places of the events that were appended, the last of which is at `last`."""
    position = last - sum(received.outcome is Outcome.ACCEPTED for received in results)
    placed = []
    for received in results:
        if received.outcome is Outcome.ACCEPTED:
            position += 1
            placed.append(Received(received.event_id, Outcome.ACCEPTED, position))
        else:
            placed.append(received)
    return placed
