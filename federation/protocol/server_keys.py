"""A server's published keys: read, checked, made (Server-Server API, "Publishing Keys")."""

from collections.abc import Iterator, Mapping
from typing import Any

import nacl.bindings
from msgspec import Struct

from federation.protocol import signatures
from federation.protocol.canonical_json import MAX_INTEGER
from federation.protocol.errors import InvalidInput
from federation.protocol.event_hashes import decode_base64, encode_base64
from federation.protocol.identifiers import is_server_key_id
from federation.protocol.signatures import SigningKey, VerifyKey
from federation.protocol.types import JsonObject, KeyID, ServerName

MAX_KEYS = 200
"""A server that names more of them, old ones included, is refused: what it names is stored."""

MAX_VALIDITY_MS = 7 * 24 * 3600 * 1000
"""No answer is good for longer than this, whatever it says."""

_KEY_BYTES = 32


class ServerKeys(Struct, frozen=True, kw_only=True):
    """What a server says of its keys, signed by one of them."""

    server_name: ServerName
    keys: Mapping[KeyID, VerifyKey]
    """The present ones and the old ones, each with the times it is good for."""
    valid_until_ts: int
    """At most `MAX_VALIDITY_MS` from when it was read."""
    read_ts: int
    json: JsonObject
    """As the server signed it, other signatures left out."""


class OldKey(Struct, frozen=True, kw_only=True):
    """A key that this server signs nothing with any more."""

    key_id: KeyID
    public_key: bytes
    expired_ts: int


def parse(json: JsonObject, server_name: ServerName, now_ts: int) -> ServerKeys:
    """The keys in an answer that is of this server and signed with at least one key it lists as present.

    Keys of other algorithms, and what is no key, are passed over. Raises InvalidInput for an answer of another server,
    without a signature that holds, with one that does not hold, or with too many keys.
    """
    if json.get("server_name") != server_name:
        raise InvalidInput(f"The keys are not those of {server_name}")
    valid_until_ts = json.get("valid_until_ts")
    if type(valid_until_ts) is not int or not 0 <= valid_until_ts <= MAX_INTEGER:
        raise InvalidInput("valid_until_ts must be an integer")
    valid_until_ts = min(valid_until_ts, now_ts + MAX_VALIDITY_MS)
    present = {
        key_id: VerifyKey(public_key=public_key, valid_until_ts=valid_until_ts)
        for key_id, public_key, _ in _keys_in(json.get("verify_keys"))
    }
    old = {
        key_id: VerifyKey(public_key=public_key, valid_until_ts=valid_until_ts, expired_ts=min(expired_ts, now_ts))
        for key_id, public_key, entry in _keys_in(json.get("old_verify_keys", {}))
        if type(expired_ts := entry.get("expired_ts")) is int and 0 <= expired_ts <= MAX_INTEGER
    }
    own_signatures = _check_signed_by_itself(json, server_name, present)
    return ServerKeys(
        server_name=server_name,
        keys=present | old,
        valid_until_ts=valid_until_ts,
        read_ts=now_ts,
        json={**json, "signatures": {server_name: own_signatures}},
    )


def make(
    server_name: ServerName, signing_key: SigningKey, old_keys: Mapping[KeyID, OldKey], valid_until_ts: int
) -> JsonObject:
    """What this server publishes, signed."""
    json: JsonObject = {
        "server_name": server_name,
        "verify_keys": {signing_key.key_id: {"key": encode_base64(signing_key.public_key)}},
        "old_verify_keys": {
            old.key_id: {"key": encode_base64(old.public_key), "expired_ts": old.expired_ts}
            for old in old_keys.values()
        },
        "valid_until_ts": valid_until_ts,
    }
    return signatures.sign_json(json, server_name, signing_key)


def _keys_in(entries: object) -> Iterator[tuple[KeyID, bytes, Mapping[str, Any]]]:
    if not isinstance(entries, dict) or len(entries) > MAX_KEYS:
        raise InvalidInput(f"Keys must be an object of at most {MAX_KEYS}")
    for key_id, entry in entries.items():
        if not is_server_key_id(key_id) or not key_id.startswith("ed25519:") or not isinstance(entry, dict):
            continue
        encoded = entry.get("key")
        public_key = decode_base64(encoded) if isinstance(encoded, str) else None
        if public_key is not None and is_public_key(public_key):
            yield key_id, public_key, entry


def is_public_key(data: bytes) -> bool:
    """Whether these bytes are a point that an Ed25519 key can be: not one of those that let any signature hold."""
    return len(data) == _KEY_BYTES and nacl.bindings.crypto_core_ed25519_is_valid_point(data)


def _check_signed_by_itself(
    json: JsonObject, server_name: ServerName, present: Mapping[KeyID, VerifyKey]
) -> dict[str, str]:
    """The signatures by the keys listed as present."""
    all_signatures = json.get("signatures")
    by_server = all_signatures.get(server_name) if isinstance(all_signatures, dict) else None
    if not isinstance(by_server, dict):
        raise InvalidInput(f"The keys are not signed by {server_name}")
    message = signatures.signed_bytes(json)
    checked: dict[str, str] = {}
    for key_id, key in present.items():
        signature = by_server.get(key_id)
        if signature is None:
            continue
        if not signatures.is_signature_of(signature, message, key.public_key):
            raise InvalidInput(f"The signature of {server_name} with {key_id} is wrong")
        checked[key_id] = signature
    if not checked:
        raise InvalidInput(f"The keys of {server_name} are not signed with one of themselves")
    return checked
