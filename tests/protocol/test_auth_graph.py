"""Walks over the graph of auth events."""

from collections.abc import Iterator, Mapping

from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.auth_graph import AuthGraph, auth_chain, auth_difference, conflicted_subgraph
from federation.protocol.types import EventID

A, B, C, D, E, F = (EventID(f"${name}") for name in "abcdef")
LINE: AuthGraph = {A: (), B: (A,), C: (B,), D: (C,), E: (B,), F: (A,)}


def graphs() -> st.SearchStrategy[dict[EventID, tuple[EventID, ...]]]:
    """Any graph of a few events, with cycles."""
    events = st.sampled_from([EventID(f"${number}") for number in range(9)])
    return st.dictionaries(events, st.lists(events, max_size=4).map(tuple))


def event_sets() -> st.SearchStrategy[set[EventID]]:
    return st.sets(st.sampled_from([EventID(f"${number}") for number in range(9)]), max_size=4)


def reaches(graph: AuthGraph, start: EventID) -> set[EventID]:
    """What is reached from an event, itself included, by closing over edges until nothing is added."""
    found = {start}
    while True:
        more = {cited for each in found for cited in graph.get(each, ())} - found
        if not more:
            return found
        found |= more


def test_a_chain_holds_its_start_and_everything_cited() -> None:
    assert auth_chain([D], LINE) == {A, B, C, D}
    assert auth_chain([], LINE) == set()
    assert auth_chain([E, F], LINE) == {A, B, E, F}
    assert auth_chain([EventID("$unknown")], LINE) == {"$unknown"}


def test_a_walk_stops_where_it_is_told_to() -> None:
    assert auth_chain([D, E], LINE, stop={B}) == {C, D, E}
    assert auth_chain([B], LINE, stop={B}) == set()


def test_over_the_reversed_graph_the_chain_is_what_cites() -> None:
    assert auth_chain([C], {A: (B, F), B: (C, E), C: (D,)}) == {C, D}


def test_the_difference_is_what_some_sets_reach_and_not_all() -> None:
    assert auth_difference([{D}, {E}], LINE) == {C, D, E}
    assert auth_difference([{D}, {D, B}], LINE) == set()
    assert auth_difference([{D}, set()], LINE) == {A, B, C, D}
    assert auth_difference([{D}, {F}], LINE, common=[C]) == {D, F}
    assert auth_difference([], LINE) == set()


def test_the_subgraph_is_the_paths_between_conflicted_events() -> None:
    assert conflicted_subgraph({D, B}, LINE) == {B, C, D}
    assert conflicted_subgraph({D, E}, LINE) == {D, E}
    assert conflicted_subgraph({D, E, A}, LINE) == {A, B, C, D, E}
    assert conflicted_subgraph(set(), LINE) == set()


@given(graphs(), st.lists(event_sets(), max_size=3), event_sets())
def test_the_difference_is_union_less_intersection(
    graph: dict[EventID, tuple[EventID, ...]], sets: list[set[EventID]], common: set[EventID]
) -> None:
    chains = [set().union(*(reaches(graph, each) for each in event_ids | common)) for event_ids in sets]
    expected = set().union(*chains) - (set(chains[0]).intersection(*chains) if chains else set())

    assert auth_difference(sets, graph, common) == expected
    assert auth_difference([event_ids | common for event_ids in sets], graph) == expected


@given(graphs(), event_sets())
def test_the_subgraph_lies_between_conflicted_events(
    graph: dict[EventID, tuple[EventID, ...]], conflicted: set[EventID]
) -> None:
    reached = set().union(*(reaches(graph, each) for each in conflicted))

    assert conflicted_subgraph(conflicted, graph) == {each for each in reached if reaches(graph, each) & conflicted}


class CountingGraph(Mapping[EventID, tuple[EventID, ...]]):
    """Counts how often an event's citations are asked for."""

    def __init__(self, graph: Mapping[EventID, tuple[EventID, ...]]) -> None:
        self.graph = graph
        self.count = 0

    def __getitem__(self, event_id: EventID) -> tuple[EventID, ...]:
        self.count += 1
        return self.graph[event_id]

    def __iter__(self) -> Iterator[EventID]:
        return iter(self.graph)

    def __len__(self) -> int:
        return len(self.graph)


def test_a_walk_looks_at_each_event_once_however_many_paths_lead_there() -> None:
    ids = [EventID(f"${number}") for number in range(2000)]
    graph = CountingGraph({each: tuple(ids[max(0, place - 3) : place]) for place, each in enumerate(ids)})

    assert len(auth_chain(ids[-1:], graph)) == 2000
    assert graph.count == 2000
    graph.count = 0
    assert len(auth_difference([ids[-1:], ids[:1]], graph)) == 1999
    assert graph.count == 2001
    graph.count = 0
    assert len(conflicted_subgraph({ids[0], ids[-1]}, graph)) == 2000
    assert graph.count == 4000
