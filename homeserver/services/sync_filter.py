"""Filters (Client-Server API v1.19, "Filtering"): checked once, compiled, then asked for every event. Pure.

A filter's JSON is hostile. What has the wrong type is refused with M_BAD_JSON; unknown properties are ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from msgspec import Struct, field

from federation.protocol.errors import InvalidInput
from federation.protocol.globs import glob_match
from federation.protocol.types import JsonObject
from homeserver.services.property_paths import Path, parse_path

MAX_ITEMS: Final = 1000
"""Entries in one of a filter's lists."""
MAX_PATTERNS: Final = 100
"""Of those, patterns, each of which is tried."""
MAX_PATTERN_LENGTH: Final = 255
"""No event type is longer."""
_REMEMBERED: Final = 1000
MAX_LIMIT: Final = 1000
"""More events than this nobody gets at once, whatever the filter says."""


class _Types:
    """Event types by name, or by pattern with `*`."""

    __slots__ = ("_exact", "_patterns", "_verdicts")

    def __init__(self, types: Collection[str]) -> None:
        self._exact = frozenset(name for name in types if "*" not in name)
        self._patterns = tuple(_plain(name) for name in sorted(types) if "*" in name)
        self._verdicts: dict[str, bool] = {}
        """What the patterns said of types: thousands of events are of a few."""
        if len(self._patterns) > MAX_PATTERNS or any(len(each) > MAX_PATTERN_LENGTH for each in self._patterns):
            raise InvalidInput(
                f"A filter's list may have {MAX_PATTERNS} patterns of {MAX_PATTERN_LENGTH} characters", "M_BAD_JSON"
            )

    @property
    def plain(self) -> Collection[str] | None:
        """The types, where none of them is a pattern."""
        return None if self._patterns else self._exact

    def __contains__(self, name: str) -> bool:
        return name in self._exact or (bool(self._patterns) and self._matches(name))

    def _matches(self, name: str) -> bool:
        verdict = self._verdicts.get(name)
        if verdict is None:
            text = _plain(name)
            verdict = any(glob_match(pattern, text) for pattern in self._patterns)
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            self._verdicts[name] = verdict
        return verdict


def _plain(text: str) -> str:
    """The text with question marks as characters that are no wildcards: in filters only `*` is one."""
    return text.replace("?", "\0") if "?" in text else text


class EventFilter(Struct, frozen=True):
    """Which events of one section to send: `presence` and the global `account_data`."""

    limit: int | None = None
    types: _Types | None = None
    not_types: _Types | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()
    is_trivial: bool = True
    """Whether every event passes."""

    def allows(self, event_type: str, sender: str | None = None) -> bool:
        """Whether an event passes; events without a sender (account data) pass every list of senders."""
        if self.is_trivial:
            return True
        return self.allows_type(event_type) and (sender is None or self.allows_sender(sender))

    def allows_type(self, event_type: str) -> bool:
        """Whether events of this type may pass."""
        if self.types is not None and event_type not in self.types:
            return False
        return self.not_types is None or event_type not in self.not_types

    def allows_sender(self, sender: str) -> bool:
        """Whether events of this sender may pass."""
        return (self.senders is None or sender in self.senders) and sender not in self.not_senders


class RoomEventFilter(EventFilter, frozen=True):
    """Which events of one section of a room to send, and how."""

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    related_by_senders: frozenset[str] | None = None
    """Only events that one of these users relates to: needs the relations, so the reader applies it."""
    related_by_rel_types: frozenset[str] | None = None
    """Only events that others relate to in one of these ways: the reader applies it, too."""

    def allows_room(self, room_id: str) -> bool:
        """Whether events of this room may pass."""
        return (self.rooms is None or room_id in self.rooms) and room_id not in self.not_rooms

    def allows_event(self, event_type: str, sender: str | None, content: object) -> bool:
        """Whether an event of an allowed room passes."""
        if self.is_trivial:
            return True
        if self.contains_url is not None:
            has_url = isinstance(content, dict) and "url" in content
            if has_url is not self.contains_url:
                return False
        return self.allows(event_type, sender)

    @property
    def needs_relations(self) -> bool:
        """Whether only the reader, who knows what relates to an event, can say whether it passes."""
        return self.related_by_senders is not None or self.related_by_rel_types is not None


class SyncFilter(Struct, frozen=True):
    """A whole filter."""

    event_fields: tuple[Path, ...] | None = None
    federation_format: bool = False
    presence: EventFilter = field(default_factory=EventFilter)
    account_data: EventFilter = field(default_factory=EventFilter)
    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    include_leave: bool = False
    ephemeral: RoomEventFilter = field(default_factory=RoomEventFilter)
    state: RoomEventFilter = field(default_factory=RoomEventFilter)
    timeline: RoomEventFilter = field(default_factory=RoomEventFilter)
    room_account_data: RoomEventFilter = field(default_factory=RoomEventFilter)

    def allows_room(self, room_id: str) -> bool:
        """Whether anything of this room may be sent."""
        return (self.rooms is None or room_id in self.rooms) and room_id not in self.not_rooms

    def shape(self, event: JsonObject) -> JsonObject:
        """The event with the fields that the client asked for."""
        return event if self.event_fields is None else select_fields(event, self.event_fields)

    @property
    def unread_thread_notifications(self) -> bool:
        """Whether unread counts are to be given by thread."""
        return self.timeline.unread_thread_notifications


EVERYTHING: Final = SyncFilter()
"""What applies where a client names no filter."""


def select_fields(event: JsonObject, paths: Collection[Path]) -> JsonObject:
    """Only what stands at these paths."""
    selected: JsonObject = {}
    for path in paths:
        source: Any = event
        for name in path:
            if not isinstance(source, dict) or name not in source:
                break
            source = source[name]
        else:
            _place(selected, path, source)
    return selected


def _place(target: JsonObject, path: Path, value: object) -> None:
    """Put a value at a path; the objects above it are copies, as the event's own may be shared."""
    for name in path[:-1]:
        inner = target[name] = dict(target.get(name, ()))
        target = inner
    target[path[-1]] = value


def parse_filter(body: object) -> SyncFilter:
    """Compile a filter; raises M_BAD_JSON where it is none."""
    top = _Reader(body, "filter")
    room = top.part("room")
    fields = top.strings("event_fields")
    return SyncFilter(
        event_fields=None if fields is None else tuple(parse_path(text) for text in sorted(fields, key=len)),
        federation_format=top.choice("event_format", ("client", "federation")) == "federation",
        presence=parse_event_filter(top.value("presence"), "presence"),
        account_data=parse_event_filter(top.value("account_data"), "account_data"),
        rooms=room.ids("rooms", "!"),
        not_rooms=room.ids("not_rooms", "!") or frozenset(),
        include_leave=room.flag("include_leave") or False,
        ephemeral=parse_room_event_filter(room.value("ephemeral"), "room.ephemeral"),
        state=parse_room_event_filter(room.value("state"), "room.state"),
        timeline=parse_room_event_filter(room.value("timeline"), "room.timeline"),
        room_account_data=parse_room_event_filter(room.value("account_data"), "room.account_data"),
    )


def parse_event_filter(body: object, name: str = "filter") -> EventFilter:
    """Compile the part of a filter that is about one section."""
    reader = _Reader(body, name)
    common = _common(reader)
    return EventFilter(**common, is_trivial=_is_trivial(common))


def parse_room_event_filter(body: object, name: str = "filter") -> RoomEventFilter:
    """Compile a `RoomEventFilter`, also as `/messages`, `/context` and `/search` take it."""
    reader = _Reader(body, name)
    common = _common(reader)
    contains_url = reader.flag("contains_url")
    return RoomEventFilter(
        **common,
        is_trivial=_is_trivial(common) and contains_url is None,
        rooms=reader.ids("rooms", "!"),
        not_rooms=reader.ids("not_rooms", "!") or frozenset(),
        contains_url=contains_url,
        lazy_load_members=reader.flag("lazy_load_members") or False,
        include_redundant_members=reader.flag("include_redundant_members") or False,
        unread_thread_notifications=(
            reader.flag("unread_thread_notifications")
            or reader.flag("org.matrix.msc3773.unread_thread_notifications")
            or False
        ),
        related_by_senders=reader.ids("related_by_senders", "@"),
        related_by_rel_types=reader.strings("related_by_rel_types"),
    )


def _common(reader: "_Reader") -> dict[str, Any]:
    types, not_types = reader.strings("types"), reader.strings("not_types")
    return {
        "limit": reader.limit(),
        "types": None if types is None else _Types(types),
        "not_types": _Types(not_types) if not_types else None,
        "senders": reader.ids("senders", "@"),
        "not_senders": reader.ids("not_senders", "@") or frozenset(),
    }


def _is_trivial(common: Mapping[str, Any]) -> bool:
    return not common["not_senders"] and all(common[name] is None for name in ("types", "not_types", "senders"))


class _Reader:
    """One object of a filter, each property checked as it is read."""

    __slots__ = ("_name", "_object")

    def __init__(self, value: object, name: str) -> None:
        if value is not None and not isinstance(value, dict):
            raise InvalidInput(f"{name} must be an object", "M_BAD_JSON")
        self._object: JsonObject = value or {}
        self._name = name

    def value(self, key: str) -> object:
        return self._object.get(key)

    def part(self, key: str) -> "_Reader":
        return _Reader(self._object.get(key), f"{self._name}.{key}")

    def strings(self, key: str) -> frozenset[str] | None:
        value = self._object.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "an array of strings")
        if len(value) > MAX_ITEMS or any(len(item) > 1024 for item in value):
            raise self._wrong(key, "shorter")
        return frozenset(value)

    def ids(self, key: str, sigil: str) -> frozenset[str] | None:
        value = self.strings(key)
        if value is not None and not all(item.startswith(sigil) for item in value):
            raise self._wrong(key, f"an array of identifiers that start with {sigil}")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._object.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        value = self._object.get(key)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise self._wrong(key, f"one of {', '.join(choices)}")
        return value

    def limit(self) -> int | None:
        value = self._object.get("limit")
        if value is None:
            return None
        if type(value) is not int or value < 0:
            raise self._wrong("limit", "a positive integer")
        return min(max(value, 1), MAX_LIMIT)

    def _wrong(self, key: str, expected: str) -> InvalidInput:
        return InvalidInput(f"{self._name}.{key} must be {expected}", "M_BAD_JSON")
