"""State resolution 2 and 2.1 written down as the specification words it: whole states, no economy, easy to check."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.auth_rules import check
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, StateIDs, StateKey

CREATE, POWER_LEVELS = ("m.room.create", ""), ("m.room.power_levels", "")


class Model:
    """One resolution of whole states."""

    def __init__(
        self, rules: RoomVersionRules, events: Mapping[EventID, PDU], rejected: Collection[EventID] = ()
    ) -> None:
        self.rules = rules
        self.events = events
        self.rejected = rejected

    def resolve(self, states: Sequence[StateIDs]) -> dict[StateKey, EventID]:
        """Steps 1 to 5."""
        keys = {key for state in states for key in state}
        unconflicted = {
            key: states[0][key] for key in keys if key in states[0] and len({state.get(key) for state in states}) == 1
        }
        conflicted = {state[key] for key in keys - set(unconflicted) for state in states if key in state}
        if not conflicted:
            return unconflicted
        chains = [set().union(*({each} | self.chain(each) for each in state.values())) for state in states]
        full = conflicted | (set().union(*chains) - set(chains[0]).intersection(*chains))
        if self.rules.state_resolution == "v2.1":
            full |= self.subgraph(conflicted)
        powerful = self.connected({each for each in full if self.is_power_event(self.events[each])}, full)
        start = {} if self.rules.state_resolution == "v2.1" else unconflicted
        partial = self.iterate(self.by_power(powerful), start)
        state = self.iterate(self.by_mainline(full - powerful, partial.get(POWER_LEVELS)), partial)
        return {**state, **unconflicted}

    def chain(self, event_id: EventID) -> set[EventID]:
        """The auth chain."""
        found: set[EventID] = set()
        pending = [event_id]
        while pending:
            for cited in self.events[pending.pop()].auth_event_ids:
                if cited not in found:
                    found.add(cited)
                    pending.append(cited)
        return found

    def subgraph(self, conflicted: set[EventID]) -> set[EventID]:
        """The conflicted state subgraph."""
        below = set().union(*(self.chain(each) for each in conflicted))
        return conflicted | {each for each in below if self.chain(each) & conflicted}

    def connected(self, event_ids: set[EventID], full: set[EventID]) -> set[EventID]:
        """The events and what they cite within the full conflicted set, step by step."""
        found = set(event_ids)
        while True:
            more = {cited for each in found for cited in self.events[each].auth_event_ids if cited in full} - found
            if not more:
                return found
            found |= more

    @staticmethod
    def is_power_event(pdu: PDU) -> bool:
        """Whether it may take somebody's ability to do something."""
        if pdu.type == "m.room.member":
            return pdu.membership in ("leave", "ban") and pdu.sender != pdu.state_key
        return pdu.type in ("m.room.power_levels", "m.room.join_rules")

    def cited(self, pdu: PDU) -> dict[StateKey, PDU]:
        """What it cites, by key, and the create event where the room ID cites it."""
        cited = {self.events[each].state_pair: self.events[each] for each in pdu.auth_event_ids}
        if not self.rules.create_in_auth_events:
            cited[CREATE] = self.events[EventID("$" + pdu.room_id[1:])]
        return cited

    def power_key(self, event_id: EventID) -> tuple[int, int, EventID]:
        """The smallest goes first."""
        pdu = self.events[event_id]
        cited = self.cited(pdu)
        level = 0
        if CREATE in cited:
            level = PowerLevels.from_state(cited.get(POWER_LEVELS), cited[CREATE]).of_user(pdu.sender)
        return (-level, pdu.origin_server_ts, event_id)

    def by_power(self, event_ids: set[EventID]) -> list[EventID]:
        """Reverse topological power ordering, by looking at every candidate at every step."""
        ordered: list[EventID] = []
        while len(ordered) < len(event_ids):
            left = event_ids - set(ordered)
            ready = [each for each in left if not left & set(self.events[each].auth_event_ids)]
            ordered.append(min(ready, key=self.power_key))
        return ordered

    def levels_before(self, event_id: EventID) -> list[EventID]:
        """The power levels event that it cites, the one that this cites, and so on."""
        levels = self.cited(self.events[event_id]).get(POWER_LEVELS)
        return [] if levels is None else [levels.event_id, *self.levels_before(levels.event_id)]

    def by_mainline(self, event_ids: Iterable[EventID], power_levels: EventID | None) -> list[EventID]:
        """Mainline ordering."""
        mainline = [] if power_levels is None else [power_levels, *self.levels_before(power_levels)]

        def key(event_id: EventID) -> tuple[float, int, EventID]:
            met = [mainline.index(each) for each in self.levels_before(event_id) if each in mainline]
            position = met[0] if met else float("inf")
            return (-position, self.events[event_id].origin_server_ts, event_id)

        return sorted(event_ids, key=key)

    def iterate(self, event_ids: Iterable[EventID], start: Mapping[StateKey, EventID]) -> dict[StateKey, EventID]:
        """Iterative auth checks."""
        state = dict(start)
        for event_id in event_ids:
            pdu = self.events[event_id]
            authorising = {key: each for key, each in self.cited(pdu).items() if each.event_id not in self.rejected}
            wanted = (*auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, self.rules), CREATE)
            authorising.update((key, self.events[state[key]]) for key in wanted if key in state)
            try:
                check(pdu, authorising)
            except AuthRuleViolated:
                continue
            state[pdu.state_pair] = event_id
        return state
