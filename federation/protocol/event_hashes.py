"""Content hash, reference hash and the event IDs made of it (Server-Server API, "Signing Events")."""

import base64
import binascii
import hashlib

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidEvent
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, JsonObject

_NOT_IN_CONTENT_HASH = frozenset({"hashes", "signatures", "unsigned"})
_NOT_IN_REFERENCE_HASH = frozenset({"signatures", "unsigned"})


def content_hash(json: JsonObject) -> str:
    """The unpadded base64 of the SHA-256 that belongs into the event's `hashes`."""
    kept = {key: value for key, value in json.items() if key not in _NOT_IN_CONTENT_HASH}
    return encode_base64(hashlib.sha256(canonical_json.encode(kept)).digest())


def content_hash_matches(json: JsonObject) -> bool:
    """Whether the event's `hashes.sha256` is its content hash; else all that there is may be a redacted copy."""
    hashes = json.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    if not isinstance(claimed, str):
        return False
    computed = content_hash(json)
    return claimed == computed or decode_base64(claimed) == decode_base64(computed)


def reference_bytes(redacted: JsonObject) -> bytes:
    """What is hashed for the reference hash and signed for the signature of a redacted event."""
    kept = {key: value for key, value in redacted.items() if key not in _NOT_IN_REFERENCE_HASH}
    return canonical_json.encode(kept)


def reference_hash(redacted: JsonObject, rules: RoomVersionRules) -> str:
    """The reference hash of a redacted event, in the base64 that this room version uses."""
    return encode_reference_hash(reference_bytes(redacted), rules)


def encode_reference_hash(signed: bytes, rules: RoomVersionRules) -> str:
    """As `reference_hash`, of what `reference_bytes` made."""
    digest = hashlib.sha256(signed).digest()
    if rules.event_id_format == "urlsafe_base64":
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return encode_base64(digest)


def event_id_of(json: JsonObject, rules: RoomVersionRules) -> EventID:
    """The ID of an event: as it says itself in versions 1 and 2, else its reference hash."""
    if rules.event_id_format == "server":
        event_id = json.get("event_id")
        if not isinstance(event_id, str):
            raise InvalidEvent("The event has no event_id")
        return EventID(event_id)
    return EventID("$" + reference_hash(redact(json, rules), rules))


def encode_base64(data: bytes) -> str:
    """Unpadded standard base64."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode()


def decode_base64(text: str) -> bytes | None:
    """The bytes of base64, padded or not, standard or URL-safe; None if it is neither."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:
        return None
