"""Profiles and descriptions of rooms as other servers tell them: what is malformed is left out, what is long is cut,
and nothing is taken over that the specification does not name. No client suffers from what another server's users
write.
"""

from collections.abc import Callable, Mapping
from typing import Any

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, PeerUnreachable
from federation.protocol.identifiers import fits, is_room_alias, is_room_id, parse_mxc
from federation.protocol.types import JsonObject, ServerName

MAX_NAME = 1000
MAX_TOPIC = 4000
MAX_TOKEN = 2048
MAX_ROOMS = 500
"""Of a page: nobody may ask for more."""
MAX_PROFILE_BYTES = 65_535
"""Client-Server API, "Profiles"."""
MAX_DEPTH = 50
"""How deeply a field of a profile may be nested."""

Check = Callable[[Any], bool]


def read_profile(server: ServerName, answer: JsonObject) -> tuple[JsonObject, int]:
    """The fields that a profile may have, and its size in bytes; raises PeerUnreachable for what is none."""
    profile = {
        key: value
        for key, value in answer.items()
        if key and fits(key) and "\0" not in key and value is not None and _FIELDS.get(key, _is_any)(value)
    }
    try:
        encoded = canonical_json.encode(profile)
        canonical_json.check_depth(profile, encoded, MAX_DEPTH)
    except InvalidInput:
        raise PeerUnreachable(server, "what it says of a user is malformed") from None
    if len(encoded) > MAX_PROFILE_BYTES:
        raise PeerUnreachable(server, "what it says of a user is larger than a profile may be")
    return profile, len(encoded)


def read_page(server: ServerName, answer: JsonObject) -> JsonObject:
    """A page of published rooms as the client's endpoint shows it; raises PeerUnreachable for what is none."""
    chunk = answer.get("chunk")
    if not isinstance(chunk, list):
        raise PeerUnreachable(server, "its list of rooms is malformed")
    page: JsonObject = {"chunk": [room for each in chunk[:MAX_ROOMS] if (room := read_room(each)) is not None]}
    return page | _those(_OF_PAGES, answer)


def read_room(given: Any) -> JsonObject | None:  # noqa: ANN401  # whatever another server says
    """A room, None for what is none."""
    if not isinstance(given, dict) or not is_room_id(given.get("room_id")):
        return None
    if not _is_count(given.get("num_joined_members")):
        return None
    room: JsonObject = {
        "room_id": given["room_id"],
        "num_joined_members": given["num_joined_members"],
        "world_readable": given.get("world_readable") is True,
        "guest_can_join": given.get("guest_can_join") is True,
    }
    for name, longest in (("name", MAX_NAME), ("topic", MAX_TOPIC)):
        text = given.get(name)
        if isinstance(text, str):
            room[name] = text[:longest]
    return room | _those(_OF_ROOMS, given)


def _those(checks: Mapping[str, Check], given: JsonObject) -> JsonObject:
    return {name: given[name] for name, is_right in checks.items() if is_right(given.get(name))}


def _is_any(_value: object) -> bool:
    return True


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= canonical_json.MAX_INTEGER


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_word(value: object) -> bool:
    return isinstance(value, str) and fits(value)


def _is_token(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TOKEN


def _is_avatar(value: object) -> bool:
    """Only what points to a server's media: nobody else chooses what our users' clients fetch."""
    if not _is_name(value):
        return False
    try:
        parse_mxc(value)
    except InvalidInput:
        return False
    return True


_FIELDS: Mapping[str, Check] = {"displayname": _is_name, "avatar_url": _is_avatar, "m.tz": _is_word}
_OF_PAGES: Mapping[str, Check] = {
    "next_batch": _is_token,
    "prev_batch": _is_token,
    "total_room_count_estimate": _is_count,
}
_OF_ROOMS: Mapping[str, Check] = {
    "avatar_url": _is_avatar,
    "canonical_alias": is_room_alias,
    "join_rule": _is_word,
    "room_type": _is_word,
}
