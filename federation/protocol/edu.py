"""The kinds of EDU, from JSON to types (Server-Server API, "EDUs" and the sections of each kind).

A server speaks for its own users only: what names a user of another server is refused, or left out where one EDU names
many. Whether the user is in the room is for the receiver to check.
"""

from collections.abc import Iterator
from typing import Literal, TypeGuard

from msgspec import Struct

from federation.protocol.canonical_json import MAX_INTEGER, check_depth, encode
from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import (
    fits,
    is_compliant_user_id,
    is_device_id,
    is_event_id,
    is_room_id,
    is_user_id,
    server_name_of,
)
from federation.protocol.types import DeviceID, EventID, JsonObject, RoomID, ServerName, UserID

MAX_TEXT = 1000
"""Of what a user says of themselves, in characters: more is cut off."""

MAX_KEYS_BYTES = 65536
"""Of keys that an EDU announces."""

_MAX_INT64 = 2**63 - 1

PresenceState = Literal["online", "unavailable", "offline"]


class Typing(Struct, frozen=True, kw_only=True):
    """`m.typing`: the user started or stopped typing."""

    room_id: RoomID
    user_id: UserID
    typing: bool


class UserPresence(Struct, frozen=True, kw_only=True):
    """One user's part of `m.presence`."""

    user_id: UserID
    presence: PresenceState
    status_msg: str | None
    last_active_ago: int
    """Milliseconds, not negative."""
    currently_active: bool


class Presence(Struct, frozen=True, kw_only=True):
    """`m.presence`."""

    updates: tuple[UserPresence, ...]


class Receipt(Struct, frozen=True, kw_only=True):
    """One user's part of `m.receipt`."""

    room_id: RoomID
    receipt_type: str
    user_id: UserID
    event_id: EventID
    ts: int
    thread_id: str | None


class Receipts(Struct, frozen=True, kw_only=True):
    """`m.receipt`."""

    receipts: tuple[Receipt, ...]


class DeviceListUpdate(Struct, frozen=True, kw_only=True):
    """`m.device_list_update`: one device of a user changed or is gone."""

    user_id: UserID
    device_id: DeviceID
    stream_id: int
    prev_ids: tuple[int, ...]
    deleted: bool
    device_display_name: str | None
    keys: JsonObject | None
    """The device keys: an object that names this user and device, else unchecked."""


class SigningKeyUpdate(Struct, frozen=True, kw_only=True):
    """`m.signing_key_update`: a user's cross-signing keys changed."""

    user_id: UserID
    master_key: JsonObject | None
    """An object that names this user, else unchecked; so is the next."""
    self_signing_key: JsonObject | None


class DirectToDevice(Struct, frozen=True, kw_only=True):
    """`m.direct_to_device`: one message for each of several devices."""

    sender: UserID
    type: str
    message_id: str
    """The same for the same message, however often it comes."""
    messages: dict[UserID, dict[DeviceID, JsonObject]]
    """Contents by user and device; the device `*` is all of the user's."""


EDU = Typing | Presence | Receipts | DeviceListUpdate | SigningKeyUpdate | DirectToDevice


def parse(json: object, origin: ServerName) -> EDU | None:
    """The EDU that this JSON from `origin` is; None for a kind that we do not know.

    Raises InvalidInput for a known kind that is malformed, nested too deeply or speaks for a user of another server.
    """
    if not isinstance(json, dict):
        raise InvalidInput("An EDU is an object", "M_BAD_JSON")
    content = json.get("content")
    if not isinstance(content, dict):
        raise InvalidInput("The content of an EDU is an object", "M_BAD_JSON")
    check_depth(content, encode(content))
    match json.get("edu_type"):
        case "m.typing":
            return _parse_typing(content, origin)
        case "m.presence":
            return Presence(updates=tuple(_presences(content, origin)))
        case "m.receipt":
            return Receipts(receipts=tuple(_receipts(content, origin)))
        case "m.device_list_update":
            return _parse_device_list_update(content, origin)
        case "m.signing_key_update" | "org.matrix.signing_key_update":
            return _parse_signing_key_update(content, origin)
        case "m.direct_to_device":
            return _parse_direct_to_device(content, origin)
        case _:
            return None


def _parse_typing(content: JsonObject, origin: ServerName) -> Typing:
    room_id, typing = content.get("room_id"), content.get("typing")
    if not is_room_id(room_id) or not isinstance(typing, bool):
        raise InvalidInput("m.typing needs a room_id and typing", "M_BAD_JSON")
    return Typing(room_id=room_id, user_id=_user_of(origin, content.get("user_id")), typing=typing)


def _presences(content: JsonObject, origin: ServerName) -> Iterator[UserPresence]:
    push = content.get("push")
    if not isinstance(push, list):
        raise InvalidInput("m.presence needs push", "M_BAD_JSON")
    for update in push:
        if not isinstance(update, dict):
            continue
        user_id, presence = update.get("user_id"), update.get("presence")
        if not _is_of(user_id, origin) or presence not in ("online", "unavailable", "offline"):
            continue
        status_msg = update.get("status_msg")
        yield UserPresence(
            user_id=user_id,
            presence=presence,
            status_msg=status_msg[:MAX_TEXT] if isinstance(status_msg, str) else None,
            last_active_ago=min(max(0, _int64(update.get("last_active_ago")) or 0), MAX_INTEGER),
            currently_active=update.get("currently_active") is True,
        )


def _receipts(content: JsonObject, origin: ServerName) -> Iterator[Receipt]:
    for room_id, by_type in content.items():
        if not is_room_id(room_id) or not isinstance(by_type, dict):
            continue
        for receipt_type, by_user in by_type.items():
            if not _is_name(receipt_type) or not isinstance(by_user, dict):
                continue
            for user_id, receipt in by_user.items():
                if _is_of(user_id, origin) and isinstance(receipt, dict):
                    yield from _receipt(room_id, receipt_type, user_id, receipt)


def _receipt(room_id: RoomID, receipt_type: str, user_id: UserID, receipt: JsonObject) -> Iterator[Receipt]:
    """The one receipt, unless it is malformed."""
    event_ids, data = receipt.get("event_ids"), receipt.get("data")
    if not isinstance(event_ids, list) or len(event_ids) != 1 or not is_event_id(event_ids[0]):
        return
    if not isinstance(data, dict):
        return
    ts, thread_id = data.get("ts"), data.get("thread_id")
    if type(ts) is not int or not 0 <= ts <= MAX_INTEGER:  # what clients cannot read would cost them all receipts
        return
    if not (thread_id is None or thread_id == "main" or is_event_id(thread_id)):
        return
    yield Receipt(
        room_id=room_id,
        receipt_type=receipt_type,
        user_id=user_id,
        event_id=event_ids[0],
        ts=ts,
        thread_id=thread_id,
    )


def _parse_device_list_update(content: JsonObject, origin: ServerName) -> DeviceListUpdate:
    user_id = _user_of(origin, content.get("user_id"))
    device_id, stream_id = content.get("device_id"), _int64(content.get("stream_id"))
    prev_id = content.get("prev_id") or []
    prev_ids = [_int64(item) for item in prev_id] if isinstance(prev_id, list) else [None]
    known_prev_ids = tuple(item for item in prev_ids if item is not None)
    if not is_device_id(device_id) or stream_id is None or len(known_prev_ids) != len(prev_ids):
        raise InvalidInput("m.device_list_update needs a device_id, stream_id and prev_id", "M_BAD_JSON")
    keys, display_name = _key_object(content.get("keys"), user_id), content.get("device_display_name")
    if keys is not None and keys.get("device_id") != device_id:
        raise InvalidInput("The device keys are those of another device", "M_BAD_JSON")
    return DeviceListUpdate(
        user_id=user_id,
        device_id=device_id,
        stream_id=stream_id,
        prev_ids=known_prev_ids,
        deleted=content.get("deleted") is True,
        device_display_name=display_name[:MAX_TEXT] if isinstance(display_name, str) else None,
        keys=keys,
    )


def _parse_signing_key_update(content: JsonObject, origin: ServerName) -> SigningKeyUpdate:
    user_id = _user_of(origin, content.get("user_id"))
    return SigningKeyUpdate(
        user_id=user_id,
        master_key=_key_object(content.get("master_key"), user_id),
        self_signing_key=_key_object(content.get("self_signing_key"), user_id),
    )


def _parse_direct_to_device(content: JsonObject, origin: ServerName) -> DirectToDevice:
    sender = _user_of(origin, content.get("sender"))
    event_type, message_id, by_user = content.get("type"), content.get("message_id"), content.get("messages")
    if not _is_name(event_type) or not _is_name(message_id) or not isinstance(by_user, dict):
        raise InvalidInput("m.direct_to_device needs a type, message_id and messages", "M_BAD_JSON")
    messages: dict[UserID, dict[DeviceID, JsonObject]] = {}
    for user_id, by_device in by_user.items():
        if not is_user_id(user_id) or not isinstance(by_device, dict):
            raise InvalidInput("The messages of m.direct_to_device belong under user IDs", "M_BAD_JSON")
        for device_id, message in by_device.items():
            if not is_device_id(device_id) or not isinstance(message, dict):
                raise InvalidInput("A to-device message is an object under a device ID", "M_BAD_JSON")
        messages[user_id] = by_device
    return DirectToDevice(sender=sender, type=event_type, message_id=message_id, messages=messages)


def _is_of(user_id: object, origin: ServerName) -> TypeGuard[UserID]:
    return is_compliant_user_id(user_id) and server_name_of(user_id) == origin


def _user_of(origin: ServerName, user_id: object) -> UserID:
    if not _is_of(user_id, origin):
        raise InvalidInput("The EDU does not name a user of the server that sent it")
    return user_id


def _key_object(value: object, user_id: UserID) -> JsonObject | None:
    """The keys, which must be the user's own; None where there are none."""
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("user_id") != user_id:
        raise InvalidInput("The keys are not an object of the user", "M_BAD_JSON")
    if len(encode(value)) > MAX_KEYS_BYTES:
        raise InvalidInput(f"The keys have more than {MAX_KEYS_BYTES} bytes", "M_BAD_JSON")
    return value


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and "\0" not in value and fits(value)


def _int64(value: object) -> int | None:
    return value if type(value) is int and -_MAX_INT64 <= value <= _MAX_INT64 else None
