"""Authorisation of events (Room Versions 1 to 12, "Authorisation rules"). Pure: the caller loads the state.

The rules stand in the specification's order. Where a version inserted or removed a rule, the numbers in errors are
those of the event's own version.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from federation.protocol.auth_events import CREATE, POWER_LEVELS, auth_keys_for
from federation.protocol.auth_rules_membership import check_membership
from federation.protocol.auth_rules_power_levels import check_power_levels
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.identifiers import is_user_id, server_name_of, server_of_event_id, server_of_room_id
from federation.protocol.pdu import PDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersionRules
from federation.protocol.types import EventID, StateKey


class _Numbers(NamedTuple):
    """The number of each rule that does not have the same one everywhere."""

    auth_events: int
    federate: int
    member: int


_UNTIL_5 = _Numbers(auth_events=2, federate=3, member=5)
_FROM_6 = _Numbers(auth_events=2, federate=3, member=4)
_FROM_12 = _Numbers(auth_events=3, federate=4, member=5)


def _numbers(rules: RoomVersionRules) -> _Numbers:
    if rules.room_id_is_create_hash:
        return _FROM_12
    return _UNTIL_5 if rules.special_cases_aliases else _FROM_6


def check(pdu: PDU, state: Mapping[StateKey, PDU]) -> None:
    """Raise AuthRuleViolated unless `state` allows `pdu`, whichever server made it.

    `state` must answer for the keys of `auth_events.auth_keys_for` and for the create event, in all versions; it is
    asked for nothing else. The rules on `auth_events` themselves are `check_auth_events`.
    """
    if pdu.type == "m.room.create":
        _check_create(pdu)
        return
    rules = pdu.rules
    numbers = _numbers(rules)
    create = _get_create(pdu, state)
    if create.content.get("m.federate") is False and server_name_of(pdu.sender) != server_name_of(create.sender):
        raise AuthRuleViolated(f"{numbers.federate}", "The room is not open to other servers")
    if rules.special_cases_aliases and pdu.type == "m.room.aliases":
        _check_aliases(pdu)
        return
    levels = PowerLevels.from_state(state.get(POWER_LEVELS), create)
    if pdu.type == "m.room.member":
        check_membership(pdu, state, create, levels, numbers.member)
        return
    _check_sender(pdu, state, levels, numbers.member)
    if pdu.type == "m.room.power_levels":
        check_power_levels(pdu, state.get(POWER_LEVELS), create, levels, numbers.member + 5)
    elif rules.redactions_are_authorised and pdu.type == "m.room.redaction":
        _check_redaction(pdu, levels)


def check_auth_events(pdu: PDU, auth_events: Mapping[EventID, PDU], rejected: Collection[EventID]) -> None:
    """Raise AuthRuleViolated unless the events that `pdu` cites may authorise it (rule 2, in version 12 rule 3).

    `auth_events` must hold every event that `pdu` cites; an event that is not there fails the check. `rejected` are
    those among them that were rejected.
    """
    if pdu.type == "m.room.create":
        return  # Rule 1 decides alone.
    rule = _numbers(pdu.rules).auth_events
    wanted = frozenset(auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules))
    seen: set[StateKey] = set()
    for event_id in pdu.auth_event_ids:
        auth_event = auth_events.get(event_id)
        if auth_event is None:
            raise AuthRuleViolated(f"{rule}", f"Auth event {event_id} is not known")
        key = (auth_event.type, auth_event.state_key or "")
        if key in seen:
            raise AuthRuleViolated(f"{rule}.1", f"There are several auth events for {key}")
        if auth_event.state_key is None or key not in wanted:
            raise AuthRuleViolated(f"{rule}.2", f"Auth event {event_id} does not authorise such an event")
        if event_id in rejected:
            raise AuthRuleViolated(f"{rule}.3", f"Auth event {event_id} was rejected")
        if auth_event.room_id != pdu.room_id:
            raise AuthRuleViolated(f"{rule}.5", f"Auth event {event_id} belongs to another room")
        seen.add(key)
    if pdu.rules.create_in_auth_events and CREATE not in seen:
        raise AuthRuleViolated(f"{rule}.4", "The create event is not among the auth events")


def _check_create(pdu: PDU) -> None:
    """Rule 1."""
    rules, content = pdu.rules, pdu.content
    if pdu.prev_event_ids:
        raise AuthRuleViolated("1.1", "A create event has no previous events")
    if rules.room_id_is_create_hash:
        if "room_id" in pdu.json:
            raise AuthRuleViolated("1.2", "A create event has no room ID")
    elif server_of_room_id(pdu.room_id) != server_name_of(pdu.sender):
        raise AuthRuleViolated("1.2", "The room ID is not of the sender's server")
    room_version = content.get("room_version", "1")
    if not isinstance(room_version, str) or room_version not in ROOM_VERSIONS:
        raise AuthRuleViolated("1.3", "The room version is not known")
    if not rules.implicit_creator and "creator" not in content:
        raise AuthRuleViolated("1.4", "A create event names the creator")
    if rules.creators_have_infinite_power and "additional_creators" in content:
        additional = content["additional_creators"]
        if not isinstance(additional, list) or not all(is_user_id(user_id) for user_id in additional):
            raise AuthRuleViolated("1.4", "additional_creators is not a list of user IDs")


def _get_create(pdu: PDU, state: Mapping[StateKey, PDU]) -> PDU:
    """The create event of the event's own room: rule 2 of version 12, and what rules 2.4 and 2.5 ensure before."""
    create = state.get(CREATE)
    if create is None:
        raise AuthRuleViolated("2" if pdu.rules.room_id_is_create_hash else "2.4", "The room has no create event")
    if create.room_id != pdu.room_id:
        raise AuthRuleViolated("2" if pdu.rules.room_id_is_create_hash else "2.5", "The create event is another room's")
    return create


def _check_aliases(pdu: PDU) -> None:
    """Rule 4 until version 5."""
    if pdu.state_key is None:
        raise AuthRuleViolated("4.1", "An aliases event is a state event")
    if pdu.state_key != server_name_of(pdu.sender):
        raise AuthRuleViolated("4.2", "The aliases are another server's")


def _check_sender(pdu: PDU, state: Mapping[StateKey, PDU], levels: PowerLevels, member_rule: int) -> None:
    """The four rules after `m.room.member`, on what the sender may send at all."""
    sender = state.get(("m.room.member", pdu.sender))
    if sender is None or sender.content.get("membership") != "join":
        raise AuthRuleViolated(f"{member_rule + 1}", f"{pdu.sender} is not in the room")
    level = levels.of_user(pdu.sender)
    if pdu.type == "m.room.third_party_invite":
        if level < levels.invite:
            raise AuthRuleViolated(f"{member_rule + 2}.1", f"{pdu.sender} may not invite")
        return
    state_key = pdu.state_key
    if level < levels.to_send(pdu.type, is_state=state_key is not None):
        raise AuthRuleViolated(f"{member_rule + 3}", f"{pdu.sender} may not send {pdu.type}")
    if state_key is not None and state_key.startswith("@") and state_key != pdu.sender:
        raise AuthRuleViolated(f"{member_rule + 4}", "The state key is another user's")


def _check_redaction(pdu: PDU, levels: PowerLevels) -> None:
    """Rule 11 of versions 1 and 2."""
    if levels.of_user(pdu.sender) >= levels.redact:
        return
    if pdu.redacts is None or server_of_event_id(pdu.redacts) != server_of_event_id(pdu.event_id):
        raise AuthRuleViolated("11.3", f"{pdu.sender} may not redact another server's event")
