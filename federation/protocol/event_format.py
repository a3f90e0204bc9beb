"""JSON to `PDU`: the one door through which events come in (room versions, "Event format"; "Size limits").

The whole event is checked against its room version, once, whichever way it came. What is no event of its version is
dropped. Beyond the letter of the specification the door refuses what could not be kept or would poison a reader: NUL
in types and state keys, negative depths, numbers that fit no 64 bits, memberships of what is no user ID, nesting beyond
`canonical_json.MAX_DEPTH`, the same event cited twice in `auth_events` (which the authorisation rules would reject in
any case).
"""

from typing import Any

import orjson

from federation.protocol import canonical_json, event_hashes, identifiers
from federation.protocol.errors import InvalidEvent, InvalidInput
from federation.protocol.identifiers import fits, is_event_id_of, is_room_id_of, is_server_name, is_user_id
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, JsonObject, RoomID

MAX_EVENT_BYTES = 65536
MAX_PREV_EVENTS = 20
MAX_AUTH_EVENTS = 10
MAX_OLD_REFERENCES = 500
"""What events from before there was a limit may have of either."""
_MAX_INT64 = 2**63 - 1

_ABSENT = object()


def parse(json: JsonObject, rules: RoomVersionRules, *, is_old: bool = False) -> PDU:
    """The event that this JSON, as `canonical_json.loads` read it, is in a room of this version.

    Raises InvalidEvent for anything else. An event that `is_old`, from an answer to /backfill, may refer to more events
    than are allowed now ("GET /backfill"). Hash and signatures are not checked yet: `signatures.verify` does it.
    """
    if type(json) is not dict:
        raise InvalidEvent("An event is an object")
    json = strip_unsigned(json)
    try:
        if rules.strict_canonical_json:
            canonical_json.check_strict(json)
            canonical = canonical_json.encode_checked(json)
        else:
            canonical = canonical_json.encode(json)
        canonical_json.check_depth(json, canonical)
    except InvalidInput as error:
        raise InvalidEvent(error.message) from None
    if len(canonical) > MAX_EVENT_BYTES:
        raise InvalidEvent(f"The event has {len(canonical)} bytes, more than {MAX_EVENT_BYTES}")
    _check_hashes_and_signatures(json)
    sender = json.get("sender")
    if not is_user_id(sender):
        raise InvalidEvent("sender is not a user ID")
    event_type, content, state_key = json.get("type"), json.get("content"), json.get("state_key", _ABSENT)
    if type(event_type) is not str or type(content) is not dict:
        raise InvalidEvent("type must be a string and content an object")
    if state_key is _ABSENT:
        state_key = None
    elif type(state_key) is not str:
        raise InvalidEvent("state_key must be a string")
    check_draft(event_type, state_key, content)
    event_id = _event_id(json, rules)
    most_prev, most_auth = (MAX_OLD_REFERENCES,) * 2 if is_old else (MAX_PREV_EVENTS, MAX_AUTH_EVENTS)
    return PDU(
        event_id=event_id,
        room_id=_room_id(json, event_id, rules),
        type=event_type,
        sender=sender,
        state_key=state_key,
        content=content,
        prev_event_ids=tuple(dict.fromkeys(_references(json, "prev_events", most_prev, rules))),
        auth_event_ids=_auth_event_ids(json, most_auth, rules),
        depth=_integer(json, "depth", 0, max_depth(rules)),
        origin_server_ts=_integer(json, "origin_server_ts", -_MAX_INT64, _MAX_INT64),
        redacts=redacts_of(json, rules),
        rules=rules,
        json=json,
    )


def from_stored(canonical: bytes, event_id: EventID, room_id: RoomID, rules: RoomVersionRules) -> VerifiedPDU:
    """An event of which we stored `canonical` after it was verified: nothing of that is checked again.

    Raises InvalidEvent for what is so malformed that its reader would stumble, whoever put it into the database.
    """
    try:
        json: JsonObject = orjson.loads(canonical)
        prev_events, auth_events = json["prev_events"], json["auth_events"]
        if rules.references_carry_hashes:
            prev_events, auth_events = [pair[0] for pair in prev_events], [pair[0] for pair in auth_events]
        pdu = VerifiedPDU(
            event_id=event_id,
            room_id=room_id,
            type=json["type"],
            sender=json["sender"],
            state_key=json.get("state_key"),
            content=json["content"],
            prev_event_ids=tuple(dict.fromkeys(prev_events)),
            auth_event_ids=tuple(auth_events),
            depth=json["depth"],
            origin_server_ts=json["origin_server_ts"],
            redacts=redacts_of(json, rules),
            rules=rules,
            json=json,
            canonical=canonical,
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidEvent(f"The stored event {event_id} is none: {error}") from None
    _check_stored(pdu)
    return pdu


def _check_stored(pdu: VerifiedPDU) -> None:
    texts = [pdu.type, pdu.sender, *pdu.prev_event_ids, *pdu.auth_event_ids]
    if pdu.state_key is not None:
        texts.append(pdu.state_key)
    numbers = {type(pdu.depth), type(pdu.origin_server_ts)}
    if set(map(type, texts)) != {str} or type(pdu.content) is not dict or numbers != {int}:
        raise InvalidEvent(f"The stored event {pdu.event_id} has members of wrong types")


def strip_unsigned(json: JsonObject) -> JsonObject:
    """The event without `unsigned`, which anybody may have written; the same object if there is none."""
    if "unsigned" not in json:
        return json
    return {key: value for key, value in json.items() if key != "unsigned"}


def check_draft(event_type: str, state_key: str | None, content: JsonObject) -> None:
    """Raise InvalidEvent if no event of any version can have this type, state key and content together."""
    if not fits(event_type) or "\0" in event_type:
        raise InvalidEvent("type has more than 255 bytes, or NUL")
    if state_key is not None and (not fits(state_key) or "\0" in state_key):
        raise InvalidEvent("state_key has more than 255 bytes, or NUL")
    if event_type == "m.room.member" and state_key is not None:
        if not is_user_id(state_key):
            raise InvalidEvent("The state_key of m.room.member is not a user ID")
        if type(content.get("membership", "")) is not str:
            raise InvalidEvent("membership must be a string")


def redacts_of(json: JsonObject, rules: RoomVersionRules) -> EventID | None:
    """What a redaction redacts, from wherever its room version puts it; None where that is no event ID."""
    if json["type"] != "m.room.redaction":
        return None
    redacts = json["content"].get("redacts") if rules.updated_redaction else json.get("redacts")
    return redacts if identifiers.is_event_id(redacts) else None


def max_depth(rules: RoomVersionRules) -> int:
    """The greatest depth; an event above an event of this depth has it too."""
    return canonical_json.MAX_INTEGER if rules.strict_canonical_json else _MAX_INT64


def _check_hashes_and_signatures(json: JsonObject) -> None:
    hashes, signatures = json.get("hashes"), json.get("signatures")
    if type(hashes) is not dict or type(hashes.get("sha256")) is not str:
        raise InvalidEvent("hashes.sha256 must be a string")
    if type(signatures) is not dict:
        raise InvalidEvent("signatures must be an object")
    for server_name, of_server in signatures.items():
        if not is_server_name(server_name) or type(of_server) is not dict:
            raise InvalidEvent("signatures must be objects under server names")
        for signature in of_server.values():
            if type(signature) is not str:
                raise InvalidEvent("A signature must be a string")


def _integer(json: JsonObject, key: str, least: int, greatest: int) -> int:
    value = json.get(key)
    if type(value) is not int or not least <= value <= greatest:
        raise InvalidEvent(f"{key} must be an integer from {least} to {greatest}")
    return value


def _event_id(json: JsonObject, rules: RoomVersionRules) -> EventID:
    if rules.event_id_format != "server":
        return event_hashes.event_id_of(json, rules)
    event_id = json.get("event_id")
    if not is_event_id_of(event_id, rules):
        raise InvalidEvent("event_id is not an event ID of the room version")
    return event_id


def _room_id(json: JsonObject, event_id: EventID, rules: RoomVersionRules) -> RoomID:
    if rules.room_id_is_create_hash and json["type"] == "m.room.create":
        if "room_id" in json or json.get("state_key") != "":
            raise InvalidEvent("A create event of this room version has no room_id and an empty state_key")
        return RoomID("!" + event_id[1:])
    room_id = json.get("room_id")
    if not is_room_id_of(room_id, rules):
        raise InvalidEvent("room_id is not a room ID of the room version")
    return room_id


def _auth_event_ids(json: JsonObject, most: int, rules: RoomVersionRules) -> tuple[EventID, ...]:
    event_ids = tuple(_references(json, "auth_events", most, rules))
    if len(set(event_ids)) != len(event_ids):
        raise InvalidEvent("auth_events has an event twice")
    return event_ids


def _references(json: JsonObject, key: str, most: int, rules: RoomVersionRules) -> list[EventID]:
    references = json.get(key)
    if type(references) is not list or len(references) > most:
        raise InvalidEvent(f"{key} must be an array of at most {most}")
    event_ids: list[Any] = references
    if rules.references_carry_hashes:
        event_ids = [_referred(reference) for reference in references]
    for event_id in event_ids:
        if not is_event_id_of(event_id, rules):
            raise InvalidEvent(f"{key} has what is not an event ID of the room version")
    return event_ids


def _referred(reference: object) -> object:
    if type(reference) is list and len(reference) == 2 and type(reference[1]) is dict:
        return reference[0]
    raise InvalidEvent("In this room version a reference is a pair of an event ID and its hashes")
