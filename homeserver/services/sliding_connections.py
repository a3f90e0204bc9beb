"""The connections of sliding sync: what each client was sent of which rooms, small, and any process's to go on with.

A state never changes: an answer that sends a room for the first time, stops following one or sends more of one than
before makes a new state from the one that the client has, and its number goes into the client's next `pos`. Any other
answer writes nothing: rooms that are followed are as far as the `pos` says. So a lost answer is no loss: the client
goes on from the state before, which is kept until it has shown that it has the next one.
"""

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import orjson
from msgspec import Struct, field

from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.types import RoomID, UserID
from federation.rooms.required_state import Patterns, StatePattern
from homeserver.services.sliding_request import Wanted
from homeserver.tokens import StreamToken
from storage import sync_connections
from storage.database import Database
from storage.sync_connections import ConnectionKey, day_of

MAX_STATE_BYTES = 256 * 1024
"""Of a state as it is stored. A connection with a larger one is given up: the client begins anew."""
MAX_KEPT = 2_000
"""Connections that a process remembers."""
MAX_KEPT_OF_USER = 20
"""What is remembered of one may be a megabyte."""
UNUSED_DAYS = 30
WHOLE = 1_000_000
"""The depth of a timeline that reaches down to where the room's history begins, or ours."""

ACCOUNT_DATA, RECEIPTS, TYPING, DIRECT = 1, 2, 4, 8
"""Of a room's flags: which extensions it was sent, and whether it was told to be a direct chat."""

RoomKey = int | RoomID
"""A room's number; the ID of one that this server is not in."""
OWN_DATA: RoomKey = 0
OWN_THREADS: RoomKey = -1
"""Stand for what belongs to no room: the user's account data, and which threads they follow."""


class UnknownPos(MatrixError):
    """The client has to begin anew."""

    def __init__(self) -> None:
        super().__init__("M_UNKNOWN_POS", "This position is not known: begin anew without one", 400)


class SentRoom(Struct, frozen=True):
    """What a client has of a room."""

    upto: int | None
    """All up to there; None: up to its `pos`, as the room is followed."""
    patterns: Patterns = ()
    """The state that it has."""
    depth: int = 0
    """So many of the newest events are surely there."""
    flags: int = 0
    left_at: int = 0
    """Where the user left it; 0 while they are in it."""

    @property
    def is_direct(self) -> bool:
        """Whether it was told to be a direct chat."""
        return bool(self.flags & DIRECT)

    @property
    def is_whole(self) -> bool:
        """Whether it was sent as a room that the user is in: neither an invite, nor after they left."""
        return bool(self.patterns) and not self.left_at


Rooms = Mapping[RoomKey, SentRoom]


class Settled(Struct):
    """A place at which there was nothing more to tell, so that until something comes nothing is looked at."""

    number: int
    seen: StreamToken
    """Up to where this was so; what came since, another process may have told."""
    wanted: Wanted
    counts: dict[str, int]
    """Of the lists."""
    to_device_from: int | None
    """After this position there was nothing for the device; None where that is not so, or not known."""


class Held(Struct):
    """What a process remembers of a connection."""

    states: dict[int, Rooms] = field(default_factory=dict)
    """The newest two that it knows."""
    settled: Settled | None = None
    members: dict[int, dict[UserID, int]] = field(default_factory=dict)
    """By room: whose member events were sent with which position, where members come with what they sent."""
    touched_day: int = 0
    turn: int = 0
    """Of the newest request; an older one that is still under way leads nowhere."""

    def keep(self, number: int, rooms: Rooms) -> None:
        """Remember a state."""
        self.states.pop(number, None)
        self.states[number] = rooms
        while len(self.states) > 2:
            del self.states[next(iter(self.states))]


class SlidingConnections:
    """Finds and makes states of connections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: OrderedDict[ConnectionKey, Held] = OrderedDict()
        self._of_users: dict[UserID, OrderedDict[ConnectionKey, None]] = {}
        """The same by user, in the same order."""

    def held(self, key: ConnectionKey) -> Held:
        """What is remembered of a connection."""
        found = self._held.get(key)
        if found is None:
            found = self._held[key] = Held()
            of_user = self._of_users.setdefault(key.user_id, OrderedDict())
            of_user[key] = None
            if len(of_user) > MAX_KEPT_OF_USER:
                self._forget(next(iter(of_user)))
            elif len(self._held) > MAX_KEPT:
                self._forget(next(iter(self._held)))
        else:
            self._held.move_to_end(key)
            self._of_users[key.user_id].move_to_end(key)
        return found

    def _forget(self, key: ConnectionKey) -> None:
        del self._held[key], self._of_users[key.user_id][key]
        if not self._of_users[key.user_id]:
            del self._of_users[key.user_id]

    async def rooms(self, key: ConnectionKey, number: int) -> Rooms:
        """A state of the connection; raises UnknownPos where it can no longer be gone on from."""
        held = self.held(key)
        today = day_of(self._database.now_ms())
        if number not in held.states:
            async with self._database.read() as tx:
                found = await sync_connections.find(tx, key)
            if number not in found:
                raise UnknownPos
            held.keep(number, decode(found[number]))
        if held.touched_day != today:
            held.touched_day = today
            async with self._database.write() as tx:
                await sync_connections.touch(tx, key, today)
        return held.states[number]

    async def begin(self, key: ConnectionKey, rooms: Rooms, held: Held) -> int:
        """Begin a connection, whatever was known under its name; the number of its state."""
        state, today = encode(rooms), day_of(self._database.now_ms())
        if len(state) > MAX_STATE_BYTES:
            raise InvalidInput("These lists and subscriptions ask for too much")
        async with self._database.write() as tx:
            number = await sync_connections.begin(tx, key, state, today)
        self.held(key)
        self._held[key] = held
        held.touched_day = today
        held.keep(number, rooms)
        return number

    async def advance(self, key: ConnectionKey, base: int, rooms: Rooms) -> int:
        """Go on from a state to another one; its number. Raises UnknownPos where that is no longer possible."""
        held = self.held(key)
        if held.states.get(base) == rooms:
            return base
        state = encode(rooms)
        if len(state) > MAX_STATE_BYTES:
            raise UnknownPos
        async with self._database.write() as tx:
            number = await sync_connections.advance(tx, key, base, state, day_of(self._database.now_ms()))
        if number is None:
            raise UnknownPos
        held.keep(number, rooms)
        return number

    async def forget_unused(self) -> None:
        """Delete connections that nobody has used for long."""
        async with self._database.write() as tx:
            await sync_connections.delete_unused(tx, day_of(self._database.now_ms()) - UNUSED_DAYS, 1000)


# --- as stored


def encode(rooms: Rooms) -> bytes:
    """A state as it is stored: rooms that stand alike together, their numbers as differences."""
    groups: dict[SentRoom, list[RoomKey]] = {}
    for key, sent in rooms.items():
        groups.setdefault(sent, []).append(key)
    patterns: dict[Patterns, int] = {}
    told: list[Any] = []
    for sent, keys in groups.items():
        index = patterns.setdefault(sent.patterns, len(patterns))
        numbers = sorted(key for key in keys if isinstance(key, int))
        steps = [number - before for before, number in zip([0, *numbers], numbers, strict=False)]
        outside = [key for key in keys if not isinstance(key, int)]
        told.append([sent.upto, index, sent.depth, sent.flags, sent.left_at, steps, outside])
    return zlib.compress(orjson.dumps([[_plain(each) for each in patterns], told]), 1)


def decode(state: bytes) -> Rooms:
    """What `encode` was given."""
    patterns, told = orjson.loads(zlib.decompress(state))
    known = [_patterns(each) for each in patterns]
    rooms: dict[RoomKey, SentRoom] = {}
    for upto, index, depth, flags, left_at, steps, outside in told:
        sent = SentRoom(upto, known[index], depth, flags, left_at)
        number = 0
        for step in steps:
            number += step
            rooms[number] = sent
        for room_id in outside:
            rooms[RoomID(room_id)] = sent
    return rooms


def _plain(patterns: Patterns) -> list[Any]:
    return [[_sorted(each.include), _sorted(each.exclude), each.lazy_members] for each in patterns]


def _sorted(elements: frozenset[tuple[str | None, str | None]]) -> list[tuple[str | None, str | None]]:
    return sorted(elements, key=lambda pair: (pair[0] or "", pair[1] or ""))


def _patterns(plain: list[Any]) -> Patterns:
    return tuple(
        StatePattern(frozenset(map(tuple, include)), frozenset(map(tuple, exclude)), lazy_members)
        for include, exclude, lazy_members in plain
    )
