"""The two forms of a sliding sync's body, read into one (MSC4186 as accepted, and as deployed before). Pure."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, RoomID, UserID
from federation.rooms.required_state import MEMBER, Element, StatePattern
from homeserver.client_api.fields import find_bool, find_int, find_text, get_bool, get_object, get_objects, get_texts
from homeserver.services.sliding_request import (
    Extensions,
    Form,
    RoomConfig,
    RoomFilter,
    RoomList,
    Scope,
    Wanted,
)

MAX_LISTS = 100
MAX_SUBSCRIPTIONS = 100
MAX_STATE_ELEMENTS = 500
"""Of one list or subscription."""
MAX_ALL_STATE_ELEMENTS = 2_000
"""Of all lists and subscriptions, where those that want the same count once: they are kept while a connection is."""
MAX_RANGES = 100
"""Of one list."""
MAX_ALL_RANGES = 500
MAX_NAMES = 1000
"""Tags, spaces or types in a filter; lists or rooms in an extension."""
MAX_ALL_NAMES = 2_000
"""In all filters."""
MAX_NAME_LENGTH = 255
MAX_TIMELINE = 100
TO_DEVICE_LIMIT = 100
THREAD_LIMIT = 100


def parse(form: Form, body: JsonObject, user_id: UserID) -> Wanted:
    """What the body asks for; raises M_BAD_JSON, M_MISSING_PARAM or M_INVALID_PARAM."""
    lists, subscriptions = get_object(body, "lists"), get_object(body, "room_subscriptions")
    if len(lists) > MAX_LISTS:
        raise InvalidInput(f"There may be at most {MAX_LISTS} lists")
    if len(subscriptions) > MAX_SUBSCRIPTIONS:
        raise InvalidInput(f"There may be at most {MAX_SUBSCRIPTIONS} subscriptions")
    wanted = Wanted(
        tuple(_list(form, name, get_object(lists, name), user_id) for name in lists),
        tuple(
            (RoomID(room_id), _config(form, get_object(subscriptions, room_id), user_id)) for room_id in subscriptions
        ),
        _extensions(get_object(body, "extensions")),
    )
    _check_size(wanted)
    return wanted


def _check_size(wanted: Wanted) -> None:
    patterns = {each.config.required_state for each in wanted.lists}
    patterns |= {config.required_state for _, config in wanted.subscriptions}
    if sum(len(each.include) + len(each.exclude) for each in patterns) > MAX_ALL_STATE_ELEMENTS:
        raise InvalidInput(f"required_state may have at most {MAX_ALL_STATE_ELEMENTS} different elements in all")
    if sum(len(each.ranges or ()) for each in wanted.lists) > MAX_ALL_RANGES:
        raise InvalidInput(f"There may be at most {MAX_ALL_RANGES} ranges in all")
    if sum(each.filter.size for each in wanted.lists) > MAX_ALL_NAMES:
        raise InvalidInput(f"All filters together may have at most {MAX_ALL_NAMES} names")


# --- lists


def _list(form: Form, name: str, given: JsonObject, user_id: UserID) -> RoomList:
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidInput(f"The name of a list has 1 to {MAX_NAME_LENGTH} letters")
    ranges = _ranges(given.get("ranges")) if form is Form.DEPLOYED else _range(given.get("range"))
    return RoomList(name, _config(form, given, user_id), _filter(form, get_object(given, "filters")), ranges)


def _range(given: object) -> tuple[tuple[int, int], ...] | None:
    return None if given is None else _ranges([given])


def _ranges(given: object) -> tuple[tuple[int, int], ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > MAX_RANGES:
        raise InvalidInput(f"ranges must be an array of at most {MAX_RANGES} pairs")
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(index) is not int for index in pair):
            raise InvalidInput("A range must be a pair of integers")
        if not 0 <= pair[0] <= pair[1]:
            raise InvalidInput("A range must begin at 0 or later, and not end before that")
    return tuple((first, last) for first, last in given)


def _filter(form: Form, given: JsonObject) -> RoomFilter:
    room_types = _types(given, "room_types")
    return RoomFilter(
        is_dm=find_bool(given, "is_dm"),
        is_encrypted=find_bool(given, "is_encrypted"),
        is_invited=find_bool(given, "is_invite" if form is Form.DEPLOYED else "is_invited"),
        # What is deployed leaves an empty list of types out when it means all; an accepted one matches nothing.
        room_types=None if form is Form.DEPLOYED and not room_types else room_types,
        not_room_types=_types(given, "not_room_types") or frozenset(),
        spaces=_names(given, "spaces"),
        tags=_names(given, "tags"),
        not_tags=_names(given, "not_tags") or frozenset(),
    )


def _types(given: JsonObject, name: str) -> frozenset[str | None] | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise InvalidInput(f"{name} must be an array of strings and null", "M_BAD_JSON")
    _check_number(value, name)
    return frozenset(value)


def _names(given: JsonObject, name: str) -> frozenset[str] | None:
    if given.get(name) is None:
        return None
    value = get_texts(given, name)
    _check_number(value, name)
    return frozenset(value)


def _check_number(given: list[Any], name: str) -> None:
    if len(given) > MAX_NAMES:
        raise InvalidInput(f"{name} may have at most {MAX_NAMES} elements")


# --- what is wanted of a room


def _config(form: Form, given: JsonObject, user_id: UserID) -> RoomConfig:
    limit = find_int(given, "timeline_limit")
    if limit is None:
        raise InvalidInput("timeline_limit is required", "M_MISSING_PARAM")
    if limit < 0:
        raise InvalidInput("timeline_limit may not be negative")
    pattern = _pairs(given.get("required_state"), user_id) if form is Form.DEPLOYED else _pattern(given)
    return RoomConfig(min(limit, MAX_TIMELINE), pattern)


def _pairs(given: object, user_id: UserID) -> StatePattern:
    """As deployed: pairs of type and state key, with `*`, `$ME` and `$LAZY`."""
    if given is None:
        return StatePattern()
    include: set[Element] = set()
    lazy_members = False
    for pair in _elements_of(given):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidInput("required_state must hold pairs of strings", "M_BAD_JSON")
        event_type, state_key = pair
        if state_key == "$LAZY":
            lazy_members |= event_type in (MEMBER, "*")
            continue
        key = None if state_key == "*" else str(user_id) if state_key == "$ME" else state_key
        include.add((None if event_type == "*" else event_type, key))
    return StatePattern(frozenset(include), frozenset(), lazy_members)


def _pattern(given: JsonObject) -> StatePattern:
    """As accepted: what to include, and what to leave out of it."""
    if given.get("required_state") is None:
        raise InvalidInput("required_state is required", "M_MISSING_PARAM")
    wanted = get_object(given, "required_state")
    return StatePattern(_elements(wanted, "include"), _elements(wanted, "exclude"), get_bool(wanted, "lazy_members"))


def _elements(given: JsonObject, name: str) -> frozenset[Element]:
    elements = _elements_of(get_objects(given, name))
    return frozenset((find_text(each, "type"), find_text(each, "state_key")) for each in elements)


def _elements_of(given: object) -> list[Any]:
    if not isinstance(given, list):
        raise InvalidInput("required_state must be an array", "M_BAD_JSON")
    if len(given) > MAX_STATE_ELEMENTS:
        raise InvalidInput(f"required_state may have at most {MAX_STATE_ELEMENTS} elements")
    return given


# --- extensions


def _extensions(given: JsonObject) -> Extensions:
    return Extensions(
        to_device=_enabled(given, "to_device", _to_device_limit),
        e2ee=_enabled(given, "e2ee", lambda _: True) or False,
        account_data=_enabled(given, "account_data", _scope),
        receipts=_enabled(given, "receipts", _scope),
        typing=_enabled(given, "typing", _scope),
        threads=_enabled(given, "io.element.msc4308.thread_subscriptions", _thread_limit),
    )


Read = TypeVar("Read")


def _enabled(given: JsonObject, name: str, read: Callable[[JsonObject], Read]) -> Read | None:
    extension = get_object(given, name)
    return read(extension) if get_bool(extension, "enabled") else None


def _to_device_limit(given: JsonObject) -> int:
    limit = find_int(given, "limit")
    return TO_DEVICE_LIMIT if limit is None else max(1, min(limit, TO_DEVICE_LIMIT))


def _thread_limit(given: JsonObject) -> int:
    limit = find_int(given, "limit")
    return THREAD_LIMIT if limit is None else max(1, min(limit, THREAD_LIMIT))


def _scope(given: JsonObject) -> Scope:
    return Scope(_all_or_named(_names(given, "lists")), _all_or_named(_names(given, "rooms")))


def _all_or_named(names: Iterable[str] | None) -> frozenset[str] | None:
    if names is None or "*" in names:
        return None
    return frozenset(names)


def to_device_since(body: JsonObject) -> str | None:
    """From where on the device has not got its messages."""
    return find_text(get_object(get_object(body, "extensions"), "to_device"), "since")
