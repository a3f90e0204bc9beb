"""Conditions of push rules (Client-Server API, "Conditions"), compiled once and checked against many events. Pure.

A condition that is malformed, or of a kind that nobody knows, never matches.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from federation.protocol.types import JsonObject
from homeserver.services.property_paths import MISSING, Path, get_value, parse_path
from homeserver.services.push_patterns import Effort, Matcher, has_word, whole, words

MAX_EFFORT: Final = 25_000
"""For all patterns of one member on one event: some milliseconds."""
BODY: Final[Path] = ("content", "body")
_MAX_INTEGER = 2**53 - 1
_COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "": operator.eq,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_MEMBER_COUNT = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")


class Situation:
    """An event and what its room says about it: the same for all members, so looked up once."""

    __slots__ = ("_lowered", "_max_effort", "_may_notify", "effort", "event", "member_count")

    def __init__(
        self,
        event: JsonObject,
        member_count: int,
        may_notify: Callable[[str], bool],
        *,
        max_effort: int = MAX_EFFORT,
    ) -> None:
        self.event = event
        """The event as clients see it."""
        self.member_count = member_count
        """How many are joined to the room."""
        self._may_notify = may_notify
        self._max_effort = max_effort
        self.effort = Effort(max_effort)
        """What matching patterns may still cost for the present member."""
        self._lowered: dict[Path, str | None] = {}

    def turn_to_next_member(self) -> None:
        """Each member's rules may cost as much."""
        self.effort = Effort(self._max_effort)

    def may_notify(self, key: str) -> bool:
        """Whether the sender's power level suffices for notifications of this kind, such as `room`."""
        return self._may_notify(key)

    def value(self, path: Path) -> object:
        """The value of a property, or `MISSING`."""
        return get_value(self.event, path)

    def lowered(self, path: Path) -> str | None:
        """A property's string in lower case; None where it is not a string."""
        try:
            return self._lowered[path]
        except KeyError:
            value = get_value(self.event, path)
            lowered = self._lowered[path] = value.lower() if isinstance(value, str) else None
            return lowered


Condition = Callable[[Situation, str | None], bool]
"""Whether it holds in a situation, for a member with this display name."""


def compile_condition(condition: object) -> Condition:
    """What a condition of a rule means."""
    if isinstance(condition, dict):
        compiler = _COMPILERS.get(condition.get("kind")) if isinstance(condition.get("kind"), str) else None
        if compiler is not None:
            return compiler(condition) or _never
    return _never


def _never(_situation: Situation, _display_name: str | None) -> bool:
    return False


def _event_match(condition: Mapping[str, Any]) -> Condition | None:
    key, pattern = condition.get("key"), condition.get("pattern")
    if not isinstance(key, str) or not isinstance(pattern, str):
        return None
    path = parse_path(key)
    return match_property(path, words(pattern) if path == BODY else whole(pattern))


def match_property(path: Path, matches: Matcher) -> Condition:
    """Holds where the property at `path` is a string that `matches` accepts in lower case."""

    def check(situation: Situation, _display_name: str | None) -> bool:
        text = situation.lowered(path)
        return text is not None and matches(text, situation.effort)

    return check


def is_property(path: Path, value: object) -> Condition:
    """Holds where the property at `path` is exactly `value`, of the same type."""
    kind = type(value)

    def check(situation: Situation, _display_name: str | None) -> bool:
        found = situation.value(path)
        return found is not MISSING and type(found) is kind and found == value

    return check


def _event_property_is(condition: Mapping[str, Any]) -> Condition | None:
    key, value = condition.get("key"), condition.get("value", MISSING)
    if not isinstance(key, str) or not _is_scalar(value):
        return None
    return is_property(parse_path(key), value)


def _event_property_contains(condition: Mapping[str, Any]) -> Condition | None:
    key, value = condition.get("key"), condition.get("value", MISSING)
    if not isinstance(key, str) or not _is_scalar(value):
        return None
    path, kind = parse_path(key), type(value)

    def check(situation: Situation, _display_name: str | None) -> bool:
        found = situation.value(path)
        return isinstance(found, list) and any(type(item) is kind and item == value for item in found)

    return check


def _is_scalar(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _MAX_INTEGER
    return value is None or isinstance(value, str | bool)


def _room_member_count(condition: Mapping[str, Any]) -> Condition | None:
    text = condition.get("is")
    found = _MEMBER_COUNT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    compare, count = _COMPARISONS[found[1] or ""], int(found[2])
    return lambda situation, _display_name: compare(situation.member_count, count)


def _sender_notification_permission(condition: Mapping[str, Any]) -> Condition | None:
    key = condition.get("key")
    if not isinstance(key, str):
        return None
    return lambda situation, _display_name: situation.may_notify(key)


def _contains_display_name(_condition: Mapping[str, Any]) -> Condition:
    def check(situation: Situation, display_name: str | None) -> bool:
        body = situation.lowered(BODY)
        if body is None or not display_name or not display_name.strip():
            return False
        return has_word(body, display_name.lower(), situation.effort)

    return check


_COMPILERS: Final[Mapping[object, Callable[[Mapping[str, Any]], Condition | None]]] = {
    "event_match": _event_match,
    "event_property_is": _event_property_is,
    "event_property_contains": _event_property_contains,
    "room_member_count": _room_member_count,
    "sender_notification_permission": _sender_notification_permission,
    "contains_display_name": _contains_display_name,
}
