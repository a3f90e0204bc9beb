"""Reading `m.room.power_levels` and the room's creators (Client-Server API, "m.room.power_levels"; Room Versions).

Nothing is converted before it is asked for. A value that is no level in the room's version counts as missing: the
authorisation rules keep such values out, except where a room version forgot to.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from federation.protocol.pdu import PDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import JsonObject

INFINITE_LEVEL: Final = 1 << 64
"""The level of creators from version 12: above every level that an event of these versions can hold."""

DEFAULT_LEVELS: Final[Mapping[str, int]] = {
    "users_default": 0,
    "events_default": 0,
    "state_default": 50,
    "ban": 50,
    "kick": 50,
    "redact": 50,
    "invite": 0,
}
"""The level of each named property when it is missing, or when there is no event."""

_BINARY64_LIMIT = 1 << 1024
_INTEGER_STRING = re.compile(r"\s*([+-]?)0*([0-9]{1,308})\s*")


def parse_level(value: object, rules: RoomVersionRules) -> int | None:
    """The level that a value stands for in the room's version, None when it stands for none.

    Until version 10 that may be a string that holds an integer, or a float, which is truncated.
    """
    if type(value) is int:
        return value if rules.integer_power_levels or -_BINARY64_LIMIT < value < _BINARY64_LIMIT else None
    if rules.integer_power_levels:
        return None
    if isinstance(value, str):
        match = _INTEGER_STRING.fullmatch(value)
        return int(match[1] + match[2]) if match else None
    if isinstance(value, float) and abs(value) < float("inf"):
        return int(value)
    return None


def get_creators(create: PDU) -> frozenset[str]:
    """The room's creators: one until version 11, and from 12 also those that the create event names."""
    rules = create.rules
    if not rules.implicit_creator:
        creator = create.content.get("creator")
        return frozenset((creator,)) if isinstance(creator, str) else frozenset()
    if rules.creators_have_infinite_power:
        additional = create.content.get("additional_creators")
        if isinstance(additional, list):
            return frozenset((create.sender, *(user_id for user_id in additional if isinstance(user_id, str))))
    return frozenset((create.sender,))


class PowerLevels:
    """Who may do what in a room at one point of its history."""

    __slots__ = ("_content", "_create", "_has_event", "_rules")

    def __init__(self, content: JsonObject | None, create: PDU) -> None:
        self._has_event = content is not None
        self._content: JsonObject = {} if content is None else content
        self._create = create
        self._rules = create.rules

    @classmethod
    def from_state(cls, power_levels: PDU | None, create: PDU) -> "PowerLevels":
        """The levels that a room's `m.room.power_levels`, or its absence, and its create event give."""
        return cls(None if power_levels is None else power_levels.content, create)

    def of_user(self, user_id: str) -> int:
        """The user's level; `INFINITE_LEVEL` for the creators of a room of version 12."""
        rules = self._rules
        if rules.creators_have_infinite_power:
            if user_id in get_creators(self._create):
                return INFINITE_LEVEL
        elif not self._has_event:
            return 100 if user_id in get_creators(self._create) else 0
        level = self._entry("users", user_id)
        return self.named("users_default") if level is None else level

    def to_send(self, event_type: str, *, is_state: bool) -> int:
        """The level required to send an event of this type."""
        level = self._entry("events", event_type)
        if level is None:
            return self.named("state_default" if is_state else "events_default")
        return level

    @property
    def ban(self) -> int:
        """The level required to ban, and with `kick` to lift a ban."""
        return self.named("ban")

    @property
    def kick(self) -> int:
        """The level required to remove another user."""
        return self.named("kick")

    @property
    def redact(self) -> int:
        """The level required to redact what another user sent."""
        return self.named("redact")

    @property
    def invite(self) -> int:
        """The level required to invite."""
        return self.named("invite")

    def notification(self, key: str) -> int:
        """The level required to notify everybody by this key, such as `room` for `@room`."""
        level = self._entry("notifications", key)
        return 50 if level is None else level

    def named(self, name: str) -> int:
        """The level of one of the properties in `DEFAULT_LEVELS`."""
        value: Any = self._content.get(name)
        level = None if value is None else parse_level(value, self._rules)
        return DEFAULT_LEVELS[name] if level is None else level

    def _entry(self, table: str, key: str) -> int | None:
        entries = self._content.get(table)
        if not isinstance(entries, dict):
            return None
        value = entries.get(key)
        return None if value is None else parse_level(value, self._rules)
