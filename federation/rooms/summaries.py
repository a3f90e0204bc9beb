"""What a room says of itself to who is not in it: name, topic, join rule (directory, summaries, spaces).

Whether a reader may know of the room is the caller's question; nothing here is more than `stripped state` tells.
"""

import time
from collections import OrderedDict
from collections.abc import Collection

from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import fits, is_room_alias, is_room_id, parse_mxc
from federation.protocol.redaction import redact
from federation.protocol.types import JsonObject, StateKey
from storage import events, room_state, rooms
from storage.database import Tx
from storage.events import StoredEvent
from storage.rooms import Room

KEYS: tuple[StateKey, ...] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.create",
        "m.room.name",
        "m.room.topic",
        "m.room.avatar",
        "m.room.canonical_alias",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.encryption",
    )
)
OPEN = frozenset(("public", "knock", "knock_restricted"))
"""Join rules by which anybody may know of a room."""
BY_MEMBERSHIP = frozenset(("restricted", "knock_restricted"))
"""Join rules by which the members of other rooms may."""
REMEMBERED = 10_000
MAX_NAME = 1000
MAX_TOPIC = 4000
MAX_ALLOWED = 100
"""Of what members can put there, so much is shown to outsiders, and remembered of each room."""
REMEMBERED_SECONDS = 60.0
"""A redaction changes what an event says without replacing it: summaries follow it this late."""


class Summary(Struct, frozen=True, kw_only=True):
    """A room as outsiders may know it."""

    room: Room
    name: str | None
    topic: str | None
    avatar_url: str | None
    canonical_alias: str | None
    join_rule: str
    world_readable: bool
    guest_can_join: bool
    room_type: str | None
    encryption: str | None
    allowed_room_ids: tuple[str, ...]
    """The rooms whose members may join, where the join rule is restricted."""

    def as_json(self, joined_members: int) -> JsonObject:
        """The room as every endpoint shows it that shows rooms to outsiders; what there is none of is left out."""
        optional = {
            "name": self.name,
            "topic": self.topic,
            "avatar_url": self.avatar_url,
            "canonical_alias": self.canonical_alias,
            "room_type": self.room_type,
        }
        return {
            "room_id": self.room.room_id,
            "num_joined_members": joined_members,
            "world_readable": self.world_readable,
            "guest_can_join": self.guest_can_join,
            "join_rule": self.join_rule,
        } | {name: value for name, value in optional.items() if value is not None}

    def as_whole_json(self, joined_members: int) -> JsonObject:
        """As `as_json`, with what only single summaries and spaces tell."""
        answer = self.as_json(joined_members) | {"room_version": self.room.rules.version}
        if self.encryption is not None:
            answer["encryption"] = self.encryption
        if self.join_rule in BY_MEMBERSHIP:
            answer["allowed_room_ids"] = list(self.allowed_room_ids)
        return answer


class RoomSummaries:
    """Reads summaries of many rooms at once and remembers them for as long as their state is the same."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[frozenset[int], float, Summary]] = OrderedDict()

    async def get_many(self, tx: Tx, numbers: Collection[int]) -> dict[int, Summary]:
        """The summaries of those of these rooms that have events."""
        now = time.monotonic()
        states = await room_state.current_of_many(tx, numbers, keys=KEYS)
        found: dict[int, Summary] = {}
        stale: list[int] = []
        for number, state in states.items():
            known = self._known.get(number)
            if known is not None and known[0] == frozenset(state.values()) and known[1] > now:
                found[number] = known[2]
            elif state:
                stale.append(number)
        if stale:
            wanted = [position for number in stale for position in states[number].values()]
            stored = await events.by_positions(tx, wanted)
            known_rooms = await rooms.get_many(tx, stale)
            for number in stale:
                contents = {
                    key: content_of(stored[position], known_rooms[number]) for key, position in states[number].items()
                }
                found[number] = summary = _summary(known_rooms[number], contents)
                self._known[number] = (frozenset(states[number].values()), now + REMEMBERED_SECONDS, summary)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found


def content_of(event: StoredEvent, room: Room) -> JsonObject:
    """An event's content, or what redaction left of it."""
    if event.redacted_by is None:
        return event.content
    content: JsonObject = redact(event.json, room.rules)["content"]
    return content


def _summary(room: Room, contents: dict[StateKey, JsonObject]) -> Summary:
    def content(event_type: str) -> JsonObject:
        return contents.get((event_type, ""), {})

    join_rules = content("m.room.join_rules")
    allow = join_rules.get("allow")
    return Summary(
        room=room,
        name=_text(content("m.room.name"), "name", MAX_NAME),
        topic=_text(content("m.room.topic"), "topic", MAX_TOPIC),
        avatar_url=_avatar_url(content("m.room.avatar")),
        canonical_alias=_alias(content("m.room.canonical_alias")),
        join_rule=_word(join_rules, "join_rule") or "invite",
        world_readable=content("m.room.history_visibility").get("history_visibility") == "world_readable",
        guest_can_join=content("m.room.guest_access").get("guest_access") == "can_join",
        room_type=_word(content("m.room.create"), "type"),
        encryption=_word(content("m.room.encryption"), "algorithm"),
        allowed_room_ids=tuple(
            condition["room_id"]
            for condition in (allow[:MAX_ALLOWED] if isinstance(allow, list) else [])
            if isinstance(condition, dict)
            and condition.get("type") == "m.room_membership"
            and is_room_id(condition.get("room_id"))
        ),
    )


def _text(content: JsonObject, key: str, longest: int) -> str | None:
    """The beginning of a text that is not empty."""
    value = content.get(key)
    return value[:longest] if isinstance(value, str) and value else None


def _word(content: JsonObject, key: str) -> str | None:
    """A text that is short, as all names are that mean something to programs."""
    value = content.get(key)
    return value if isinstance(value, str) and value and fits(value) else None


def _alias(content: JsonObject) -> str | None:
    value = content.get("alias")
    return value if is_room_alias(value) else None


def _avatar_url(content: JsonObject) -> str | None:
    """Only what points to a server's media: a room's members do not choose what everybody's clients fetch."""
    value = content.get("url")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        return None
    try:
        parse_mxc(value)
    except InvalidInput:
        return None
    return value
