"""Rooms whose history forks, and random ones, for the tests of state resolution."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st

from federation.protocol.pdu import PDU
from federation.protocol.types import EventID, StateKey
from tests.protocol.room_builder import ALICE, BOB, CAROL, EVE, ARoom, broken_rule
from tests.protocol.whole_states import resolve_full

State = dict[StateKey, PDU]
StateMap = dict[StateKey, EventID]


class ForkedRoom(ARoom):
    """A room that can go back to an earlier state; Alice has 100, Bob 50, Carol and Eve 0, all joined."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.levels(self.users())
        self.join_rule("public")
        for user_id in (BOB, CAROL, EVE):
            self.member(user_id, "join")

    def users(self, **levels: int) -> dict[str, int]:
        """Alice's 100, Bob's 50 and others by name; version 12 does not list the creator."""
        found = {ALICE: 100, BOB: 50, **{f"@{name}:{name}.example": level for name, level in levels.items()}}
        if self.rules.creators_have_infinite_power:
            del found[ALICE]
        return found

    def levels(self, users: Mapping[str, int], sender: str = ALICE) -> PDU:
        """Set the levels of users; joining rules are for level 50."""
        return self.power(sender, users=dict(users), events={"m.room.power_levels": 50})

    def fork(self) -> State:
        """The state to come back to."""
        return dict(self.state)

    def back(self, state: State) -> dict[StateKey, EventID]:
        """Go on from an earlier state; the state left behind, as event IDs."""
        left = self.state_ids
        self.state = dict(state)
        return left

    def resolve(self, *states: Mapping[StateKey, EventID]) -> dict[StateKey, EventID]:
        """The resolution of whole states."""
        return resolve_full(self.rules, states, self.events)


Kind = Literal["fork", "merge", "topic", "join", "leave", "kick", "ban", "invite", "power", "join_rule"]


@dataclass
class RandomHistory:
    """A room that grew by random steps: only events that were authorised on their branch are in a state."""

    room: ForkedRoom
    branches: list[StateMap]
    rejected: set[EventID] = field(default_factory=set)


USERS = (ALICE, BOB, CAROL, EVE)


def _content(room: ForkedRoom, kind: str, actor: str, target: str, value: int) -> tuple[str, dict[str, Any], str]:
    if kind == "topic":
        return "m.room.topic", {"topic": str(value)}, ""
    if kind == "join_rule":
        return "m.room.join_rules", {"join_rule": ("public", "invite")[value % 2]}, ""
    if kind == "power":
        levels = room.users()
        levels.update({target: value * 25} if target in levels or target != ALICE else {})
        if value == 4:
            levels.pop(BOB)
        return "m.room.power_levels", {"users": levels, "events": {"m.room.power_levels": 50}}, ""
    membership = {"kick": "leave"}.get(kind, kind)
    return "m.room.member", {"membership": membership}, actor if kind in ("join", "leave") else target


def _act(history: RandomHistory, branch: int, step: tuple[Kind, int, int, int, int]) -> None:
    kind, actor, target, value, ts = step
    room = history.room
    room.state = {key: room.events[event_id] for key, event_id in history.branches[branch].items()}
    event_type, content, state_key = _content(room, kind, USERS[actor], USERS[target], value)
    pdu = room.event(event_type, USERS[actor], content, state_key=state_key, ts=ts, depth=len(room.events) - ts % 4)
    room.events[pdu.event_id] = pdu
    if broken_rule(room, pdu) is None:
        history.branches[branch][pdu.state_pair] = pdu.event_id
    else:
        history.rejected.add(pdu.event_id)


@st.composite
def random_histories(draw: st.DrawFn, version: str) -> RandomHistory:
    """Two to four branches of one room, forked and merged at random."""
    room = ForkedRoom(version)
    history = RandomHistory(room, [room.state_ids, room.state_ids])
    kinds: tuple[Kind, ...] = (
        *("fork", "merge", "topic", "topic", "join", "leave", "kick", "ban", "invite", "power", "power", "join_rule"),
    )
    numbers = st.integers(0, 3)
    steps = st.tuples(st.sampled_from(kinds), numbers, numbers, st.integers(0, 4), st.integers(0, 20))
    for step in draw(st.lists(steps, max_size=25)):
        branch = draw(st.integers(0, len(history.branches) - 1))
        if step[0] == "fork":
            if len(history.branches) < 4:
                history.branches.append(dict(history.branches[branch]))
        elif step[0] == "merge":
            other = history.branches[step[1] % len(history.branches)]
            states = [history.branches[branch], other]
            history.branches[branch] = resolve_full(room.rules, states, room.events, history.rejected)
        else:
            _act(history, branch, step)
    return history
