"""State resolution on random rooms: what must hold whatever happened."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.auth_graph import auth_difference, conflicted_subgraph
from federation.protocol.pdu import PDU
from federation.protocol.state_resolution import Conflict, list_keys, list_missing, resolve, split
from federation.protocol.types import EventID, StateKey
from tests.protocol.forked_room import RandomHistory, StateMap, random_histories
from tests.protocol.state_resolution_model import Model
from tests.protocol.whole_states import resolve_full

VERSIONS = ("1", "2", "6", "11", "12")


def resolve_restricted(history: RandomHistory, states: Sequence[StateMap]) -> dict[StateKey, EventID]:
    """As a server does it that has only the conflict in hand, and loads events as it is asked to."""
    room = history.room
    stored = room.events
    graph = {event_id: pdu.auth_event_ids for event_id, pdu in stored.items()}
    unconflicted, conflicted = split(states)
    disputed = set().union(*conflicted.values())
    difference = auth_difference(
        [[state[key] for key in conflicted if key in state] for state in states], graph, unconflicted.values()
    )
    subgraph = conflicted_subgraph(disputed, graph)
    keys = list_keys(disputed | difference | subgraph, stored)
    conflict = Conflict(
        conflicted=conflicted,
        unconflicted={key: event_id for key, event_id in unconflicted.items() if key in keys},
        auth_difference=difference,
        subgraph=subgraph,
        rejected=history.rejected,
    )
    loaded: dict[EventID, PDU] = {}
    while missing := list_missing(room.rules, room.room_id, conflict, loaded):
        loaded.update((event_id, stored[event_id]) for event_id in missing)
    changed = resolve(room.rules, conflict, loaded)
    return {**unconflicted, **{key: event_id for key, event_id in changed.items() if event_id is not None}}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_conflict_alone_resolves_as_whole_states_do(version: str) -> None:
    @given(random_histories(version))
    def check(history: RandomHistory) -> None:
        room = history.room
        expected = resolve_full(room.rules, history.branches, room.events, history.rejected)

        assert resolve_restricted(history, history.branches) == expected

    check()


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_it_resolves_as_the_specification_words_it(version: str) -> None:
    @given(random_histories(version))
    def check(history: RandomHistory) -> None:
        room = history.room
        expected = Model(room.rules, room.events, history.rejected).resolve(history.branches)

        assert resolve_full(room.rules, history.branches, room.events, history.rejected) == expected

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_order_of_states_and_events_does_not_matter(version: str) -> None:
    @given(random_histories(version), st.randoms(use_true_random=False))
    def check(history: RandomHistory, shuffler: random.Random) -> None:
        room, states = history.room, history.branches
        expected = resolve_full(room.rules, states, room.events, history.rejected)
        events = list(room.events.items())
        shuffler.shuffle(events)
        mixed = [dict(shuffler.sample(list(state.items()), len(state))) for state in states]
        shuffler.shuffle(mixed)

        assert resolve_full(room.rules, [*mixed, mixed[0]], dict(events), history.rejected) == expected

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_resolving_again_changes_nothing(version: str) -> None:
    @given(random_histories(version))
    def check(history: RandomHistory) -> None:
        room = history.room
        for state in history.branches:
            assert resolve_full(room.rules, [state, dict(state)], room.events, history.rejected) == state
        resolved = resolve_full(room.rules, history.branches, room.events, history.rejected)
        assert resolve_full(room.rules, [resolved, resolved], room.events, history.rejected) == resolved

    check()


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=50)
@given(data=st.data())
def test_what_all_states_agree_on_stays_and_nothing_is_made_up(version: str, data: st.DataObject) -> None:
    history = data.draw(random_histories(version))
    room = history.room
    resolved = resolve_full(room.rules, history.branches, room.events, history.rejected)
    unconflicted, _ = split(history.branches)

    assert unconflicted.items() <= resolved.items()
    assert all(room.events[event_id].state_pair == key for key, event_id in resolved.items())
