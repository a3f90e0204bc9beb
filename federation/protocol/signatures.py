"""Signing and verifying JSON and events (appendices, "Signing JSON"; Server-Server API, "Signing Events").

Byte for byte what signedjson does, on libsodium directly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nacl.bindings
import nacl.exceptions
from msgspec import Struct
from msgspec.structs import replace

from federation.protocol import canonical_json, event_hashes
from federation.protocol.errors import InvalidEvent, InvalidInput, KeyNotKnown
from federation.protocol.event_hashes import decode_base64, encode_base64
from federation.protocol.identifiers import is_server_key_id, is_user_id, server_name_of, server_of_event_id
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import JsonObject, KeyID, ServerName

_KEY_BYTES = 32
_SIGNATURE_BYTES = 64

POLICY_SERVER_KEY = KeyID("ed25519:policy_server")
"""With it a policy server signs what it recommends: a key of the room, which no server publishes as its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """An Ed25519 key pair with the version that its key ID names."""

    version: str
    seed: bytes = field(repr=False)
    public_key: bytes
    key_id: KeyID
    secret_key: bytes = field(repr=False)
    """Seed and public key, as libsodium wants them."""

    @classmethod
    def from_seed(cls, version: str, seed: bytes) -> "SigningKey":
        """The key pair of a 32 byte seed; InvalidInput for another length or an impossible version."""
        key_id = f"ed25519:{version}"
        if len(seed) != _KEY_BYTES or not is_server_key_id(key_id):
            raise InvalidInput("A signing key has 32 bytes and a version of letters, digits and _")
        public_key, secret_key = nacl.bindings.crypto_sign_seed_keypair(seed)
        return cls(version=version, seed=seed, public_key=public_key, key_id=key_id, secret_key=secret_key)

    def sign(self, message: bytes) -> str:
        """The signature of these bytes in unpadded base64."""
        return encode_base64(nacl.bindings.crypto_sign(message, self.secret_key)[:_SIGNATURE_BYTES])


class VerifyKey(Struct, frozen=True, kw_only=True):
    """Another server's public key with the times it is good for, in milliseconds."""

    public_key: bytes
    valid_until_ts: int | None = None
    """Until when it was published for, at most 7 days from now; None for a key that needs no such limit, as our own."""
    expired_ts: int | None = None
    """Since when it is one of the server's `old_verify_keys`."""

    def is_valid_at(self, ts: int, *, enforces_validity: bool = True) -> bool:
        """Whether what was signed at `ts` may be checked with it; `valid_until_ts` binds from room version 5."""
        if self.expired_ts is not None:
            return ts <= self.expired_ts
        return not enforces_validity or self.valid_until_ts is None or ts <= self.valid_until_ts


KeyRing = Mapping[tuple[ServerName, KeyID], VerifyKey]
"""All the keys of other servers that are at hand."""


def is_signature_of(signature: object, message: bytes, public_key: bytes) -> bool:
    """Whether this is the unpadded base64 of the key's signature of these bytes; False for any other value."""
    raw = decode_base64(signature) if isinstance(signature, str) else None
    if raw is None or len(raw) != _SIGNATURE_BYTES or len(public_key) != _KEY_BYTES:
        return False
    try:
        nacl.bindings.crypto_sign_open(raw + message, public_key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def signed_bytes(json: JsonObject) -> bytes:
    """What a signature of this object covers: all but `signatures` and `unsigned`, in canonical form."""
    return canonical_json.encode({k: v for k, v in json.items() if k not in ("signatures", "unsigned")})


def sign_json(json: JsonObject, server_name: str, signing_key: SigningKey) -> JsonObject:
    """A copy of the object with our signature added to those it has."""
    return with_signature(json, server_name, signing_key.key_id, signing_key.sign(signed_bytes(json)))


def verify_json(json: JsonObject, name: str, key_id: str, public_key: bytes) -> bool:
    """Whether the object is signed by `name` (a server or a user) with this key."""
    signature = _signatures_by(json, name).get(key_id)
    return signature is not None and is_signature_of(signature, signed_bytes(json), public_key)


def sign_event(json: JsonObject, rules: RoomVersionRules, server_name: str, signing_key: SigningKey) -> JsonObject:
    """A copy of the event, whose content hash stands already, with our signature added."""
    signature = signing_key.sign(event_hashes.reference_bytes(redact(json, rules)))
    return with_signature(json, server_name, signing_key.key_id, signature)


def add_signature(pdu: VerifiedPDU, server_name: ServerName, signing_key: SigningKey) -> VerifiedPDU:
    """The event signed by us too, as an inviting or authorising server does; its ID stays."""
    json = sign_event(pdu.json, pdu.rules, server_name, signing_key)
    return replace(pdu, json=json, canonical=canonical_json.encode(json))


def required_signers(pdu: PDU) -> set[ServerName]:
    """The servers that must have signed the event.

    Raises InvalidEvent if `join_authorised_via_users_server`, which names one, is no user ID.
    """
    signers: set[ServerName] = set()
    if not _is_third_party_invite(pdu):
        signers.add(server_name_of(pdu.sender))
    if pdu.rules.event_id_format == "server":
        server_name = server_of_event_id(pdu.event_id)
        if server_name is not None:
            signers.add(server_name)
    if pdu.rules.restricted_joins and pdu.type == "m.room.member":
        authoriser = pdu.content.get("join_authorised_via_users_server")
        if is_user_id(authoriser):
            signers.add(server_name_of(authoriser))
        elif authoriser is not None:
            raise InvalidEvent("join_authorised_via_users_server is not a user ID")
    return signers


def required_keys(pdu: PDU) -> set[tuple[ServerName, KeyID]]:
    """The keys that may be needed to verify the event: what a key ring has to be asked for.

    Raises as `required_signers` does.
    """
    signatures = pdu.json["signatures"]
    return {
        (server_name, key_id)
        for server_name in required_signers(pdu)
        for key_id in signatures.get(server_name, ())
        if key_id.startswith("ed25519:") and is_server_key_id(key_id) and key_id != POLICY_SERVER_KEY
    }


def is_signed_with(pdu: PDU, name: str, key_id: str, public_key: bytes) -> bool:
    """Whether the event is signed by `name` with this one key, required or not: a policy server's."""
    signature = _signatures_by(pdu.json, name).get(key_id)
    message = event_hashes.reference_bytes(redact(pdu.json, pdu.rules))
    return is_signature_of(signature, message, public_key)


def verify(pdu: PDU, keys: KeyRing) -> VerifiedPDU:
    """The event once its signatures hold (checks 2 and 3 on receipt): redacted, if its content hash does not match.

    Keys that `keys` lacks or that were not valid at `origin_server_ts` are passed over; each required server must have
    one left, and all that are left must match. Raises InvalidEvent otherwise.
    """
    redacted = redact(pdu.json, pdu.rules)
    message = event_hashes.reference_bytes(redacted)
    for server_name in required_signers(pdu):
        _check_signed_by(server_name, pdu, message, keys)
    if event_hashes.content_hash_matches(pdu.json):
        return _verified(pdu, pdu.json)
    return _verified(pdu, redacted)


def _check_signed_by(server_name: ServerName, pdu: PDU, message: bytes, keys: KeyRing) -> None:
    checked = 0
    is_known = True
    for key_id, signature in pdu.json["signatures"].get(server_name, {}).items():
        if key_id == POLICY_SERVER_KEY:
            continue
        key = keys.get((server_name, key_id))
        if key is None or not key_id.startswith("ed25519:"):
            is_known = is_known and not is_server_key_id(key_id)
            continue
        if not key.is_valid_at(pdu.origin_server_ts, enforces_validity=pdu.rules.enforces_key_validity):
            continue
        if not is_signature_of(signature, message, key.public_key):
            raise InvalidEvent(f"The signature of {server_name} with {key_id} is wrong")
        checked += 1
    if not checked:
        error = InvalidEvent if is_known else KeyNotKnown
        raise error(f"The event is not signed by {server_name} with a known and valid key")


def _verified(pdu: PDU, json: JsonObject) -> VerifiedPDU:
    content = json["content"]
    return VerifiedPDU(
        event_id=pdu.event_id,
        room_id=pdu.room_id,
        type=pdu.type,
        sender=pdu.sender,
        state_key=pdu.state_key,
        content=content,
        prev_event_ids=pdu.prev_event_ids,
        auth_event_ids=pdu.auth_event_ids,
        depth=pdu.depth,
        origin_server_ts=pdu.origin_server_ts,
        redacts=pdu.redacts if json is pdu.json or pdu.rules.updated_redaction else None,
        rules=pdu.rules,
        json=json,
        canonical=canonical_json.encode(json),
    )


def _is_third_party_invite(pdu: PDU) -> bool:
    return pdu.type == "m.room.member" and pdu.membership == "invite" and "third_party_invite" in pdu.content


def _signatures_by(json: JsonObject, name: str) -> Mapping[str, Any]:
    signatures = json.get("signatures")
    of_name = signatures.get(name) if isinstance(signatures, dict) else None
    return of_name if isinstance(of_name, dict) else {}


def with_signature(json: JsonObject, name: str, key_id: str, signature: str) -> JsonObject:
    """A copy of the object with a signature added to those it has."""
    signatures = {**json.get("signatures", {})}
    signatures[name] = {**signatures.get(name, {}), key_id: signature}
    return {**json, "signatures": signatures}
