"""Walks over the graph of `auth_events` that state resolution needs (Room Versions, "State resolution", definitions).

A graph maps an event to the events that it cites. An event that the graph lacks cites nothing. Every walk is
iterative, visits each event and each edge at most once, and ends on cycles too.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from federation.protocol.types import EventID

AuthGraph = Mapping[EventID, Sequence[EventID]]


def auth_chain(event_ids: Iterable[EventID], graph: AuthGraph, stop: Collection[EventID] = ()) -> set[EventID]:
    """The events and all that they cite, directly or not; what is in `stop` is neither entered nor part of it.

    Over the reversed graph these are the events and all that cite them.
    """
    chain: set[EventID] = set()
    frontier = [event_id for event_id in event_ids if event_id not in stop]
    while frontier:
        event_id = frontier.pop()
        if event_id in chain:
            continue
        chain.add(event_id)
        frontier.extend(cited for cited in graph.get(event_id, ()) if cited not in chain and cited not in stop)
    return chain


def auth_difference(
    sets: Sequence[Iterable[EventID]], graph: AuthGraph, common: Iterable[EventID] = ()
) -> set[EventID]:
    """The events that are in the auth chain of some of the sets of state events, but not of all.

    A set's chain holds the set itself, as other servers have it: what all sets hold is then never a difference.
    `common` are state events that every set holds besides; what they cite is in every chain. So `sets` need only the
    entries in conflict, and `common` only those of the rest that cite, directly or not, what would be the difference
    without them.
    """
    shared = auth_chain(common, graph)
    counts: dict[EventID, int] = {}
    for event_ids in sets:
        for event_id in auth_chain(event_ids, graph, stop=shared):
            counts[event_id] = counts.get(event_id, 0) + 1
    return {event_id for event_id, count in counts.items() if count < len(sets)}


def conflicted_subgraph(conflicted: Collection[EventID], graph: AuthGraph) -> set[EventID]:
    """The events on the paths from one event in conflict to another, with both ends (version 12)."""
    chain = auth_chain(conflicted, graph)
    cited_by: dict[EventID, list[EventID]] = {}
    for event_id in chain:
        for cited in graph.get(event_id, ()):
            cited_by.setdefault(cited, []).append(event_id)
    # Everything in the chain is reached from a conflicted event; these also reach one.
    return auth_chain((event_id for event_id in conflicted if event_id in chain), cited_by)
