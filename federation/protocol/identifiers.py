"""The grammar of identifiers (appendices, "Identifier Grammar"): each check is linear in the identifier's length.

`is_` answers for any value whatever, `check_` and `parse_` raise InvalidInput. Names of servers, users and rooms are
compared as they stand, case included.
"""

import ipaddress
import re
from functools import lru_cache
from typing import TypeGuard

from federation.protocol.errors import InvalidInput
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import DeviceID, EventID, KeyID, RoomAlias, RoomID, ServerName, UserID

MAX_BYTES = 255
"""Of every identifier, sigil and domain included."""

_SERVER_NAME = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\]|(?P<ipv4>[0-9]{1,3}(?:\.[0-9]{1,3}){3})|[0-9A-Za-z.-]{1,255})"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_LOCALPART = re.compile(r"[a-z0-9._=/+-]+")
_MEDIA_ID = re.compile(r"[0-9A-Za-z_-]{1,255}")
_SERVER_KEY_ID = re.compile(r"[a-z0-9]{1,32}:[0-9A-Za-z_]{1,200}")
_KEY_ALGORITHM = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_HASH = re.compile(r"[0-9A-Za-z+/]{43}")
_URLSAFE_HASH = re.compile(r"[0-9A-Za-z_-]{43}")


@lru_cache(maxsize=8192)
def _is_server_name(text: str) -> bool:
    match = _SERVER_NAME.fullmatch(text) if len(text) <= MAX_BYTES else None
    if match is None:
        return False
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return False
    if match["ipv4"] is not None and max(map(int, match["ipv4"].split("."))) > 255:
        return False
    return match["port"] is None or int(match["port"]) <= 65535


def is_server_name(value: object) -> TypeGuard[ServerName]:
    """Whether this is a host name, IPv4 address or bracketed IPv6 address, with or without a port."""
    return isinstance(value, str) and _is_server_name(value)


def check_server_name(value: object) -> ServerName:
    """The value as a server name."""
    if not is_server_name(value):
        raise InvalidInput("Not a valid server name")
    return value


def split_server_name(name: ServerName) -> tuple[str, int | None]:
    """The host, an IPv6 address without its brackets, and the port if there is one."""
    match = _SERVER_NAME.fullmatch(name)
    if match is None:
        raise InvalidInput("Not a valid server name")
    host = match["ipv6"] or (name if match["port"] is None else name[: match.start("port") - 1])
    return host, None if match["port"] is None else int(match["port"])


def is_user_id(value: object) -> TypeGuard[UserID]:
    """Whether this is a user ID, of the historical grammar too: all that may stand in events."""
    return isinstance(value, str) and value[:1] == "@" and _has_domain(value)


def is_compliant_user_id(value: object) -> TypeGuard[UserID]:
    """Whether this user ID may be spoken of outside events: its localpart is printable ASCII and not empty."""
    if not is_user_id(value):
        return False
    localpart = value.partition(":")[0][1:]
    return localpart.isascii() and localpart.isprintable() and " " not in localpart and localpart != ""


def check_user_id(value: object) -> UserID:
    """The value as a user ID, of the historical grammar too."""
    if not is_user_id(value):
        raise InvalidInput("Not a valid user ID")
    return value


def server_name_of(user_id: UserID) -> ServerName:
    """The server of a user ID that was checked before."""
    return ServerName(user_id.partition(":")[2])


def check_localpart(localpart: object, server_name: ServerName) -> UserID:
    """The user ID that a new account with this localpart would have; raises M_INVALID_USERNAME."""
    if not isinstance(localpart, str) or _LOCALPART.fullmatch(localpart) is None:
        raise InvalidInput("A user name has only a-z, 0-9 and ._=-/+", "M_INVALID_USERNAME")
    user_id = f"@{localpart}:{server_name}"
    if len(user_id) > MAX_BYTES:
        raise InvalidInput("The user name is too long", "M_INVALID_USERNAME")
    return UserID(user_id)


def is_room_id(value: object) -> TypeGuard[RoomID]:
    """Whether this is the ID of a room of any version."""
    return isinstance(value, str) and value[:1] == "!" and (_has_name_and_domain(value) or _is_create_hash(value))


def check_room_id(value: object) -> RoomID:
    """The value as the ID of a room of any version."""
    if not is_room_id(value):
        raise InvalidInput("Not a valid room ID")
    return value


def is_room_id_of(value: object, rules: RoomVersionRules) -> TypeGuard[RoomID]:
    """Whether this is a room ID as this room version has them."""
    if not isinstance(value, str) or value[:1] != "!":
        return False
    return _is_create_hash(value) if rules.room_id_is_create_hash else _has_name_and_domain(value)


def server_of_room_id(room_id: RoomID) -> ServerName | None:
    """The server that made up this room ID; None where it has no domain."""
    server_name = room_id.partition(":")[2]
    return ServerName(server_name) if server_name else None


def is_room_alias(value: object) -> TypeGuard[RoomAlias]:
    """Whether this is a room alias."""
    return isinstance(value, str) and value[:1] == "#" and _has_name_and_domain(value)


def check_room_alias(value: object) -> RoomAlias:
    """The value as a room alias."""
    if not is_room_alias(value):
        raise InvalidInput("Not a valid room alias")
    return value


def server_of_alias(alias: RoomAlias) -> ServerName:
    """The server that a room alias, checked before, belongs to."""
    return ServerName(alias.partition(":")[2])


def is_event_id(value: object) -> TypeGuard[EventID]:
    """Whether this is the ID of an event in a room of any version."""
    return (
        isinstance(value, str)
        and value[:1] == "$"
        and (
            _URLSAFE_HASH.fullmatch(value, 1) is not None
            or _HASH.fullmatch(value, 1) is not None
            or _has_name_and_domain(value)
        )
    )


def is_event_id_of(value: object, rules: RoomVersionRules) -> TypeGuard[EventID]:
    """Whether this is an event ID as this room version has them."""
    if not isinstance(value, str) or value[:1] != "$":
        return False
    if rules.event_id_format == "urlsafe_base64":
        return _URLSAFE_HASH.fullmatch(value, 1) is not None
    if rules.event_id_format == "base64":
        return _HASH.fullmatch(value, 1) is not None
    return _has_name_and_domain(value)


def server_of_event_id(event_id: EventID) -> ServerName | None:
    """The server that made up this event ID; None where it is a hash."""
    server_name = event_id.partition(":")[2]
    return ServerName(server_name) if server_name else None


def is_device_id(value: object) -> TypeGuard[DeviceID]:
    """Whether this can be a device ID. The specification gives no grammar: any short text without NUL."""
    return isinstance(value, str) and value != "" and "\0" not in value and fits(value)


def check_device_id(value: object) -> DeviceID:
    """The value as a device ID."""
    if not is_device_id(value):
        raise InvalidInput("Not a valid device ID")
    return value


def is_key_id(value: object) -> TypeGuard[KeyID]:
    """Whether this is an algorithm and a name, as keys of devices and users have: `curve25519:JLAFKJWSCS`.

    The name may be as long as a device ID.
    """
    if not isinstance(value, str):
        return False
    algorithm, _, name = value.partition(":")
    return _KEY_ALGORITHM.fullmatch(algorithm) is not None and is_device_id(name)


def is_server_key_id(value: object) -> TypeGuard[KeyID]:
    """Whether this names a server's signing key: `ed25519:a_1`."""
    return isinstance(value, str) and _SERVER_KEY_ID.fullmatch(value) is not None


def is_media_id(value: object) -> TypeGuard[str]:
    """Whether this is a media ID: no dots or slashes, so that it can name no other path."""
    return isinstance(value, str) and _MEDIA_ID.fullmatch(value) is not None


def parse_mxc(value: object) -> tuple[ServerName, str]:
    """The server and the media ID of an `mxc://` URI."""
    if isinstance(value, str) and value.startswith("mxc://"):
        server_name, _, media_id = value[6:].partition("/")
        if is_server_name(server_name) and is_media_id(media_id):
            return server_name, media_id
    raise InvalidInput("Not a valid mxc:// URI")


def fits(text: str) -> bool:
    """Whether a text has at most 255 bytes of UTF-8 and no lone surrogates."""
    if len(text) > MAX_BYTES:
        return False
    if text.isascii():
        return True
    try:
        return len(text.encode()) <= MAX_BYTES
    except UnicodeEncodeError:
        return False


def _has_domain(value: str) -> bool:
    if "\0" in value or not fits(value):
        return False
    return _is_server_name(value.partition(":")[2])


def _has_name_and_domain(value: str) -> bool:
    return value[1:2] != ":" and _has_domain(value)


def _is_create_hash(value: str) -> bool:
    return _URLSAFE_HASH.fullmatch(value, 1) is not None
