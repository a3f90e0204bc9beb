"""State resolution of room version 1 (Room Version 1, "State resolution")."""

from collections.abc import Collection, Iterable, Mapping
from hashlib import sha1

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.auth_rules import check
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU
from federation.protocol.types import EventID, StateIDs, StateKey

_AUTHORISING_TYPES = ("m.room.power_levels", "m.room.join_rules", "m.room.member")


def resolve(
    conflicted: Mapping[StateKey, Collection[EventID]], unconflicted: StateIDs, events: Mapping[EventID, PDU]
) -> dict[StateKey, EventID]:
    """The resolved state: all of `unconflicted`, and an entry for each conflicted key.

    In this version a key conflicts only where two states have different events for it, not where one has none. Keys
    of one pass do not see each other's outcome, so that their order does not matter.
    """
    resolved = dict(unconflicted)
    disputed: dict[StateKey, list[PDU]] = {}
    for key, event_ids in conflicted.items():
        pdus = sorted((events[event_id] for event_id in event_ids), key=_ascending)
        if len(pdus) == 1:
            resolved[key] = pdus[0].event_id
        else:
            disputed[key] = pdus
    for event_type in _AUTHORISING_TYPES:
        winners = {
            key: _last_of_allowed_succession(pdus, resolved, events)
            for key, pdus in disputed.items()
            if key[0] == event_type
        }
        resolved.update(winners)
    others = {
        key: _deepest_allowed(pdus, resolved, events)
        for key, pdus in disputed.items()
        if key[0] not in _AUTHORISING_TYPES
    }
    resolved.update(others)
    return resolved


def _ascending(pdu: PDU) -> tuple[int, int]:
    """Ascending depth, then descending SHA-1 of the event ID."""
    digest = sha1(pdu.event_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return (pdu.depth, -int.from_bytes(digest, "big"))


def _last_of_allowed_succession(pdus: list[PDU], state: StateIDs, events: Mapping[EventID, PDU]) -> EventID:
    """The first event stands; each next replaces it until one is not allowed."""
    winner = pdus[0]
    for pdu in pdus[1:]:
        if not _is_allowed(pdu, {**_auth_state(pdu, state, events), winner.state_pair: winner}):
            break
        winner = pdu
    return winner.event_id


def _deepest_allowed(pdus: list[PDU], state: StateIDs, events: Mapping[EventID, PDU]) -> EventID:
    """The deepest event that is allowed; when none is, the least deep, as other servers have it."""
    allowed: Iterable[PDU] = (pdu for pdu in reversed(pdus) if _is_allowed(pdu, _auth_state(pdu, state, events)))
    return next(iter(allowed), pdus[0]).event_id


def _auth_state(pdu: PDU, state: StateIDs, events: Mapping[EventID, PDU]) -> dict[StateKey, PDU]:
    keys = auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules)
    return {key: events[state[key]] for key in keys if key in state}


def _is_allowed(pdu: PDU, state: Mapping[StateKey, PDU]) -> bool:
    try:
        check(pdu, state)
    except AuthRuleViolated:
        return False
    return True
