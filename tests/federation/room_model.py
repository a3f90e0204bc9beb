"""A room's graph as the specification tells it: whole states in memory, everything computed anew each time."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE, auth_keys_for
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, StateKey, UserID
from storage.events import Flag
from tests.protocol.whole_states import resolve_full

State = dict[StateKey, EventID]


@dataclass
class RoomModel:
    """The events received so far, in order, with the state around each."""

    rules: RoomVersionRules
    pdus: dict[EventID, VerifiedPDU] = field(default_factory=dict)
    """In the order of receipt."""
    flags: dict[EventID, Flag] = field(default_factory=dict)
    before: dict[EventID, State] = field(default_factory=dict)
    after: dict[EventID, State] = field(default_factory=dict)
    current: State = field(default_factory=dict)

    def missing(self, pdu: VerifiedPDU) -> list[EventID]:
        """What it refers to that is not here."""
        return [event_id for event_id in pdu.prev_event_ids if event_id not in self.after]

    def hold(self, pdu: VerifiedPDU) -> None:
        """Keep an event without a place in the graph, as part of a given state or of what authorises it."""
        self.pdus[pdu.event_id] = pdu
        self.flags[pdu.event_id] = Flag.OUTLIER

    def state_after(self, event_ids: Iterable[EventID]) -> State:
        """The resolution of the states after these events."""
        states = [self.after[event_id] for event_id in event_ids]
        if not states:
            return {}
        rejected = {event_id for event_id, flags in self.flags.items() if flags & Flag.REJECTED}
        return resolve_full(self.rules, states, self.pdus, rejected)

    def receive(self, pdu: VerifiedPDU, state_before: State | None = None) -> Flag:
        """Steps 4 to 6 of the checks on receipt, and the current state after them."""
        before = self.state_after(pdu.prev_event_ids) if state_before is None else state_before
        flags = self.judge(pdu, before)
        self.pdus[pdu.event_id] = pdu
        self.flags[pdu.event_id] = flags
        self.before[pdu.event_id] = before
        self.after[pdu.event_id] = dict(before)
        if pdu.state_key is not None and not flags & Flag.REJECTED:
            self.after[pdu.event_id][pdu.state_pair] = pdu.event_id
        self.current = self.state_after(self.extremities())
        return flags

    def judge(self, pdu: VerifiedPDU, before: State) -> Flag:
        """How the event comes out of the checks."""
        rejected = [event_id for event_id, flags in self.flags.items() if flags & Flag.REJECTED]
        cited = {event_id: self.pdus[event_id] for event_id in pdu.auth_event_ids}
        by_key = {each.state_pair: each for each in cited.values() if each.state_key is not None}
        if not self.rules.create_in_auth_events and pdu.type != "m.room.create":
            by_key[CREATE] = self.pdus[self.current[CREATE]]
        try:
            auth_rules.check_auth_events(pdu, cited, rejected)
            auth_rules.check(pdu, by_key)
            auth_rules.check(pdu, self.auth_state(pdu, before))
        except AuthRuleViolated:
            return Flag.REJECTED
        try:
            auth_rules.check(pdu, self.auth_state(pdu, self.current))
        except AuthRuleViolated:
            return Flag.SOFT_FAILED
        return Flag.NONE

    def auth_state(self, pdu: PDU, state: State) -> dict[StateKey, VerifiedPDU]:
        """What of a state authorises the event."""
        keys = (CREATE, *auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules))
        return {key: self.pdus[state[key]] for key in keys if key in state}

    def extremities(self) -> set[EventID]:
        """Accepted events that no accepted one follows, be it by way of hidden ones."""
        followed: set[EventID] = set()
        frontier = [event_id for event_id, flags in self.flags.items() if not flags]
        seen: set[EventID] = set()
        while frontier:
            event_id = frontier.pop()
            if event_id in seen:
                continue
            seen.add(event_id)
            for prev in self.pdus[event_id].prev_event_ids:
                followed.add(prev)
                if prev in self.after and self.flags[prev]:
                    frontier.append(prev)
        return {event_id for event_id, flags in self.flags.items() if not flags and event_id not in followed}

    def membership(self, state: State, user_id: UserID) -> str | None:
        """What a state says of a user."""
        event_id = state.get(("m.room.member", user_id))
        return None if event_id is None else str(self.pdus[event_id].membership)

    def count(self, membership: str) -> int:
        """How many members have a membership now."""
        return sum(
            self.pdus[event_id].membership == membership
            for key, event_id in self.current.items()
            if key[0] == "m.room.member"
        )
