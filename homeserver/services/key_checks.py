"""What clients may publish as keys ("Key algorithms", "Device keys", "One-time and fallback keys", "Cross-signing").

Pure: a value from a request's body goes in, what is stored comes out.

Own users are not trusted here: whatever passes will be given to other servers and clients, so it has every required
member in its right type, is canonical JSON without floats, and has a limited size. Raises InvalidInput.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from federation.protocol import canonical_json, signatures
from federation.protocol.errors import InvalidInput
from federation.protocol.event_hashes import decode_base64, encode_base64
from federation.protocol.identifiers import fits, is_key_id, is_user_id
from federation.protocol.types import DeviceID, JsonObject, UserID
from storage.cross_signing import CrossSigningKey, Usage
from storage.end_to_end_keys import Key

MAX_DEVICE_KEYS_BYTES = 32_768
MAX_KEY_BYTES = 4096
MAX_KEYS = 1000
"""One-time keys in one upload."""


def malformed(message: str) -> InvalidInput:
    """The body is JSON, but not what the endpoint's schema asks for."""
    return InvalidInput(message, "M_BAD_JSON")


def missing(name: str) -> InvalidInput:
    """A required member is not there."""
    return InvalidInput(f"{name} is missing", "M_MISSING_PARAM")


def an_object(value: object, name: str) -> JsonObject:
    """The value as a JSON object."""
    if not isinstance(value, dict):
        raise malformed(f"{name} must be an object")
    return value


def a_text(value: object, name: str) -> str:
    """The value as a short text that a column can hold."""
    if not isinstance(value, str) or "\0" in value or not fits(value):
        raise malformed(f"{name} must be a text of at most 255 bytes")
    return value


def required(json: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any JSON value
    """A member that must be there."""
    if name not in json:
        raise missing(name)
    return json[name]


def user_ids(values: Iterable[str]) -> Iterator[UserID]:
    """The values as user IDs."""
    for value in values:
        if not is_user_id(value):
            raise InvalidInput("Not a valid user ID")
        yield value


# --- what /keys/upload takes


def device_keys(value: object, user_id: UserID, device_id: DeviceID) -> bytes:
    """A device's identity keys as canonical JSON, with the signatures of its own user only."""
    json = an_object(value, "device_keys")
    if required(json, "user_id") != user_id:
        raise InvalidInput("device_keys.user_id is not who is logged in")
    if required(json, "device_id") != device_id:
        raise InvalidInput("device_keys.device_id is not the device that is logged in")
    algorithms = required(json, "algorithms")
    if not isinstance(algorithms, list) or not all(isinstance(algorithm, str) for algorithm in algorithms):
        raise malformed("device_keys.algorithms must be a list of texts")
    keys = an_object(required(json, "keys"), "device_keys.keys")
    if not all(is_key_id(key_id) and isinstance(key, str) for key_id, key in keys.items()):
        raise malformed("device_keys.keys must map key IDs to texts")
    signed_by = checked_signatures(required(json, "signatures"), "device_keys")
    kept = {name: member for name, member in json.items() if name != "unsigned"}
    kept["signatures"] = {user_id: signed_by.get(user_id, {})}
    return _encode(kept, "device_keys", MAX_DEVICE_KEYS_BYTES)


def one_time_keys(value: object) -> list[Key]:
    """One-time keys in the order of the request."""
    return [_key(name, key, "one_time_keys") for name, key in _some_keys(value, "one_time_keys")]


def fallback_keys(value: object) -> list[Key]:
    """Fallback keys: one at most for an algorithm."""
    keys = [_key(name, key, "fallback_keys") for name, key in _some_keys(value, "fallback_keys")]
    if len({key.algorithm for key in keys}) != len(keys):
        raise InvalidInput("fallback_keys holds two keys of one algorithm")
    return keys


def claimed_key(name: str, value: object, algorithm: str) -> Key:
    """A key that another server gave out for this algorithm."""
    key = _key(name, value, "one_time_keys")
    if key.algorithm != algorithm:
        raise InvalidInput("A key of another algorithm than was asked for")
    return key


def _some_keys(value: object, name: str) -> Iterable[tuple[str, Any]]:
    keys = an_object(value, name)
    if len(keys) > MAX_KEYS:
        raise InvalidInput(f"{name} holds more than {MAX_KEYS} keys")
    return keys.items()


def _key(name: str, value: object, where: str) -> Key:
    if not is_key_id(name):
        raise malformed(f"{where} must be named by algorithm and key ID")
    algorithm, _, key_id = name.partition(":")
    if isinstance(value, dict):
        if not isinstance(value.get("key"), str):
            raise malformed(f"A key in {where} has no key")
        if not isinstance(value.get("fallback", False), bool):
            raise malformed(f"A key in {where} has a fallback that is no boolean")
        if "signatures" in value or algorithm.startswith("signed_"):
            checked_signatures(value.get("signatures"), f"A key in {where}")
    elif not isinstance(value, str) or algorithm.startswith("signed_"):
        raise malformed(f"A key in {where} has the wrong type")
    return Key(algorithm, key_id, _encode(value, where, MAX_KEY_BYTES))


def checked_signatures(value: object, where: str) -> dict[UserID, dict[str, str]]:
    """A `signatures` member: users, key IDs, signatures, all of their types."""
    signed_by = an_object(value, f"{where}: signatures")
    checked: dict[UserID, dict[str, str]] = {}
    for signer, by_key in signed_by.items():
        if not is_user_id(signer):
            raise malformed(f"{where}: signatures must be by users")
        for key_id, signature in an_object(by_key, f"{where}: signatures of a user").items():
            if not is_key_id(key_id) or not isinstance(signature, str):
                raise malformed(f"{where}: signatures must map key IDs to texts")
        checked[signer] = by_key
    return checked


def _encode(value: object, where: str, max_bytes: int) -> bytes:
    canonical_json.check_strict(value)
    encoded = canonical_json.encode_checked(value)
    if len(encoded) > max_bytes:
        raise InvalidInput(f"{where}: larger than {max_bytes} bytes", "M_TOO_LARGE", 413)
    canonical_json.check_depth(value, encoded)
    return encoded


# --- what /keys/device_signing/upload takes


_USAGES = frozenset(usage.value for usage in Usage)


def cross_signing_key(value: object, user_id: UserID, usage: Usage) -> CrossSigningKey:
    """A cross-signing key for this usage, with the signatures of its own user only; those are not verified yet."""
    name = f"{usage}_key"
    json = an_object(value, name)
    if required(json, "user_id") != user_id:
        raise InvalidInput(f"{name}.user_id is not who is logged in")
    usages = required(json, "usage")
    if not isinstance(usages, list) or not all(isinstance(each, str) for each in usages):
        raise malformed(f"{name}.usage must be a list of texts")
    if usage not in usages or not _USAGES.issuperset(usages):
        raise InvalidInput(f"{name}.usage must name {usage}, and nothing that there is not")
    keys = an_object(required(json, "keys"), f"{name}.keys")
    if len(keys) != 1:
        raise InvalidInput(f"{name}.keys must hold exactly one key")
    ((key_id, public_key),) = keys.items()
    if not isinstance(public_key, str) or key_id != f"ed25519:{public_key}" or not _is_public_key(public_key):
        raise InvalidInput(f"{name}.keys must map ed25519:(public key) to the public key in unpadded base64")
    kept = {member: content for member, content in json.items() if member not in {"unsigned", "signatures"}}
    if "signatures" in json:
        signed_by = checked_signatures(json["signatures"], name)
        if user_id in signed_by:
            kept["signatures"] = {user_id: signed_by[user_id]}
    return CrossSigningKey(user_id, usage, public_key, _encode(kept, name, MAX_DEVICE_KEYS_BYTES))


def _is_public_key(text: str) -> bool:
    raw = decode_base64(text)
    return raw is not None and len(raw) == 32 and encode_base64(raw) == text


def is_signed_by(json: JsonObject, signer: UserID, signing_key_id: str, public_key: object) -> bool:
    """Whether an object carries this user's signature with a key, whose public half is as in `keys` members."""
    raw = decode_base64(public_key) if isinstance(public_key, str) else None
    return raw is not None and signatures.verify_json(json, signer, signing_key_id, raw)


def is_same_key(one: JsonObject, other: JsonObject) -> bool:
    """Whether two copies of a key agree in all that a signature covers."""
    return _signed_part(one) == _signed_part(other)


def _signed_part(json: JsonObject) -> JsonObject:
    return {name: member for name, member in json.items() if name not in {"signatures", "unsigned"}}
