"""Spaces that this server is not in, as servers tell of them that are (Server-Server API v1.18, "Spaces").

Nothing of an answer is proven, so none is believed further than it was asked: a server says what the room is that it
was asked for, and of its children what their own servers have not told. What it said is remembered for a while, as is
that it said nothing, for itself alone: what one server says of a room is not what another is asked for.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from federation.outbound.client import FederationClient, path_of
from federation.outbound.query_answers import read_room
from federation.protocol.errors import InvalidInput, PeerFailed
from federation.protocol.identifiers import fits, is_room_id
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.peer_answers import candidates
from federation.rooms.spaces import (
    MAX_CHILDREN,
    MAX_VIA,
    SPACE,
    SpaceChild,
    SpaceRoom,
    in_order,
    parse_child,
)
from federation.rooms.summaries import BY_MEMBERSHIP, MAX_ALLOWED
from storage.places import Places

logger = logging.getLogger(__name__)

MAX_SERVERS = 3
"""Servers that are asked for one room."""
MAX_BYTES = 4 * 1024 * 1024
SECONDS = 10.0
MAX_AT_ONCE = 20
"""Questions of all users together that wait for an answer."""
REMEMBERED_SECONDS = 300.0
REMEMBERED_FAILURE_SECONDS = 60.0
REMEMBERED_ROOMS = 10_000
"""Rooms in all remembered answers together, and children that they name."""


class RemoteSpace(Struct, frozen=True, kw_only=True):
    """What a server told of a room that it was asked for."""

    room: SpaceRoom
    told: Mapping[RoomID, SpaceRoom]
    """Its children; which children these have, it does not say."""
    inaccessible: frozenset[RoomID]
    """Children of which our server may not know."""

    @property
    def weight(self) -> int:
        """How much it is to be remembered."""
        return 1 + len(self.room.children) + len(self.told) + len(self.inaccessible)


class _Remembered(Struct, frozen=True):
    space: RemoteSpace | None
    until: float

    @property
    def weight(self) -> int:
        return 1 if self.space is None else self.space.weight


class RemoteSpaces:
    """Asks for rooms, and remembers."""

    def __init__(self, client: FederationClient, server_name: ServerName) -> None:
        self._client = client
        self._server_name = server_name
        self._answers: OrderedDict[tuple[RoomID, ServerName], _Remembered] = OrderedDict()
        self._weight = 0
        self.places = Places("spaces", MAX_AT_ONCE)

    def must_ask(self, room_id: RoomID, via: Sequence[str]) -> bool:
        """Whether `find` would send a request."""
        for server in self._servers(via):
            known = self._recall(room_id, server)
            if known is None:
                return True
            if known.space is not None:
                return False
        return False

    async def find(self, room_id: RoomID, via: Sequence[str], *, again: bool = False) -> RemoteSpace | None:
        """What the first of these servers says that answers well; None where none does, or none soon.

        With `again` those are asked, too, that lately said nothing.
        """
        started = time.monotonic()
        for server in self._servers(via):
            known = self._recall(room_id, server)
            if again and known is not None and known.space is None:
                del self._answers[room_id, server]
                self._weight -= known.weight
                known = None
            if known is None and time.monotonic() - started > SECONDS:
                break
            space = await self._ask(room_id, server) if known is None else known.space
            if space is not None:
                return space
        return None

    def _servers(self, via: Sequence[str]) -> list[ServerName]:
        return candidates(via, besides=self._server_name)[:MAX_SERVERS]

    def _recall(self, room_id: RoomID, server: ServerName) -> _Remembered | None:
        known = self._answers.get((room_id, server))
        return known if known is not None and known.until > time.monotonic() else None

    async def _ask(self, room_id: RoomID, server: ServerName) -> RemoteSpace | None:
        async with self.places:
            known = self._recall(room_id, server)  # somebody may have asked meanwhile
            if known is not None:
                return known.space
            space: RemoteSpace | None = None
            try:
                path = path_of("/_matrix/federation/v1/hierarchy/{}", room_id)
                answer = await self._client.get(
                    server, path, [("suggested_only", "false")], timeout=SECONDS, max_bytes=MAX_BYTES
                )
                space = parse_answer(answer, room_id)
            except PeerFailed as error:
                logger.info("%s tells nothing of %s: %s", server, room_id, error)
            except InvalidInput as error:
                logger.warning("%s says of %s what cannot be used: %s", server, room_id, error.message)
            self._remember((room_id, server), space)
            return space

    def _remember(self, key: tuple[RoomID, ServerName], space: RemoteSpace | None) -> None:
        seconds = REMEMBERED_FAILURE_SECONDS if space is None else REMEMBERED_SECONDS
        old = self._answers.pop(key, None)
        new = self._answers[key] = _Remembered(space, time.monotonic() + seconds)
        self._weight += new.weight - (0 if old is None else old.weight)
        while self._weight > REMEMBERED_ROOMS and len(self._answers) > 1:
            _, oldest = self._answers.popitem(last=False)
            self._weight -= oldest.weight


def parse_answer(answer: JsonObject, room_id: RoomID) -> RemoteSpace:
    """What is well-formed of an answer about a room; raises InvalidInput where that is not the room itself."""
    children, inaccessible = answer.get("children"), answer.get("inaccessible_children", [])
    space = _room(answer.get("room"))
    if space is None or space.room_id != room_id:
        raise InvalidInput("It tells of no room, or of another")
    if not isinstance(children, list) or not isinstance(inaccessible, list):
        raise InvalidInput("Its lists of children are none")
    named = {child.room_id for child in space.children}
    told = [_room(child, with_children=False) for child in children[:MAX_CHILDREN]]
    return RemoteSpace(
        room=space,
        told={child.room_id: child for child in told if child is not None and child.room_id in named},
        inaccessible=frozenset(each for each in inaccessible[:MAX_CHILDREN] if is_room_id(each) and each in named),
    )


def _room(given: Any, *, with_children: bool = True) -> SpaceRoom | None:  # noqa: ANN401  # whatever another server says
    """A room of an answer; None for what is none."""
    summary = read_room(given)
    if summary is None:
        return None
    join_rule = summary.setdefault("join_rule", "public")  # as it "is assumed" to be where it is not present
    allowed = given.get("allowed_room_ids")
    allowed_room_ids = [each for each in allowed[:MAX_ALLOWED] if is_room_id(each)] if isinstance(allowed, list) else []
    if join_rule in BY_MEMBERSHIP:
        summary["allowed_room_ids"] = allowed_room_ids
    for name in ("room_version", "encryption"):
        if isinstance(given.get(name), str) and fits(given[name]):
            summary[name] = given[name]
    is_space = summary.get("room_type") == SPACE
    return SpaceRoom(
        room_id=summary["room_id"],
        summary=summary,
        is_space=is_space,
        join_rule=join_rule,
        world_readable=summary["world_readable"],
        allowed_room_ids=tuple(allowed_room_ids),
        children=_children(given.get("children_state")) if is_space and with_children else (),
    )


def _children(given: object) -> tuple[SpaceChild, ...]:
    """The children that a space names, each once."""
    if not isinstance(given, list):
        return ()
    found: dict[RoomID, SpaceChild] = {}
    for each in given[:MAX_CHILDREN]:
        child = parse_child(_trimmed(each)) if isinstance(each, dict) else None
        if child is not None:
            found.setdefault(child.room_id, child)
    return in_order(found.values())


def _trimmed(event: JsonObject) -> JsonObject:
    """The event with only that of its content that means something."""
    content = event.get("content")
    if not isinstance(content, dict):
        return {}
    via = content.get("via")
    kept: JsonObject = {}
    if isinstance(content.get("suggested"), bool):
        kept["suggested"] = content["suggested"]
    order = content.get("order")
    if isinstance(order, str) and fits(order):
        kept["order"] = order
    if isinstance(via, list):
        kept["via"] = [name for name in via[:MAX_VIA] if isinstance(name, str) and fits(name)]
    return event | {"content": kept}
