"""The rooms in a space, and in the spaces in it, page by page (Client-Server API v1.19, "Spaces").

The tree is walked depth first, each space's children in their order, each room once. A page's token says how many
rooms the pages before it showed: the next page walks there again, which costs little, since summaries are remembered,
and answers of other servers too. So any process can answer it.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable

from msgspec import Struct, field

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.identifiers import is_room_id, server_of_room_id
from federation.protocol.types import JsonObject, RoomID, ServerName, UserID
from federation.rooms.remote_spaces import RemoteSpaces
from federation.rooms.spaces import SpaceReader, SpaceRoom
from storage import memberships, outside_memberships, rooms
from storage.database import Database, Tx
from storage.memberships import Membership

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
MAX_DEPTH = 30
MAX_WALKED = 5000
"""Rooms that are looked at in one tree, shown or not."""
BATCH = 100
"""Rooms that are read in one go: the next one and those that come after it."""
BATCH_OF_SPACES = 10
"""Spaces of which the children are read in one go."""
BATCH_OF_OTHERS = 8
"""Rooms that other servers are asked for at once."""
MAX_NAMED = 5000
"""Once the spaces on a page have so many children together, it ends."""
MAX_ASKED = 40
MAX_SECONDS = 20.0
"""Once other servers were asked for so many rooms, or so long, a page ends: the next one goes on."""

_MEMBERSHIPS = (Membership.JOIN, Membership.INVITE, Membership.KNOCK, Membership.BAN)
_TOKEN = re.compile(r"h([0-9]{1,6})_([0-9a-f]{16})")


class Query(Struct, frozen=True, kw_only=True):
    """What somebody wants to see."""

    room_id: str
    suggested_only: bool = False
    max_depth: int = MAX_DEPTH
    limit: int = DEFAULT_LIMIT
    since: str | None = None

    def digest(self, user_id: UserID) -> str:
        """What a token is for: it holds for no other user, room or parameters."""
        text = "\n".join((user_id, self.room_id, str(self.suggested_only), str(self.max_depth)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _Standing(Struct, frozen=True):
    """What the reader has to do with rooms."""

    joined: frozenset[str]
    concerned: frozenset[str]
    """Rooms that they are in, are invited to or knock at."""
    banned: frozenset[str]

    def may_know(self, room: SpaceRoom) -> bool:
        if room.room_id in self.concerned:
            return True
        if room.room_id in self.banned:
            return False
        return room.is_open or not self.joined.isdisjoint(room.allows_members_of)


class _Place(Struct, frozen=True):
    """A room somewhere in the tree."""

    room_id: RoomID
    depth: int
    via: tuple[str, ...]
    told: SpaceRoom | None = None
    """What the server of the space above says of it."""
    is_denied: bool = False
    """Whether that server says that ours may not know of it."""


class _Walk(Struct):
    """How far a walk has come."""

    ahead: list[_Place]
    """The next one is the last."""
    deadline: float
    seen: set[RoomID] = field(default_factory=set)
    found: dict[RoomID, SpaceRoom | None] = field(default_factory=dict)
    """What is known of rooms; None where nothing is to be known."""
    unread: set[RoomID] = field(default_factory=set)
    """Spaces of which this server knows the children, which are not read yet."""
    elsewhere: set[RoomID] = field(default_factory=set)
    """Rooms that this server is not in."""
    told: dict[RoomID, dict[RoomID, SpaceRoom]] = field(default_factory=dict)
    denied: dict[RoomID, frozenset[RoomID]] = field(default_factory=dict)
    asked: int = 0

    def upcoming(self, place: _Place) -> Iterable[_Place]:
        """The place and those after it of which nothing is known yet, each room once."""
        given: set[RoomID] = set()
        for each in (place, *reversed(self.ahead)):
            if each.room_id not in given and each.room_id not in self.found:
                given.add(each.room_id)
                yield each


class _Enough(Exception):
    """The page ends here, for the time being."""


class SpaceService:
    """Walks trees for users."""

    def __init__(self, database: Database, reader: SpaceReader, remote: RemoteSpaces, server_name: ServerName) -> None:
        self._database = database
        self._reader = reader
        self._remote = remote
        self._server_name = server_name

    async def page(self, user_id: UserID, query: Query) -> JsonObject:
        """One page, as the API answers it; raises Forbidden where the user may not know of the space."""
        skipped = _parse_token(query, user_id)
        if not is_room_id(query.room_id):
            raise Forbidden("You are not allowed to view this room")
        async with self._database.read() as tx:
            standing = await _standing(tx, user_id)
            invite = await outside_memberships.find(tx, user_id, query.room_id)
        server = server_of_room_id(query.room_id)
        via = (() if invite is None else invite.via) + (() if server is None else (server,))
        walk = _Walk([_Place(query.room_id, 0, via)], time.monotonic() + MAX_SECONDS)
        shown: list[JsonObject] = []
        passed = named = 0
        has_more = False
        try:
            while walk.ahead and len(walk.seen) < MAX_WALKED:
                if named > MAX_NAMED:
                    raise _Enough
                room = await self._step(walk, standing, query)
                if room is None:
                    continue
                passed += 1
                if passed > skipped + query.limit:
                    raise _Enough
                if passed > skipped:
                    shown.append(room.as_json(suggested_only=query.suggested_only))
                    named += len(room.children)
        except _Enough:
            has_more = True
        answer: JsonObject = {"rooms": shown}
        if has_more:
            answer["next_batch"] = f"h{skipped + len(shown)}_{query.digest(user_id)}"
        return answer

    async def _step(self, walk: _Walk, standing: _Standing, query: Query) -> SpaceRoom | None:
        """The next room if it is to be shown; its children are then next."""
        place = walk.ahead.pop()
        if place.room_id in walk.seen:
            return None
        if place.room_id not in walk.found:
            await self._look_up(walk, place)
        walk.seen.add(place.room_id)
        room = walk.found[place.room_id]
        if room is None or not standing.may_know(room):
            if place.depth == 0:
                raise Forbidden("You are not allowed to view this room")
            return None
        if room.room_id in walk.unread:
            room = await self._read_children(walk, room)
        walk.found[place.room_id] = None  # nobody asks again, and its children may be many
        if room.is_space and place.depth < query.max_depth:
            told, denied = walk.told.pop(room.room_id, {}), walk.denied.pop(room.room_id, frozenset())
            walk.ahead += [
                _Place(
                    room_id=child.room_id,
                    depth=place.depth + 1,
                    via=child.via,
                    told=told.get(child.room_id),
                    is_denied=child.room_id in denied,
                )
                for child in reversed(room.children_among(suggested_only=query.suggested_only))
                if child.room_id not in walk.seen
            ]
            del walk.ahead[:-MAX_WALKED]
        return room

    async def _look_up(self, walk: _Walk, place: _Place) -> None:
        """Find out what this room is, and others that come soon."""
        if place.room_id not in walk.elsewhere:
            upcoming = [each for each in walk.upcoming(place) if each.room_id not in walk.elsewhere][:BATCH]
            await self._read(walk, upcoming)
        if place.room_id not in walk.found:
            await self._ask(walk, place)

    async def _read(self, walk: _Walk, places: list[_Place]) -> None:
        """What this server knows of these, and what need not be asked."""
        async with self._database.read() as tx:
            ours = await memberships.of_server(tx, [place.room_id for place in places], self._server_name)
            known = await rooms.find_many(tx, [room_id for room_id, is_joined in ours.items() if is_joined])
            found = await self._reader.get_many(tx, known.values())
        walk.found |= found
        walk.unread |= {room_id for room_id, room in found.items() if room.is_space}
        for place in places:
            if place.room_id in walk.found:
                continue
            if place.is_denied:
                walk.found[place.room_id] = None
            elif place.told is not None and not place.told.is_space:
                walk.found[place.room_id] = place.told
            else:
                walk.elsewhere.add(place.room_id)

    async def _read_children(self, walk: _Walk, space: SpaceRoom) -> SpaceRoom:
        """The space with its children; those of some spaces that come soon are read, too."""
        spaces = {space.room_id: space}
        for place in reversed(walk.ahead):
            room = walk.found.get(place.room_id)
            if room is not None and room.room_id in walk.unread and len(spaces) < BATCH_OF_SPACES:
                spaces[room.room_id] = room
        async with self._database.read() as tx:
            for room in await self._reader.with_children(tx, spaces.values()):
                walk.found[room.room_id] = spaces[room.room_id] = room
        walk.unread -= spaces.keys()
        return spaces[space.room_id]

    async def _ask(self, walk: _Walk, place: _Place) -> None:
        """What other servers say of this room, and of some that come soon."""
        wanted = [each for each in walk.upcoming(place) if each.room_id in walk.elsewhere][:BATCH_OF_OTHERS]
        unknown = sum(self._remote.must_ask(each.room_id, each.via) for each in wanted)
        if unknown and (walk.asked + unknown > MAX_ASKED or time.monotonic() > walk.deadline):
            walk.ahead.append(place)
            raise _Enough
        walk.asked += unknown
        answers = await asyncio.gather(*(self._remote.find(each.room_id, each.via) for each in wanted))
        for each, answer in zip(wanted, answers, strict=True):
            if answer is None:
                walk.found[each.room_id] = each.told
            else:
                walk.found[each.room_id] = answer.room
                walk.told[each.room_id] = dict(answer.told)
                walk.denied[each.room_id] = answer.inaccessible


async def _standing(tx: Tx, user_id: UserID) -> _Standing:
    by_number = await memberships.rooms_of(tx, user_id, _MEMBERSHIPS)
    known = await rooms.get_many(tx, by_number)
    outside = await outside_memberships.of_user(tx, user_id)
    held = {room.room_id: by_number[number][0] for number, room in known.items()}
    held |= {room_id: membership for room_id, (membership, _) in outside.items() if membership in _MEMBERSHIPS}
    return _Standing(
        joined=frozenset(room_id for room_id, membership in held.items() if membership is Membership.JOIN),
        concerned=frozenset(room_id for room_id, membership in held.items() if membership is not Membership.BAN),
        banned=frozenset(room_id for room_id, membership in held.items() if membership is Membership.BAN),
    )


def _parse_token(query: Query, user_id: UserID) -> int:
    """How many rooms were shown before."""
    if query.since is None:
        return 0
    match = _TOKEN.fullmatch(query.since)
    if match is None or match[2] != query.digest(user_id) or int(match[1]) > MAX_WALKED:
        raise InvalidInput("from is no token of this walk; suggested_only and max_depth must stay the same")
    return int(match[1])
