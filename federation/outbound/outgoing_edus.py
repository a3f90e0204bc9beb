"""EDUs about our users, as other servers get them (Server-Server API, "EDUs" and the sections of each kind)."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from federation.protocol.types import JsonObject, RoomID, UserID
from storage import device_lists, rooms, send_to_device
from storage.database import Tx
from storage.outbox import OutgoingDeviceChange, OutgoingReceipt

KeysOf = Callable[[Tx, Collection[UserID]], Awaitable[JsonObject]]
"""What another server may know of users' keys, in the form of `/user/keys/query`."""

MAX_RECEIPT_EDUS = 10


def typing(room_id: RoomID, user_id: UserID, *, is_typing: bool) -> JsonObject:
    """`m.typing`."""
    return _edu("m.typing", {"room_id": room_id, "user_id": user_id, "typing": is_typing})


def presence(updates: Sequence[JsonObject]) -> JsonObject:
    """`m.presence`; each update names its user."""
    return _edu("m.presence", {"push": list(updates)})


async def receipts(tx: Tx, moved: Iterable[OutgoingReceipt]) -> list[JsonObject]:
    """`m.receipt`: an EDU has one receipt for each user and room, so those of several threads need several."""
    moved = list(moved)
    known = await rooms.get_many(tx, {receipt.room for receipt in moved})
    contents: list[JsonObject] = []
    for receipt in moved:
        room_id = known[receipt.room].room_id
        data: JsonObject = {"ts": receipt.ts}
        if receipt.thread:
            data["thread_id"] = receipt.thread
        for content in contents:
            if receipt.user_id not in content.get(room_id, {}).get("m.read", {}):
                break
        else:
            content = {}
            contents.append(content)
        by_user = content.setdefault(room_id, {}).setdefault("m.read", {})
        by_user[receipt.user_id] = {"event_ids": [receipt.event_id], "data": data}
    return [_edu("m.receipt", content) for content in contents]


async def device_changes(
    tx: Tx, changes: Sequence[OutgoingDeviceChange], keys_of: KeysOf, *, with_names: bool
) -> list[JsonObject]:
    """`m.device_list_update` and `m.signing_key_update`, as the keys are now.

    A change of one device says what came before it. One of several names as its predecessor what never was, so that
    its receiver asks for the whole list.
    """
    users = {change.user_id for change in changes}
    keys = await keys_of(tx, users)
    there = await send_to_device.devices_of(tx, users)
    before = await device_lists.previous_stream_ids(tx, [(change.user_id, change.position) for change in changes])
    edus = []
    for change in changes:
        if not change.device_ids:
            edus.append(_signing_key_update(change.user_id, keys))
            continue
        previous = before.get((change.user_id, change.position))
        prev_id = [] if previous is None else [previous]
        if len(change.device_ids) > 1:
            prev_id = [change.position - (2 if previous == change.position - 1 else 1)]
        content: JsonObject = {
            "user_id": change.user_id,
            "device_id": change.device_ids[0],
            "stream_id": change.position,
            "prev_id": prev_id,
        }
        if change.device_ids[0] in there.get(change.user_id, {}):
            content |= _device(keys, change.user_id, change.device_ids[0], with_name=with_names)
        else:
            content["deleted"] = True
        edus.append(_edu("m.device_list_update", content))
    return edus


def _device(keys: Mapping[str, JsonObject], user_id: UserID, device_id: str, *, with_name: bool) -> JsonObject:
    """What is known of a device, which may have no keys yet."""
    device: JsonObject = dict(keys["device_keys"].get(user_id, {}).get(device_id, {}))
    if not device:
        return {}
    name = device.pop("unsigned", {}).get("device_display_name")
    content: JsonObject = {"keys": device}
    if with_name and name is not None:
        content["device_display_name"] = name
    return content


def _signing_key_update(user_id: UserID, keys: Mapping[str, JsonObject]) -> JsonObject:
    content: JsonObject = {"user_id": user_id}
    for name, member in (("master_keys", "master_key"), ("self_signing_keys", "self_signing_key")):
        if user_id in keys[name]:
            content[member] = keys[name][user_id]
    return _edu("m.signing_key_update", content)


def _edu(edu_type: str, content: JsonObject) -> JsonObject:
    return {"edu_type": edu_type, "content": content}
