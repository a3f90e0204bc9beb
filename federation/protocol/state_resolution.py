"""State resolution for all room versions (Room Versions 2 and 12, "State resolution"; version 1 in its own module).

Pure, and without whole states: the caller passes the entries in conflict and of the rest only what may authorise them.

1. `split` the states, or load only the keys that differ.
2. `auth_difference` and, where `rules.state_resolution` is `v2.1`, `conflicted_subgraph` of `auth_graph`.
3. Load what `list_missing` names until it names nothing.
4. `resolve`.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.protocol import state_resolution_v1
from federation.protocol.auth_events import CREATE, POWER_LEVELS, auth_keys_for
from federation.protocol.auth_graph import auth_chain
from federation.protocol.auth_rules import check
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, RoomID, StateIDs, StateKey


class Conflict(Struct, frozen=True, kw_only=True):
    """What several states of one room disagree on, and what is needed to decide it."""

    conflicted: Mapping[StateKey, Collection[EventID]]
    """Every key that is not the same in all states, with all its events."""
    unconflicted: StateIDs
    """The entries that are the same in all states; at least those under `list_keys`, if there are any."""
    auth_difference: Collection[EventID] = ()
    subgraph: Collection[EventID] = ()
    """The conflicted state subgraph; only read where the room version knows it."""
    rejected: Collection[EventID] = ()
    """Rejected events among all that were loaded: they do not authorise others by being cited."""


def split(state_sets: Sequence[StateIDs]) -> tuple[dict[StateKey, EventID], dict[StateKey, set[EventID]]]:
    """The unconflicted state map and, by key, the conflicted state set."""
    unconflicted: dict[StateKey, EventID] = {}
    conflicted: dict[StateKey, set[EventID]] = {}
    for key in dict.fromkeys(key for state in state_sets for key in state):
        event_ids = {state.get(key) for state in state_sets}
        present = {event_id for event_id in event_ids if event_id is not None}
        if len(event_ids) == 1:
            unconflicted[key] = present.pop()
        else:
            conflicted[key] = present
    return unconflicted, conflicted


def list_keys(event_ids: Iterable[EventID], events: Mapping[EventID, PDU]) -> set[StateKey]:
    """The state that these events set and that may authorise them: the keys that `Conflict.unconflicted` must cover.

    To be asked with the conflicted events, the auth difference and the conflicted subgraph.
    """
    keys: set[StateKey] = set()
    for event_id in event_ids:
        pdu = events[event_id]
        keys.update(auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules))
        if pdu.state_key is not None:
            keys.add(pdu.state_pair)
    return keys


def list_missing(
    rules: RoomVersionRules, room_id: RoomID, conflict: Conflict, events: Mapping[EventID, PDU]
) -> set[EventID]:
    """The events that `resolve` needs next and that `events` lacks; to be asked again until it is empty."""
    disputed = _full_conflicted_set(rules, conflict)
    wanted = set(disputed)
    known = [event_id for event_id in disputed if event_id in events]
    if rules.state_resolution != "v2.1":
        unconflicted = conflict.unconflicted
        wanted.update(unconflicted[key] for key in list_keys(known, events) if key in unconflicted)
    if rules.state_resolution != "v1":
        wanted.update(cited for event_id in known for cited in events[event_id].auth_event_ids)
        if not rules.create_in_auth_events:
            wanted.add(_create_id(room_id))
        _add_mainlines(wanted, events)
    return {event_id for event_id in wanted if event_id not in events}


def _add_mainlines(wanted: set[EventID], events: Mapping[EventID, PDU]) -> None:
    """Add what each known power levels event cites, and so on, among which is the one before it."""
    frontier = list(wanted)
    while frontier:
        pdu = events.get(frontier.pop())
        if pdu is not None and pdu.type == "m.room.power_levels":
            new = [event_id for event_id in pdu.auth_event_ids if event_id not in wanted]
            wanted.update(new)
            frontier.extend(new)


def resolve(
    rules: RoomVersionRules, conflict: Conflict, events: Mapping[EventID, PDU]
) -> dict[StateKey, EventID | None]:
    """What the resolved state holds under each key in conflict, None for nothing.

    Also under keys that no state has, where events of the auth difference set them. `events` must hold all that
    `list_missing` asks for: KeyError if not.
    """
    if not conflict.conflicted:
        return {}
    resolved: Mapping[StateKey, EventID]
    if rules.state_resolution == "v1":
        resolved = state_resolution_v1.resolve(conflict.conflicted, conflict.unconflicted, events)
    else:
        resolved = _Resolution(rules, conflict, events).resolve()
    # Step 5: an entry without a conflict is as it was.
    changed: dict[StateKey, EventID | None] = dict.fromkeys(conflict.conflicted)
    changed.update((key, event_id) for key, event_id in resolved.items() if key not in conflict.unconflicted)
    return changed


def _full_conflicted_set(rules: RoomVersionRules, conflict: Conflict) -> set[EventID]:
    disputed: set[EventID] = set().union(*conflict.conflicted.values())
    if rules.state_resolution != "v1":
        disputed.update(conflict.auth_difference)
    if rules.state_resolution == "v2.1":
        disputed.update(conflict.subgraph)
    return disputed


def _create_id(room_id: RoomID) -> EventID:
    """The create event that a room ID of version 12 names."""
    return EventID("$" + room_id[1:])


def _is_power_event(pdu: PDU) -> bool:
    if pdu.type in ("m.room.power_levels", "m.room.join_rules"):
        return pdu.state_key == ""
    return pdu.type == "m.room.member" and pdu.membership in ("leave", "ban") and pdu.sender != pdu.state_key


class _Resolution:
    """One run of the algorithm of version 2 or 2.1."""

    def __init__(self, rules: RoomVersionRules, conflict: Conflict, events: Mapping[EventID, PDU]) -> None:
        self._rules = rules
        self._events = events
        self._rejected = conflict.rejected
        loaded = (events[event_id] for event_id in _full_conflicted_set(rules, conflict))
        self._disputed = {pdu.event_id: pdu for pdu in loaded if pdu.state_key is not None}
        self._start = {} if rules.state_resolution == "v2.1" else dict(conflict.unconflicted)

    def resolve(self) -> dict[StateKey, EventID]:
        """Steps 1 to 4."""
        state = self._start
        power_events = self._select_power_events()
        self._apply_authorised(self._order_by_power(power_events), state)
        others = [pdu for event_id, pdu in self._disputed.items() if event_id not in power_events]
        self._apply_authorised(self._order_by_mainline(others, state.get(POWER_LEVELS)), state)
        return state

    def _select_power_events(self) -> set[EventID]:
        """Step 1: the power events and what of their auth chains is disputed.

        A chain is followed as long as it stays in the full conflicted set, as other servers do.
        """
        inner = {
            event_id: [cited for cited in pdu.auth_event_ids if cited in self._disputed]
            for event_id, pdu in self._disputed.items()
        }
        return auth_chain((event_id for event_id, pdu in self._disputed.items() if _is_power_event(pdu)), inner)

    def _order_by_power(self, event_ids: set[EventID]) -> list[PDU]:
        """Reverse topological power ordering. Events on a cycle, which none can authorise, are left out."""
        cited_by: dict[EventID, list[EventID]] = {}
        waits_for: dict[EventID, int] = {}
        for event_id in event_ids:
            cited = {each for each in self._disputed[event_id].auth_event_ids if each in event_ids}
            waits_for[event_id] = len(cited)
            for each in cited:
                cited_by.setdefault(each, []).append(event_id)
        ready = [self._power_key(event_id) for event_id, count in waits_for.items() if count == 0]
        heapq.heapify(ready)
        ordered: list[PDU] = []
        while ready:
            event_id = heapq.heappop(ready)[2]
            ordered.append(self._disputed[event_id])
            for each in cited_by.get(event_id, ()):
                waits_for[each] -= 1
                if waits_for[each] == 0:
                    heapq.heappush(ready, self._power_key(each))
        return ordered

    def _power_key(self, event_id: EventID) -> tuple[int, int, EventID]:
        pdu = self._disputed[event_id]
        return (-self._sender_level(pdu), pdu.origin_server_ts, event_id)

    def _sender_level(self, pdu: PDU) -> int:
        """The sender's power by the events that `pdu` cites; 0 for what cites no create event where it should."""
        cited = {each.state_pair: each for each in self._cited(pdu)}
        create = cited.get(CREATE) if self._rules.create_in_auth_events else self._get_create(pdu)
        if create is None:
            return 0
        return PowerLevels.from_state(cited.get(POWER_LEVELS), create).of_user(pdu.sender)

    def _order_by_mainline(self, pdus: Iterable[PDU], power_levels_id: EventID | None) -> list[PDU]:
        """Mainline ordering, based on a power levels event."""
        positions: dict[EventID, int] = {}
        step = None if power_levels_id is None else self._events[power_levels_id]
        while step is not None and step.event_id not in positions:
            positions[step.event_id] = len(positions)
            step = self._power_levels_cited(step)
        beyond = len(positions)

        def position(pdu: PDU) -> int:
            passed: list[EventID] = []
            step = self._power_levels_cited(pdu)
            while step is not None and step.event_id not in positions:
                positions[step.event_id] = beyond  # Should the walk come back to it.
                passed.append(step.event_id)
                step = self._power_levels_cited(step)
            found = beyond if step is None else positions[step.event_id]
            positions.update(dict.fromkeys(passed, found))
            return found

        return sorted(pdus, key=lambda pdu: (-position(pdu), pdu.origin_server_ts, pdu.event_id))

    def _power_levels_cited(self, pdu: PDU) -> PDU | None:
        return next((each for each in self._cited(pdu) if each.state_pair == POWER_LEVELS), None)

    def _cited(self, pdu: PDU) -> Iterable[PDU]:
        """The state events that an event cites."""
        cited = (self._events[event_id] for event_id in pdu.auth_event_ids)
        return (each for each in cited if each.state_key is not None)

    def _get_create(self, pdu: PDU) -> PDU:
        return self._events[_create_id(pdu.room_id)]

    def _apply_authorised(self, pdus: Iterable[PDU], state: dict[StateKey, EventID]) -> None:
        """Iterative auth checks."""
        for pdu in pdus:
            try:
                check(pdu, self._auth_state(pdu, state))
            except AuthRuleViolated:
                continue
            state[pdu.state_pair] = pdu.event_id

    def _auth_state(self, pdu: PDU, state: Mapping[StateKey, EventID]) -> dict[StateKey, PDU]:
        """What authorises an event: from the state so far, else what the event cites unless that was rejected."""
        cited = {each.state_pair: each for each in self._cited(pdu) if each.event_id not in self._rejected}
        found: dict[StateKey, PDU] = {}
        for key in auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, self._rules):
            event_id = state.get(key)
            each = cited.get(key) if event_id is None else self._events[event_id]
            if each is not None:
                found[key] = each
        if not self._rules.create_in_auth_events:
            found[CREATE] = self._get_create(pdu)
        return found
