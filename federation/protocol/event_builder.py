"""`Draft` to signed event: the only place where we make PDUs (Server-Server API, "Adding hashes and signatures")."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from msgspec import Struct, field

from federation.protocol import canonical_json, event_format, event_hashes
from federation.protocol.canonical_json import encode, encode_checked
from federation.protocol.errors import TooLarge
from federation.protocol.identifiers import fits
from federation.protocol.pdu import PDU, Draft, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName


class Placement(Struct, frozen=True, kw_only=True):
    """Where and when in its room's graph an event will stand."""

    prev_events: Sequence[EventID]
    auth_events: Sequence[EventID]
    depth: int
    """One more than the greatest of `prev_events`; what is beyond the version's limit is set to the limit."""
    origin_server_ts: int
    """The time of building; a draft's own goes before it."""
    hashes: Mapping[EventID, str] = field(default_factory=dict)
    """Reference hashes of the events above, for room versions 1 and 2 alone; without one a reference carries none."""


def build(
    draft: Draft,
    rules: RoomVersionRules,
    placement: Placement,
    *,
    server_name: ServerName,
    signing_key: SigningKey,
    event_id_localpart: str = "",
) -> VerifiedPDU:
    """The draft as an event of ours, hashed and signed. `event_id_localpart` is for room versions 1 and 2 alone.

    Raises TooLarge (M_TOO_LARGE) for what exceeds a size limit and InvalidInput (M_BAD_JSON) for content that no
    event of this version can have. The caller promises valid IDs, at most 20 `prev_events` and 10 `auth_events`, and
    not to change the draft's content afterwards, which is the event's.
    """
    _check(draft, rules)
    json = _unsigned_event(draft, rules, placement)
    if draft.names_origin:
        json["origin"] = server_name
    if rules.event_id_format == "server":
        json["event_id"] = f"${event_id_localpart}:{server_name}"
    # Strict versions hold no floats: what orjson writes is canonical.
    to_bytes = encode_checked if rules.strict_canonical_json else encode
    json["hashes"] = {"sha256": event_hashes.encode_base64(sha256(to_bytes(json)).digest())}
    signed = to_bytes(redact(json, rules))
    json["signatures"] = {server_name: {signing_key.key_id: signing_key.sign(signed)}}
    canonical = to_bytes(json)
    canonical_json.check_depth(json, canonical)
    if len(canonical) > event_format.MAX_EVENT_BYTES:
        raise TooLarge(f"The event has {len(canonical)} bytes, more than {event_format.MAX_EVENT_BYTES}")
    if rules.event_id_format == "server":
        event_id = EventID(json["event_id"])
    else:
        event_id = EventID("$" + event_hashes.encode_reference_hash(signed, rules))
    return VerifiedPDU(
        event_id=event_id,
        room_id=draft.room_id if "room_id" in json else RoomID("!" + event_id[1:]),
        type=draft.type,
        sender=draft.sender,
        state_key=draft.state_key,
        content=json["content"],
        prev_event_ids=tuple(placement.prev_events),
        auth_event_ids=tuple(placement.auth_events),
        depth=json["depth"],
        origin_server_ts=json["origin_server_ts"],
        redacts=event_format.redacts_of(json, rules),
        rules=rules,
        json=json,
        canonical=canonical,
    )


def template(draft: Draft, rules: RoomVersionRules, placement: Placement) -> PDU:
    """The draft as an event that another server is to complete: without hash, signatures, and an ID of its own.

    The caller promises what `build` wants.
    """
    json = _unsigned_event(draft, rules, placement)
    return PDU(
        event_id=EventID(""),
        room_id=draft.room_id,
        type=draft.type,
        sender=draft.sender,
        state_key=draft.state_key,
        content=draft.content,
        prev_event_ids=tuple(placement.prev_events),
        auth_event_ids=tuple(placement.auth_events),
        depth=json["depth"],
        origin_server_ts=json["origin_server_ts"],
        redacts=draft.redacts,
        rules=rules,
        json=json,
    )


def _check(draft: Draft, rules: RoomVersionRules) -> None:
    if not fits(draft.type) or (draft.state_key is not None and not fits(draft.state_key)):
        raise TooLarge("The event's type or state key has more than 255 bytes")
    event_format.check_draft(draft.type, draft.state_key, draft.content)
    if rules.strict_canonical_json:
        canonical_json.check_strict(draft.content)
    canonical_json.check_strict(draft.origin_server_ts)


def _unsigned_event(draft: Draft, rules: RoomVersionRules, placement: Placement) -> JsonObject:
    ts = placement.origin_server_ts if draft.origin_server_ts is None else draft.origin_server_ts
    json: JsonObject = {
        "auth_events": _references(placement.auth_events, rules, placement.hashes),
        "content": draft.content,
        "depth": min(placement.depth, event_format.max_depth(rules)),
        "origin_server_ts": ts,
        "prev_events": _references(placement.prev_events, rules, placement.hashes),
        "sender": draft.sender,
        "type": draft.type,
    }
    if draft.type != "m.room.create" or not rules.room_id_is_create_hash:
        json["room_id"] = draft.room_id
    if draft.state_key is not None:
        json["state_key"] = draft.state_key
    if draft.redacts is not None:
        if rules.updated_redaction:
            json["content"] = {**draft.content, "redacts": draft.redacts}
        else:
            json["redacts"] = draft.redacts
    return json


def _references(event_ids: Sequence[EventID], rules: RoomVersionRules, hashes: Mapping[EventID, str]) -> list[object]:
    if rules.references_carry_hashes:
        return [[event_id, {"sha256": hashes[event_id]} if event_id in hashes else {}] for event_id in event_ids]
    return list(event_ids)
