"""Spaces: which rooms a space names as its children, in order, and what is told of rooms in a space.

Client-Server API v1.19, "Spaces"; Server-Server API v1.18, "Spaces". What is read here is what this server knows for
itself; `remote_spaces.py` has what others tell. Whether a reader may know of a room is the caller's question.
"""

import re
from collections.abc import Collection, Iterable

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.identifiers import is_room_id, is_server_name, is_user_id
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.summaries import BY_MEMBERSHIP, OPEN, RoomSummaries, Summary, content_of
from storage import room_state, rooms
from storage.database import Tx
from storage.events import StoredEvent
from storage.rooms import Room

SPACE = "m.space"
CHILD = "m.space.child"
MAX_CHILDREN = 1000
"""Of one space, so many are looked at."""
MAX_CHILD_BYTES = 4096
"""An event that names a child in more bytes names none: it would be shown to everybody who looks at the space."""
MAX_VIA = 20

_ORDER = re.compile(r"[\x20-\x7e]{1,50}")


class SpaceChild(Struct, frozen=True, kw_only=True):
    """What a space says of one of its children."""

    room_id: RoomID
    via: tuple[ServerName, ...]
    is_suggested: bool
    stripped: JsonObject
    """The event as clients see it, with `origin_server_ts`."""

    @property
    def rank(self) -> tuple[bool, str, int, str]:
        """The place among the children ("Ordering of children within a space")."""
        order = self.stripped["content"].get("order")
        if not isinstance(order, str) or _ORDER.fullmatch(order) is None:
            order = None
        return order is None, order or "", self.stripped["origin_server_ts"], self.room_id


class SpaceRoom(Struct, frozen=True, kw_only=True):
    """A room in a space, or the space itself."""

    room_id: RoomID
    summary: JsonObject
    """All that an answer says of it but its children."""
    is_space: bool
    join_rule: str
    world_readable: bool
    allowed_room_ids: tuple[str, ...]
    children: tuple[SpaceChild, ...] = ()
    """In their order; none of a room that is no space."""

    @property
    def is_open(self) -> bool:
        """Whether everybody may know of it."""
        return self.world_readable or self.join_rule in OPEN

    @property
    def allows_members_of(self) -> tuple[str, ...]:
        """The rooms whose members may join."""
        return self.allowed_room_ids if self.join_rule in BY_MEMBERSHIP else ()

    def children_among(self, *, suggested_only: bool) -> list[SpaceChild]:
        """The children, or those that are suggested."""
        return [child for child in self.children if child.is_suggested or not suggested_only]

    def as_json(self, *, suggested_only: bool) -> JsonObject:
        """As both endpoints show it."""
        children = self.children_among(suggested_only=suggested_only)
        return self.summary | {"children_state": [child.stripped for child in children]}


def parse_child(stripped: JsonObject) -> SpaceChild | None:
    """What a stripped event with `origin_server_ts` says, None where it names no child; nothing of it is believed."""
    room_id, content, sent_ts = stripped.get("state_key"), stripped.get("content"), stripped.get("origin_server_ts")
    if stripped.get("type") != CHILD or not is_room_id(room_id) or not is_user_id(stripped.get("sender")):
        return None
    if not isinstance(content, dict) or type(sent_ts) is not int:
        return None
    via = content.get("via")
    if not isinstance(via, list) or not via:
        return None
    return SpaceChild(
        room_id=room_id,
        via=tuple(name for name in via[:MAX_VIA] if is_server_name(name)),
        is_suggested=content.get("suggested") is True,
        stripped={name: stripped[name] for name in ("type", "state_key", "sender", "content", "origin_server_ts")},
    )


def in_order(children: Iterable[SpaceChild | None]) -> tuple[SpaceChild, ...]:
    """Those that are children, as they are to be shown."""
    return tuple(sorted((child for child in children if child is not None), key=lambda child: child.rank))


class SpaceReader:
    """Reads rooms that this server is in, many at once."""

    def __init__(self, summaries: RoomSummaries) -> None:
        self._summaries = summaries

    async def get_many(self, tx: Tx, numbers: Collection[int]) -> dict[RoomID, SpaceRoom]:
        """Those of these rooms that have events, without the children of those that are spaces."""
        summaries = await self._summaries.get_many(tx, numbers)
        counts = await rooms.rows(tx, summaries)
        return {
            summary.room.room_id: _space_room(summary, counts[number].joined_members)
            for number, summary in summaries.items()
        }

    async def with_children(self, tx: Tx, spaces: Collection[SpaceRoom]) -> list[SpaceRoom]:
        """The same spaces, with their children. These may be large: not for too many spaces at once."""
        numbers = await rooms.find_many(tx, [space.room_id for space in spaces])
        known = await rooms.get_many(tx, numbers.values())
        named = await room_state.current_of_type(
            tx, numbers.values(), CHILD, limit=MAX_CHILDREN, max_bytes=MAX_CHILD_BYTES
        )
        found: list[SpaceRoom] = []
        for space in spaces:
            room = known[numbers[space.room_id]]
            children = in_order(parse_child(_stripped(event, room)) for event in named.get(room.number, ()))
            found.append(replace(space, children=children))
        return found


def _space_room(summary: Summary, joined_members: int) -> SpaceRoom:
    return SpaceRoom(
        room_id=summary.room.room_id,
        summary=summary.as_whole_json(joined_members),
        is_space=summary.room_type == SPACE,
        join_rule=summary.join_rule,
        world_readable=summary.world_readable,
        allowed_room_ids=summary.allowed_room_ids,
    )


def _stripped(event: StoredEvent, room: Room) -> JsonObject:
    told = {name: event.json.get(name) for name in ("type", "state_key", "sender", "origin_server_ts")}
    return told | {"content": content_of(event, room)}
