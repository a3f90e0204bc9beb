"""Appending another server's event: steps 4 to 7 of "Checks performed on receipt of a PDU" (Server-Server API).

The event was verified and what it refers to is here, or the state before it is given. What it changes is computed
from an immutable part of the graph and from the room's row; if the row has changed when the entry's turn comes, the
log refuses it and all is computed again.

A message that continues the room's end, which almost all are, leaves the room's version alone, so others like it may
come between. Whatever else is accepted makes a new version, even where the current state stays the same: who built
on the old one then looks again. So the trunk is at every version the resolution of the forward extremities.
"""

from collections.abc import Collection, Mapping
from enum import Enum

from msgspec import Struct

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE, POWER_LEVELS, auth_keys_for
from federation.protocol.errors import AuthRuleViolated, Forbidden, NotFound
from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.policy_server import POLICY, is_endorsed
from federation.protocol.power_levels import PowerLevels
from federation.protocol.relations import related_event, thread_of
from federation.protocol.types import EventID, ServerName, StateKey, UserID
from federation.rooms import outliers
from federation.rooms.contention import Contention
from federation.rooms.counting import NOT_COUNTED, Counted, Counter
from federation.rooms.given_states import GivenStates
from federation.rooms.incomplete_rooms import BeingJoined, StateBefore
from federation.rooms.learning import learn_members
from federation.rooms.ordering import cited_by
from federation.rooms.placing import NOTHING, Circumstances, Placing
from federation.rooms.policy_servers import PolicyServers, Unendorsed
from federation.rooms.state import NEW, Graph, MissingEvents, View, resolve
from storage import events, room_state, rooms
from storage.append_events import DuplicateEvent, RoomEvents
from storage.database import Database, Tx
from storage.events import HIDDEN, Flag, NewEvent, StoredEvent
from storage.history import HOLE
from storage.log import Log
from storage.log_entries import AlreadyWritten, Conflict, Entry
from storage.room_state import TRUNK, Point

MAX_HIDDEN_WALK = 1_000
"""Rejected and soft-failed events that are passed on the way down to forward extremities."""


class Outcome(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    SOFT_FAILED = "soft-failed"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"


HELD = -1
"""In place of a position: the event is an outlier still, which `RoomWriter` gives its place in history."""


class Received(Struct, frozen=True):
    """An event that is in the log now, or was before."""

    event_id: EventID
    outcome: Outcome
    position: int
    """Where it stands in the log; 0 for what is no news: a duplicate, or an outlier that got its place."""
    reason: str = ""
    """Why it is not shown to clients."""


_ORDINARY = Circumstances()


class RemoteAppender:
    """Puts events of other servers where they belong."""

    def __init__(
        self, *, database: Database, log: Log, counter: Counter, policies: PolicyServers, server_name: ServerName
    ) -> None:
        self._database = database
        self._server_name = server_name
        self._log = log
        self._counter = counter
        self._policies = policies
        self._given_states = GivenStates()

    async def append(
        self,
        pdu: VerifiedPDU,
        state_before: StateBefore | None = None,
        how: Circumstances = _ORDINARY,
    ) -> Received:
        """See `RoomWriter.append_remote` and `RoomWriter.append_signed`. Raises Unendorsed where the room's policy
        server is to be asked first.

        Raises BeingJoined where a member has a say in it who is not known yet (`incomplete_rooms.py`).

        What a client is `sending` is written once, or not at all: raises Forbidden, AlreadyWritten or Conflict then.
        """
        contention = Contention()
        while True:
            try:
                async with self._database.read() as tx:
                    placing = await self._look(tx, pdu, how)
                    if placing is None:
                        return Received(pdu.event_id, Outcome.DUPLICATE, 0)
                    change = await self._place(tx, placing, state_before)
            except BeingJoined:
                if not await self._learn(pdu):
                    raise
                continue
            if placing.held_at is not None and not placing.enters:
                self._given_states.spend(placing.room.number, placing.differences)
                return Received(pdu.event_id, _OUTCOMES[placing.flags], HELD, placing.reason)
            _check_expected(placing)
            work = None if how.sending is None else how.sending.work
            try:
                appended = await self._log.append(Entry(changes=[change, *how.changes], work=work))
            except DuplicateEvent:
                return Received(pdu.event_id, Outcome.DUPLICATE, 0)
            except Conflict as error:
                if how.sending is not None and isinstance(error, AlreadyWritten):
                    raise
                await contention.give_way(error)
                continue
            self._given_states.spend(placing.room.number, placing.differences)
            return Received(pdu.event_id, _OUTCOMES[placing.flags], appended.position, placing.reason)

    async def _learn(self, pdu: VerifiedPDU) -> bool:
        """Know the members that an event cites, where they were left out of the state before a join; whether any are
        known by that who were not."""
        async with self._database.read() as tx:
            cited = await events.by_id(tx, cited_by(pdu))
        return await learn_members(self._database, self._server_name, pdu.room_id, cited.values())

    async def _look(self, tx: Tx, pdu: VerifiedPDU, how: Circumstances) -> Placing | None:
        """What the event refers to; None when it is here already."""
        room = await rooms.find(tx, pdu.room_id)
        if room is None:
            raise NotFound("There is no such room")
        row = (await rooms.rows(tx, [room.number]))[room.number]
        cited = cited_by(pdu)
        found = await events.by_id(tx, {pdu.event_id, *pdu.prev_event_ids, *cited})
        held = found.pop(pdu.event_id, None)
        if held is not None and not held.flags & Flag.OUTLIER:
            return None
        graph = Graph(tx, room, pdu, row)
        graph.keep(found.values())
        if held is not None:
            graph.arrivals[pdu.event_id] = held.arrival  # others may cite it already
        missing_auth = [event_id for event_id in cited if event_id not in graph.pdus]
        if missing_auth:
            raise MissingEvents(auth=missing_auth)
        prev = {
            event_id: stored
            for event_id in pdu.prev_event_ids
            if (stored := found.get(event_id)) is not None
            and stored.room == room.number
            and not stored.flags & Flag.OUTLIER
        }
        missing = [event_id for event_id in pdu.prev_event_ids if event_id not in prev]
        return Placing(
            room=room,
            row=row,
            pdu=pdu,
            graph=graph,
            prev=prev,
            missing=missing,
            how=how,
            held_at=None if held is None else held.position,
        )

    async def _place(self, tx: Tx, placing: Placing, state_before: StateBefore | None) -> RoomEvents:
        """The change that appends the event."""
        before = await self._state_before(tx, placing, state_before)
        keys = [*keys_for(placing.pdu), POLICY]
        state = await placing.graph.state(before, keys)
        current = state
        if before != placing.head:
            current = await placing.graph.state(placing.head, keys)
        _judge(placing, state, current)
        if not placing.flags:
            await self._check_policy(tx, placing, current.get(POLICY))
        await _follow_up(tx, placing)
        await placing.make_space()
        placing.enters = await _enters(tx, placing)
        point = placing.store(before)
        change = RoomEvents(
            room=placing.room,
            new=[],
            expected_version=placing.row.state_version,
            new_version=placing.row.state_version,
            may_be_duplicate=True,
        )
        if placing.missing and not placing.flags:
            change.hole = HOLE
        after = await self._advance(placing, change, before, point)
        if placing.lines:
            change.expected_last_line = placing.row.last_line
        change.lines = placing.lines
        change.state = placing.writes
        change.concerned = _concerned(placing)
        counted = self._count(placing, current)
        sending = placing.how.sending
        change.new.append(
            NewEvent(
                pdu=placing.pdu,
                line=point[0],
                version=point[1],
                after=after,
                trunk_version=change.new_version,
                flags=int(placing.flags),
                thread=thread_of(placing.pdu.json),
                relation=related_event(placing.pdu.content),
                notifies=counted.notifies,
                highlights=counted.highlights,
                personal=counted.personal,
                missing=[*placing.missing, *placing.gaps],
                missing_for=placing.follower if placing.flags else None,
                covers=placing.followed,
                is_extremity=placing.is_extremity,
                is_local=placing.how.is_local,
                held_at=placing.held_at,
                device=None if sending is None else sending.device,
                txn_id=None if sending is None else sending.txn_id,
            )
        )
        note_redaction(change.new[0], state)
        return change

    async def _check_policy(self, tx: Tx, placing: Placing, event: VerifiedPDU | None) -> None:
        """Step 7, by the room's current `m.room.policy`."""
        policy = await self._policies.find_in(tx, placing.room, event)
        if policy is None or is_endorsed(placing.pdu, policy):
            return
        if placing.how.refusal is None:
            raise Unendorsed(policy)
        placing.flags, placing.reason = Flag.SOFT_FAILED, placing.how.refusal

    async def _state_before(self, tx: Tx, placing: Placing, state_before: StateBefore | None) -> View:
        """The state before the event: the resolution of those after its previous events."""
        pdu, graph, head = placing.pdu, placing.graph, placing.head
        if placing.missing:
            if state_before is None:
                raise MissingEvents(prev=placing.missing)
            given = await placing.given_state(tx, state_before)
            if not placing.how.is_local:
                self._given_states.check(placing.room.number, len(given.changes))
                placing.differences = len(given.changes)
            return given
        if not pdu.prev_event_ids:
            return View(NOTHING)
        if set(pdu.prev_event_ids) == set(placing.row.extremities):
            return head
        views = [View(point) for point in {stored.point_after for stored in placing.prev.values()}]
        found = (await resolve(graph, views)).view
        if found.point[0] == TRUNK and not found.changes and not await graph.difference(found, head):
            return head
        return found

    async def _advance(self, placing: Placing, change: RoomEvents, before: View, point: Point) -> Point | None:
        """Make the room's new current state; returns the state after the event, where it has to be noted."""
        key, head = placing.state_pair, placing.head
        after = before if key is None else before.with_entry(key, NEW)
        if not placing.is_extremity and not placing.covers:
            return None if key is None else await placing.branch(point, key, extends=False)
        remaining = [each for each in placing.row.extremities if each not in placing.covers]
        if key is None and before == head and placing.is_extremity and await self._keeps_end(placing, remaining):
            return None
        change.expected_extremities = frozenset(placing.row.extremities)
        change.new_version = version = placing.row.state_version + 1
        points = {each.point_after for each in (await self._extremities(placing, remaining)).values()}
        views = [View(each) for each in points]
        if placing.is_extremity:
            views.insert(0, after)
        resolved = await resolve(placing.graph, views)
        await placing.change_trunk(version, await placing.graph.difference(head, resolved.view))
        if key is None:
            return None
        if placing.is_extremity and 0 in resolved.same_as:
            return (TRUNK, version)
        return await placing.branch(point, key, extends=True)

    async def _keeps_end(self, placing: Placing, remaining: Collection[EventID]) -> bool:
        """Whether a message with the room's present state before it leaves the current state as it is, for certain.

        It does where it follows all extremities, or where the states after those that it follows, and after at
        least one of them all, are the present one: then it stands for them.
        """
        if placing.missing or placing.gaps:
            return False
        if not remaining:
            return True
        stored = await self._extremities(placing, placing.row.extremities)
        head = placing.head.point
        return any(each.point_after == head for each in stored.values()) and all(
            stored[event_id].point_after == head for event_id in placing.covers
        )

    async def _extremities(self, placing: Placing, wanted: Collection[EventID]) -> dict[EventID, StoredEvent]:
        found = {event_id: placing.prev[event_id] for event_id in wanted if event_id in placing.prev}
        found |= await placing.graph.load_stored(event_id for event_id in wanted if event_id not in found)
        return found

    def _count(self, placing: Placing, current: Mapping[StateKey, VerifiedPDU]) -> Counted:
        create = current.get(CREATE)
        if placing.flags or create is None:
            return NOT_COUNTED
        levels = PowerLevels.from_state(current.get(POWER_LEVELS), create)
        return self._counter.count(placing.room, placing.pdu, levels, placing.row.joined_members)


_OUTCOMES = {
    Flag.NONE: Outcome.ACCEPTED,
    Flag.SOFT_FAILED: Outcome.SOFT_FAILED,
    Flag.REJECTED: Outcome.REJECTED,
}


def _check_expected(placing: Placing) -> None:
    """Raise Forbidden for what a client sends and would not be accepted, Conflict where the room has moved on."""
    how = placing.how
    if how.sending is not None and placing.flags:
        raise Forbidden(placing.reason)
    if how.at_version is not None and how.at_version != placing.row.state_version:
        raise Conflict("The room's state has changed meanwhile")


def keys_for(pdu: VerifiedPDU) -> list[StateKey]:
    keys = auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules)
    return list(dict.fromkeys((*keys, CREATE, POWER_LEVELS)))


def _judge(placing: Placing, state: Mapping[StateKey, VerifiedPDU], current: Mapping[StateKey, VerifiedPDU]) -> None:
    """Steps 4, 5 and 6."""
    pdu, graph = placing.pdu, placing.graph
    try:
        if pdu.type == "m.room.create" and placing.row.state_version:
            raise AuthRuleViolated("1", "The room has a create event")
        outliers.judge(pdu, graph.pdus, graph.rejected)
        auth_rules.check(pdu, state)
    except AuthRuleViolated as error:
        placing.flags, placing.reason = Flag.REJECTED, error.message
        return
    try:
        if current is not state:
            auth_rules.check(pdu, current)
    except AuthRuleViolated as error:
        placing.flags, placing.reason = Flag.SOFT_FAILED, error.message


async def _follow_up(tx: Tx, placing: Placing) -> None:
    """What the event follows, directly or by way of hidden events, if it counts as following."""
    placing.follower = await events.find_follower(tx, placing.room.number, placing.pdu.event_id)
    if placing.flags and placing.follower is None:
        return
    seen = placing.followed
    seen.update(placing.prev)
    hidden = [stored for stored in placing.prev.values() if stored.flags & HIDDEN]
    while hidden and len(seen) < MAX_HIDDEN_WALK:
        wanted = {each for stored in hidden for each in _prev_of(placing, stored) if each not in seen}
        found = await placing.graph.load_stored(wanted)
        placing.gaps += [each for each in wanted if each not in found]
        seen |= wanted
        hidden = [stored for stored in found.values() if stored.flags & HIDDEN]


async def _enters(tx: Tx, placing: Placing) -> bool:
    """Whether an outlier takes its place at the room's end: what made us hold it does not count, or does not follow it.

    Not so where the states at the room's end have it, or the current one had it, by what followed it.
    """
    pdu, row = placing.pdu, placing.row
    if placing.held_at is None or placing.flags or placing.missing or placing.follower is not None:
        return False
    if pdu.state_key is None:
        return True
    ends = await placing.graph.load_stored(row.extremities)
    key, number = pdu.state_pair, placing.room.number
    found = await room_state.at(tx, number, {stored.point_after for stored in ends.values()}, [key])
    was = (await room_state.history(tx, number, [key]))[key]
    return placing.held_at not in {*(state.get(key) for state in found.values()), *(span.event for span in was)}


def _prev_of(placing: Placing, stored: StoredEvent) -> tuple[EventID, ...]:
    return placing.graph.pdus[stored.event_id].prev_event_ids


def _concerned(placing: Placing) -> tuple[UserID, ...]:
    pdu = placing.pdu
    users = [write.state_key for write in placing.writes if write.line == TRUNK and write.type == "m.room.member"]
    if pdu.type == "m.room.member" and pdu.state_key is not None and not placing.flags:
        users.append(pdu.state_key)
    return tuple(UserID(user_id) for user_id in dict.fromkeys(users))


def note_redaction(new: NewEvent, state: Mapping[StateKey, VerifiedPDU]) -> None:
    """What the event redacts, once both are here (Room Versions 3, "Handling redactions"; before: rule 11 decided)."""
    pdu = new.pdu
    create = state.get(CREATE)
    if pdu.type != "m.room.redaction" or pdu.redacts is None or new.flags or create is None:
        return
    new.redacts = pdu.redacts
    levels = PowerLevels.from_state(state.get(POWER_LEVELS), create)
    if not pdu.rules.redactions_are_authorised and levels.of_user(pdu.sender) < levels.redact:
        new.redacts_only_of = server_name_of(pdu.sender)
