"""Appending events of another server where they continue the room's end, one after the other: many in one entry.

That is what almost all transactions hold. As for our own events, the room's head (`heads.py`) knows what they build on
and runs ahead of the log, so a message costs no look at the room. What one event needs beyond that (a fork, a gap, a
refusal) is left to `append_remote.py`, which places a single event wherever it belongs; both come to the same result
where both apply.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from msgspec import Struct, field

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE, POWER_LEVELS
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.policy_server import POLICY, PolicyServer, is_endorsed, is_policy
from federation.protocol.power_levels import PowerLevels
from federation.protocol.relations import related_event, thread_of
from federation.protocol.types import EventID, StateKey, UserID
from federation.rooms import outliers
from federation.rooms.append_remote import Outcome, Received, keys_for, note_redaction
from federation.rooms.contention import Contention
from federation.rooms.counting import Counter
from federation.rooms.heads import RoomHead, RoomHeads, to_pdu
from federation.rooms.ordering import cited_by
from federation.rooms.policy_servers import PolicyServers
from storage import events
from storage.append_events import RoomEvents
from storage.database import Database
from storage.events import Flag, NewEvent, StateWrite
from storage.log import Log
from storage.log_entries import AlreadyWritten, Conflict, Entry
from storage.memberships import Membership
from storage.room_state import TRUNK
from storage.rooms import Room


class _Known(Struct):
    """What the events refer to besides the room's head."""

    referred: Collection[EventID]
    """Those of them that others refer to, which came first."""
    pdus: dict[EventID, VerifiedPDU]
    rejected: Collection[EventID] = field(default_factory=frozenset)
    policy: PolicyServer | None = None
    """The policy server that the room uses."""


class LineAppender:
    """Puts events at the end of a room."""

    def __init__(
        self, *, database: Database, log: Log, heads: RoomHeads, counter: Counter, policies: PolicyServers
    ) -> None:
        self._database = database
        self._log = log
        self._heads = heads
        self._counter = counter
        self._policies = policies

    async def append(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[Received]:
        """Append as many of the first of these events as continue the room's end and are accepted, in one entry.

        Answers what became of those; the event after them, if there is one, is for `RemoteAppender`.
        """
        contention = Contention()
        keys = list(dict.fromkeys((POLICY, *(key for pdu in pdus for key in keys_for(pdu)))))
        while True:
            head = await self._heads.load(room, keys)
            if not _continues(head, pdus[0]):
                return []
            policy = head.state.get(POLICY)
            known = await self._look(room, head, pdus)
            is_same = self._heads.find(room) is head and head.state.get(POLICY) is policy
            if not is_same or any(key not in head.state for key in keys):
                continue  # nothing may come between a look at the head and what is enqueued on it
            change = self._build(room, head, pdus, known)
            if not change.new:
                return []
            built = [event.pdu.event_id for event in change.new]
            try:
                appended = await self._log.append(Entry([change], on_refused=partial(self._heads.drop, head)))
            except AlreadyWritten:
                return []  # one of them is here
            except Conflict as error:
                await contention.give_way(error)
                continue
            first = appended.position - len(built) + 1
            return [Received(event_id, Outcome.ACCEPTED, first + index) for index, event_id in enumerate(built)]

    async def _look(self, room: Room, head: RoomHead, pdus: Sequence[VerifiedPDU]) -> _Known:
        """What the head does not know of the events: who waits for them, and what they cite that is not current."""
        given = {pdu.event_id for pdu in pdus}
        current = {pdu.event_id for pdu in head.state.values() if pdu is not None}
        policy = await self._policies.find(room, head.state.get(POLICY))
        cited = {event_id for pdu in pdus for event_id in cited_by(pdu)} - current - given
        async with self._database.read() as tx:
            referred = await events.find_followers(tx, room.number, given)
            held = (await events.by_id(tx, cited)).values() if cited else ()
            ours = [stored for stored in held if stored.room == room.number]
        return _Known(
            referred,
            {stored.event_id: to_pdu(stored, room) for stored in ours},
            {stored.event_id for stored in ours if stored.flags & Flag.REJECTED},
            policy,
        )

    def _build(self, room: Room, head: RoomHead, pdus: Sequence[VerifiedPDU], known: _Known) -> RoomEvents:
        """The change for the first of the events, as far as they are for this module; the head is past them then."""
        change = RoomEvents(
            room=room,
            new=[],
            expected_version=head.version,
            new_version=head.version,
            head=head,
            may_be_awaited=True,
        )
        extremities = frozenset(head.extremities)
        known.pdus.update((pdu.event_id, pdu) for pdu in head.state.values() if pdu is not None)
        for pdu in pdus:
            if not _continues(head, pdu) or pdu.event_id in known.referred or not _is_allowed(head, pdu, known):
                break
            self._add(change, head, pdu)
            known.pdus[pdu.event_id] = pdu
            if _may_change_policy(head, pdu):
                break  # another may have to recommend what comes after it
        if change.state:
            change.expected_extremities = extremities
        return change

    def _add(self, change: RoomEvents, head: RoomHead, pdu: VerifiedPDU) -> None:
        state = _present(head)
        levels = PowerLevels.from_state(state.get(POWER_LEVELS), state[CREATE])
        counted = self._counter.count(change.room, pdu, levels, head.joined)
        version = head.version
        head.advance(pdu)
        change.new_version = head.version
        change.new.append(
            NewEvent(
                pdu=pdu,
                line=TRUNK,
                version=version,
                trunk_version=head.version,
                thread=thread_of(pdu.json),
                relation=related_event(pdu.content),
                notifies=counted.notifies,
                highlights=counted.highlights,
                personal=counted.personal,
            )
        )
        note_redaction(change.new[-1], state)
        if pdu.state_key is not None:
            is_member = pdu.type == "m.room.member"
            change.state.append(
                StateWrite(
                    line=TRUNK,
                    type=pdu.type,
                    state_key=pdu.state_key,
                    event_id=pdu.event_id,
                    since=head.version,
                    membership=Membership.of(pdu.membership) if is_member else None,
                )
            )
            if is_member:
                change.concerned = tuple(dict.fromkeys((*change.concerned, UserID(pdu.state_key))))


def _continues(head: RoomHead, pdu: VerifiedPDU) -> bool:
    return pdu.type != "m.room.create" and head.extremities.keys() == set(pdu.prev_event_ids)


def _may_change_policy(head: RoomHead, pdu: VerifiedPDU) -> bool:
    return is_policy(pdu) or (pdu.type == "m.room.member" and head.state.get(POLICY) is not None)


def _present(head: RoomHead) -> Mapping[StateKey, VerifiedPDU]:
    return {key: pdu for key, pdu in head.state.items() if pdu is not None}


def _is_allowed(head: RoomHead, pdu: VerifiedPDU, known: _Known) -> bool:
    """Steps 4 to 7, for an event whose state before is the current one."""
    if known.policy is not None and not is_endorsed(pdu, known.policy):
        return False
    if any(event_id not in known.pdus for event_id in cited_by(pdu)):
        return False
    try:
        outliers.judge(pdu, known.pdus, known.rejected)
        auth_rules.check(pdu, _present(head))
    except AuthRuleViolated:
        return False
    return True
