"""Resolution where everything is in memory: what the server loads piece by piece is held to it."""

from collections.abc import Collection, Mapping, Sequence

from federation.protocol.auth_graph import auth_difference, conflicted_subgraph
from federation.protocol.pdu import PDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.state_resolution import Conflict, resolve, split
from federation.protocol.types import EventID, StateIDs, StateKey


def resolve_full(
    rules: RoomVersionRules,
    state_sets: Sequence[StateIDs],
    events: Mapping[EventID, PDU],
    rejected: Collection[EventID] = (),
) -> dict[StateKey, EventID]:
    """The resolution of whole states, with the states' events and their auth chains in memory."""
    unconflicted, conflicted = split(state_sets)
    graph = {event_id: pdu.auth_event_ids for event_id, pdu in events.items()}
    conflict = Conflict(
        conflicted=conflicted,
        unconflicted=unconflicted,
        auth_difference=auth_difference([state.values() for state in state_sets], graph),
        subgraph=conflicted_subgraph(set().union(*conflicted.values()), graph),
        rejected=rejected,
    )
    for key, event_id in resolve(rules, conflict, events).items():
        if event_id is not None:
            unconflicted[key] = event_id
    return unconflicted
