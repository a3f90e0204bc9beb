"""What of other servers' answers about keys is taken over (Server-Server API, "Device Management", "End-to-End
Encryption"). Pure.

Only what is about the users and devices that were asked for, and is as good as what clients may upload here: the same
checks hold (`key_checks.py`). A part that is not is left out; an answer of another shape raises InvalidInput.
"""

import logging
from collections.abc import Collection, Mapping

import orjson
from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import is_device_id
from federation.protocol.types import DeviceID, JsonObject, UserID
from homeserver.services import key_checks
from homeserver.services.key_answers import device_information
from storage.cross_signing import CrossSigningKey, Usage
from storage.end_to_end_keys import DeviceKeys

logger = logging.getLogger(__name__)

MAX_NAME = 1000
"""Of a device, in characters."""
MAX_DEVICES = 2000
"""Of a user."""

_SHOWN = (Usage.MASTER, Usage.SELF_SIGNING)


class DeviceList(Struct, frozen=True, kw_only=True):
    """All that a server says of a user's devices."""

    stream_id: int
    devices: list[DeviceKeys]
    keys: list[CrossSigningKey]


def checked_answer(answer: JsonObject, wanted: Mapping[UserID, Collection[str]]) -> JsonObject:
    """An answer to /user/keys/query as a client may see it; no devices in `wanted` stand for all."""
    by_user = key_checks.an_object(answer.get("device_keys"), "device_keys")
    checked: JsonObject = {"device_keys": {}, "master_keys": {}, "self_signing_keys": {}}
    for user_id, device_ids in wanted.items():
        if not isinstance(by_user.get(user_id), dict):
            continue
        devices = checked["device_keys"][user_id] = {}
        for device_id, keys in by_user[user_id].items():
            if device_ids and device_id not in device_ids:
                continue
            device = checked_device(keys, user_id, device_id, _name_in(keys))
            if device is not None:
                devices[device_id] = device_information(device, ())
        for key in checked_keys(user_id, *(_member(answer, f"{usage}_keys", user_id) for usage in _SHOWN)):
            checked[f"{key.usage}_keys"][user_id] = orjson.loads(key.json)
    return checked


def checked_list(answer: JsonObject, user_id: UserID) -> DeviceList:
    """An answer to /user/devices; the first of the devices, if there are too many."""
    stream_id, given = answer.get("stream_id"), answer.get("devices")
    if answer.get("user_id") != user_id:
        raise InvalidInput("The devices are those of another user", "M_BAD_JSON")
    if type(stream_id) is not int or not -(2**63) < stream_id < 2**63 or not isinstance(given, list):
        raise InvalidInput("A list of devices needs a stream_id and devices", "M_BAD_JSON")
    devices: dict[DeviceID, DeviceKeys] = {}
    for each in given[:MAX_DEVICES]:
        if isinstance(each, dict):
            device = checked_device(each.get("keys"), user_id, each.get("device_id"), each.get("device_display_name"))
            if device is not None:
                devices[device.device_id] = device
    keys = checked_keys(user_id, answer.get("master_key"), answer.get("self_signing_key"))
    return DeviceList(stream_id=stream_id, devices=list(devices.values()), keys=keys)


def checked_device(value: object, user_id: UserID, device_id: object, display_name: object) -> DeviceKeys | None:
    """A device with its keys; None for what is none."""
    if not is_device_id(device_id):
        return None
    try:
        json = key_checks.device_keys(value, user_id, device_id)
    except InvalidInput as error:
        logger.info("keys of the device %.255r of %s are malformed: %s", device_id, user_id, error.message)
        return None
    is_name = isinstance(display_name, str) and "\0" not in display_name
    return DeviceKeys(user_id, device_id, json, str(display_name)[:MAX_NAME] if is_name else None)


def checked_keys(user_id: UserID, master: object, self_signing: object) -> list[CrossSigningKey]:
    """A user's cross-signing keys, as far as they are well made; a self-signing key counts if the master key signed
    it."""
    keys: list[CrossSigningKey] = []
    for usage, value in zip(_SHOWN, (master, self_signing), strict=True):
        if value is None:
            continue
        try:
            key = key_checks.cross_signing_key(value, user_id, usage)
            if usage is not Usage.MASTER:
                _check_signed(key, keys)
            keys.append(key)
        except InvalidInput as error:
            logger.info("the %s key of %s is none: %s", usage, user_id, error.message)
    return keys


def _check_signed(key: CrossSigningKey, masters: Collection[CrossSigningKey]) -> None:
    for master in masters:
        signing_key_id = f"ed25519:{master.public_key}"
        if key_checks.is_signed_by(orjson.loads(key.json), key.user_id, signing_key_id, master.public_key):
            return
    raise InvalidInput("The master key did not sign it", "M_INVALID_SIGNATURE")


def checked_claims(answer: JsonObject, wanted: Mapping[UserID, Mapping[DeviceID, str]]) -> JsonObject:
    """An answer to /user/keys/claim, for a client; `wanted` says the algorithm for each device."""
    by_user = key_checks.an_object(answer.get("one_time_keys"), "one_time_keys")
    checked: JsonObject = {}
    for user_id, devices in wanted.items():
        for device_id, algorithm in devices.items():
            keys = _member(by_user, user_id, device_id)
            if not isinstance(keys, dict) or len(keys) != 1:
                continue
            ((name, value),) = keys.items()
            try:
                key = key_checks.claimed_key(name, value, algorithm)
            except InvalidInput as error:
                logger.info("a key of the device %.255r of %s is malformed: %s", device_id, user_id, error.message)
                continue
            checked.setdefault(user_id, {})[device_id] = {name: orjson.Fragment(key.json)}
    return checked


def _name_in(keys: object) -> object:
    unsigned = keys.get("unsigned") if isinstance(keys, dict) else None
    return unsigned.get("device_display_name") if isinstance(unsigned, dict) else None


def _member(json: JsonObject, name: str, member: str) -> object:
    inner = json.get(name)
    return inner.get(member) if isinstance(inner, dict) else None
