"""What is known here of users' keys, as queries answer it ("Key management API")."""

from collections.abc import Collection, Mapping, Sequence

import orjson

from federation.protocol.types import JsonObject, UserID
from storage import cross_signing, end_to_end_keys
from storage.cross_signing import KeySignature, Usage
from storage.database import Tx
from storage.end_to_end_keys import DeviceKeys


async def answer_query(tx: Tx, wanted: Mapping[UserID, Collection[str]], asker: UserID | None) -> JsonObject:
    """What is known here of users' keys, without `failures`; `asker` is None for another server.

    Every user who is asked for is named, those without devices or unknown with an empty object.
    """
    return await answer_about(tx, wanted, asker, await end_to_end_keys.list_device_keys(tx, list(wanted)))


async def answer_about(
    tx: Tx, wanted: Mapping[UserID, Collection[str]], asker: UserID | None, device_keys: Sequence[DeviceKeys]
) -> JsonObject:
    """As `answer_query`, of these devices."""
    users = list(wanted)
    keys = await cross_signing.list_keys(tx, users)
    about: dict[tuple[UserID, str], list[KeySignature]] = {}
    for signature in await cross_signing.list_signatures(tx, users, asker):
        about.setdefault((signature.user_id, signature.key_name), []).append(signature)

    devices: JsonObject = {user_id: {} for user_id in users}
    for device in device_keys:
        if not wanted[device.user_id] or device.device_id in wanted[device.user_id]:
            signed = about.get((device.user_id, device.device_id), [])
            devices[device.user_id][device.device_id] = device_information(device, signed)
    answer: JsonObject = {"device_keys": devices, "master_keys": {}, "self_signing_keys": {}, "user_signing_keys": {}}
    for key in keys:
        if key.usage is not Usage.USER_SIGNING or key.user_id == asker:
            answer[f"{key.usage}_keys"][key.user_id] = with_signatures(
                orjson.loads(key.json), about.get((key.user_id, key.public_key), [])
            )
    return answer


def device_information(device: DeviceKeys, signed: Sequence[KeySignature]) -> JsonObject:
    """A device as a query answers it."""
    json = with_signatures(orjson.loads(device.json), signed)
    json["unsigned"] = {} if device.display_name is None else {"device_display_name": device.display_name}
    return json


def with_signatures(json: JsonObject, signed: Sequence[KeySignature]) -> JsonObject:
    """The key, which is changed, with signatures added."""
    for signature in signed:
        by_user = json.setdefault("signatures", {}).setdefault(signature.signer, {})
        by_user[signature.signing_key_id] = signature.signature
    return json
