"""A space and its children, as another server may know them (Server-Server API v1.18, "Spaces").

Told is of rooms that this server is in. Another server may know of a room that anybody may join, knock at or read, that
one of its users is in, invited to or knocks at, or that members of a room may join which it is in; it may not where the
room's access control list denies it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from federation.protocol.errors import NotFound
from federation.protocol.identifiers import is_room_id
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.server_access import SERVER_ACL
from federation.rooms.summaries import BY_MEMBERSHIP, OPEN, RoomSummaries, Summary
from storage import events, memberships, room_state, rooms
from storage.database import Database, Tx
from storage.events import StoredEvent
from storage.memberships import Membership

MAX_CHILDREN = 1000
"""Of a space, so many children are named."""
MAX_SUMMARIES = 100
"""Of those, so many are described."""

_ORDER = re.compile(r"[\x20-\x7e]{1,50}")


@dataclass(frozen=True, slots=True)
class _Told:
    """A room that this server is in."""

    summary: Summary
    joined_members: int
    is_accessible: bool
    """For the server that asks."""

    def as_json(self) -> JsonObject:
        return self.summary.as_whole_json(self.joined_members)


class Hierarchy:
    """Reads spaces for other servers."""

    def __init__(self, database: Database, summaries: RoomSummaries, server_name: ServerName) -> None:
        self._database = database
        self._summaries = summaries
        self._server_name = server_name

    async def read(self, origin: ServerName, room_id: str, *, suggested_only: bool) -> JsonObject:
        """A room and, if it is a space, its children; raises NotFound for one that the server may not know of."""
        async with self._database.read() as tx:
            parent = (await self._look(tx, origin, [room_id])).get(RoomID(room_id))
            if parent is None or not parent.is_accessible:
                raise NotFound("There is no such room")
            children_state: list[JsonObject] = []
            if parent.summary.room_type == "m.space":
                children_state = await _children_state(tx, parent.summary.room.number, suggested_only=suggested_only)
            named = [child["state_key"] for child in children_state if child["state_key"] != room_id]
            children = await self._look(tx, origin, named[:MAX_SUMMARIES])
        told = [(child, children[child]) for child in named[:MAX_SUMMARIES] if child in children]
        return {
            "room": {**parent.as_json(), "children_state": children_state},
            "children": [room.as_json() for _, room in told if room.is_accessible],
            "inaccessible_children": [child for child, room in told if not room.is_accessible],
        }

    async def _look(self, tx: Tx, origin: ServerName, room_ids: Sequence[str]) -> dict[RoomID, _Told]:
        """Those of these rooms that this server is in."""
        ours = await memberships.of_server(tx, room_ids, self._server_name)
        numbers = await rooms.find_many(
            tx, [room_id for room_id, membership in ours.items() if membership is Membership.JOIN]
        )
        summaries = await self._summaries.get_many(tx, numbers.values())
        found = {room_id: summaries[number] for room_id, number in numbers.items() if number in summaries}
        if not found:
            return {}
        doors = {
            allowed
            for summary in found.values()
            if summary.join_rule in BY_MEMBERSHIP
            for allowed in summary.allowed_room_ids
        }
        theirs = await memberships.of_server(tx, {*found, *doors}, origin)
        denied = await _denying(tx, summaries, origin)
        rows = await rooms.rows(tx, list(summaries))
        return {
            room_id: _Told(
                summary,
                rows[summary.room.number].joined_members,
                summary.room.number not in denied and _is_accessible(summary, room_id, theirs),
            )
            for room_id, summary in found.items()
        }


def _is_accessible(summary: Summary, room_id: RoomID, theirs: dict[RoomID, Membership]) -> bool:
    if summary.join_rule in OPEN or summary.world_readable or room_id in theirs:
        return True
    if summary.join_rule not in BY_MEMBERSHIP:
        return False
    return any(theirs.get(RoomID(allowed)) is Membership.JOIN for allowed in summary.allowed_room_ids)


async def _denying(tx: Tx, numbers: Collection[int], origin: ServerName) -> set[int]:
    """Those of these rooms whose access control list denies the server."""
    states = await room_state.current_of_many(tx, numbers, keys=[SERVER_ACL])
    held = await events.by_positions(tx, [state[SERVER_ACL] for state in states.values() if SERVER_ACL in state])
    return {
        number
        for number, state in states.items()
        if SERVER_ACL in state and not ServerACL(held[state[SERVER_ACL]].content).allows(origin)
    }


async def _children_state(tx: Tx, room: int, *, suggested_only: bool) -> list[JsonObject]:
    """The events that name children, stripped, in the order in which clients show them."""
    stored = await room_state.current_of_type(tx, room, "m.space.child", limit=MAX_CHILDREN)
    valid = [event for event in stored if event.redacted_by is None and _names_child(event.json)]
    if suggested_only:
        valid = [event for event in valid if event.content.get("suggested") is True]
    return [_stripped(event) for event in sorted(valid, key=_place)]


def _names_child(event: JsonObject) -> bool:
    via: Any = event["content"].get("via")
    return is_room_id(event["state_key"]) and isinstance(via, list) and any(isinstance(name, str) for name in via)


def _place(event: StoredEvent) -> tuple[bool, str, int, str]:
    """Client-Server API, "Ordering of children within a space": those with a valid `order` come first."""
    order = event.content.get("order")
    if not isinstance(order, str) or _ORDER.fullmatch(order) is None:
        return True, "", event.json["origin_server_ts"], event.json["state_key"]
    return False, order, event.json["origin_server_ts"], event.json["state_key"]


def _stripped(event: StoredEvent) -> JsonObject:
    names = ("type", "state_key", "content", "sender", "origin_server_ts")
    return {name: event.json[name] for name in names}
