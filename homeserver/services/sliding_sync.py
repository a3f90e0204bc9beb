"""Sliding sync: of the rooms that a client looks at what it has not got yet, at once or as soon as there is something
(MSC4186, in both of its forms).

Its place is a state of its connection (`sliding_connections.py`) and a place in the log. An answer arranges the user's
rooms (`sliding_lists.py`), sorts them by what the client has of them (`sliding_sorting.py`), and reads what it lacks
(`sliding_rooms.py`, `sliding_extensions.py`). Where nothing came since the last answer to the same question, memory
alone says so.
"""

import asyncio
from collections.abc import Mapping

import orjson
from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, RoomID
from homeserver.services.account_data import AccountDataService
from homeserver.services.sliding_connections import Held, Rooms, Settled, SlidingConnections, UnknownPos
from homeserver.services.sliding_extensions import ExtensionsPart, SlidingExtensions
from homeserver.services.sliding_lists import RoomLists, SlidingMoment
from homeserver.services.sliding_request import SlidingRequest
from homeserver.services.sliding_rooms import RoomsPart, SlidingRooms
from homeserver.services.user_views import UserView, UserViews
from homeserver.tokens import SlidingToken, StreamToken, find_sliding_token
from storage import send_to_device
from storage.database import Database
from storage.ephemeral import Typing
from storage.sync_connections import ConnectionKey
from storage.tail import Tail

MAX_TIMEOUT_MS = 600_000
MAX_CONN_ID_BYTES = 255


class SlidingSources(Struct, frozen=True, kw_only=True):
    """Where the parts of an answer come from."""

    connections: SlidingConnections
    lists: RoomLists
    rooms: SlidingRooms
    extensions: SlidingExtensions
    account_data: AccountDataService
    typing: Typing


class _Place(Struct):
    """Where a client is."""

    key: ConnectionKey
    held: Held
    token: SlidingToken | None
    """None at the beginning of a connection."""
    to_device_since: int
    turn: int = 0
    """Of this request on the connection."""


class _Part(Struct):
    """An answer in the making."""

    upto: StreamToken
    rooms: RoomsPart
    extensions: ExtensionsPart
    counts: dict[str, int]

    @property
    def has_news(self) -> bool:
        return bool(self.rooms.told) or self.extensions.has_news


class SlidingSyncService:
    """Answers sliding syncs."""

    def __init__(self, database: Database, tail: Tail, views: UserViews, sources: SlidingSources) -> None:
        self._database = database
        self._tail = tail
        self._views = views
        self._connections = sources.connections
        self._lists = sources.lists
        self._rooms = sources.rooms
        self._extensions = sources.extensions
        self._account_data = sources.account_data
        self._typing = sources.typing

    async def sync(self, request: SlidingRequest) -> bytes:
        """The answer, as soon as it holds anything, or when the time is up; raises UnknownPos."""
        place = await self._find(request)
        view = await self._views.get(request.requester.user_id, self._lists.read_rooms)
        if place.token is None:
            part = await self._collect(request, view, place)
            number = await self._connections.begin(place.key, part.rooms.state, place.held)
            return self._answer(request, place, number, part)
        self._typing.lift(place.token.stream.typing)
        await self._delete_received(request, view, place)
        return await self._wait(request, view, place, place.token)

    async def _wait(self, request: SlidingRequest, view: UserView, place: _Place, token: SlidingToken) -> bytes:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.timeout_ms, MAX_TIMEOUT_MS) / 1000
        settled = self._settled(request, view, place, token)
        part: _Part | None = None
        looked_at = token.stream
        while True:
            if (part is None and settled is None) or self._concerns(request, view, looked_at):
                part = await self._collect(request, view, place)
                if part.has_news:
                    number = await self._advance(request, place, token, part)
                    return self._answer(request, place, number, part)
                looked_at = part.upto
            remaining = deadline - loop.time()
            is_quiet = not self._concerns(request, view, looked_at)
            if remaining <= 0 or self._tail.is_closing:
                upto = self._now(looked_at) if is_quiet else looked_at
                if part is not None:
                    part.upto = upto
                    number = await self._advance(request, place, token, part)
                    return self._answer(request, place, number, part)
                return await self._nothing(request, SlidingToken(token.number, upto), settled, place)
            if is_quiet:
                await view.listener.wait(remaining)

    # --- where the client is

    async def _find(self, request: SlidingRequest) -> _Place:
        requester = request.requester
        if len(request.conn_id.encode()) > MAX_CONN_ID_BYTES:
            raise InvalidInput(f"conn_id may have at most {MAX_CONN_ID_BYTES} bytes")
        # The two forms of one name are two connections.
        conn_id = request.form.value + request.conn_id
        key = ConnectionKey(requester.user_id, requester.device or 0, conn_id)
        to_device_since = await self._to_device_place(request.to_device_since)
        if request.pos is None:
            return _Place(key, Held(), None, to_device_since)
        token = find_sliding_token(request.pos)
        if token is None:
            raise UnknownPos
        if token.stream.position > self._tail.position:
            await self._tail.catch_up(token.stream.position)
            if token.stream.position > self._tail.position:
                raise UnknownPos
        await self._connections.rooms(key, token.number)
        held = self._connections.held(key)
        held.turn += 1
        return _Place(key, held, token, to_device_since, held.turn)

    async def _advance(self, request: SlidingRequest, place: _Place, token: SlidingToken, part: _Part) -> int:
        """Note what the client will have; raises UnknownPos where it asked again meanwhile, or has gone.

        What nobody receives must not take the place of what the newer request is answered.
        """
        if place.held.turn != place.turn or request.is_abandoned():
            raise UnknownPos
        return await self._connections.advance(place.key, token.number, part.rooms.state)

    async def _to_device_place(self, text: str | None) -> int:
        """The position that a device's `since` names; raises M_INVALID_PARAM for what this server did not give out."""
        if not text:
            return 0
        if len(text) <= 18 and text.isascii() and text.isdigit():
            await self._tail.catch_up(int(text))
            if int(text) <= self._tail.position:
                return int(text)
        raise InvalidInput("since is not a token of this server")

    def _settled(self, request: SlidingRequest, view: UserView, place: _Place, token: SlidingToken) -> Settled | None:
        """What says that there is nothing for the client but what came since, if anything does."""
        settled = place.held.settled
        if settled is None or settled.number != token.number or settled.wanted != request.wanted:
            return None
        if token.stream.position > settled.seen.position and self._concerns(request, view, settled.seen):
            return None
        if request.wanted.extensions.to_device is not None and (
            settled.to_device_from is None or place.to_device_since < settled.to_device_from
        ):
            return None
        return settled

    def _concerns(self, request: SlidingRequest, view: UserView, seen: StreamToken) -> bool:
        """Whether anything may have come for the user after `seen`: from memory alone."""
        listener = view.listener
        if seen.position < listener.known_from or listener.concerned_at > seen.position:
            return True
        if request.wanted.extensions.typing is None or self._typing.serial <= seen.typing:
            return False
        return bool(self._typing.rooms_changed_since(listener.rooms, seen.typing))

    def _now(self, since: StreamToken | None) -> StreamToken:
        """Up to where this process knows of everything, or another that `since` comes from."""
        typing = 0 if since is None else since.typing
        return StreamToken(self._tail.position, typing=max(self._typing.serial, typing))

    async def _delete_received(self, request: SlidingRequest, view: UserView, place: _Place) -> None:
        """A `since` proves that the messages before it have arrived."""
        device = request.requester.device
        if device is None or request.wanted.extensions.to_device is None or not place.to_device_since:
            return
        delivered = view.delivered.get(device, 0)  # 0: this process does not know what was handed out
        if delivered is None or delivered > place.to_device_since:
            return
        async with self._database.read() as tx:
            await send_to_device.delete_upto(tx, device, place.to_device_since)
        view.delivered[device] = None

    # --- collecting

    async def _collect(self, request: SlidingRequest, view: UserView, place: _Place) -> _Part:
        """What the client lacks; what is much, for a few requests of a user at a time."""
        if place.token is not None and place.token.stream.position >= self._tail.floor:
            return await self._collect_now(request, view, place)
        async with view.large_syncs:
            return await self._collect_now(request, view, place)

    async def _collect_now(self, request: SlidingRequest, view: UserView, place: _Place) -> _Part:
        since: StreamToken | None = None
        sent: Rooms = {}
        if place.token is not None:
            since = place.token.stream
            sent = await self._connections.rooms(place.key, place.token.number)
        facts = await self._lists.facts(view.user_id, request.wanted)
        # From one moment, without waiting between: how far the log is read, and the user's rooms there.
        upto, members, outside = self._now(since), dict(view.rooms), dict(view.outside)
        moment = SlidingMoment(
            view=view,
            since=since,
            upto=upto,
            members=members,
            outside=outside,
            sent=sent,
            ignored=facts.ignored,
            hides_invites=await self._account_data.hides_invites(view.user_id, members, outside),
        )
        arranged = await self._lists.arrange(request.wanted, moment)
        rooms = await self._rooms.collect(request, moment, arranged, place.held)
        extensions = await self._extensions.collect(request, moment, arranged, rooms, place.to_device_since)
        return _Part(moment.upto, rooms, extensions, arranged.counts)

    # --- the answer

    def _answer(self, request: SlidingRequest, place: _Place, number: int, part: _Part) -> bytes:
        held = self._connections.held(place.key)
        held.settled = None
        if not part.rooms.has_left:
            held.settled = Settled(number, part.upto, request.wanted, part.counts, part.extensions.to_device_from)
        return _encoded(request, SlidingToken(number, part.upto), part.counts, part.rooms.told, part.extensions.told)

    async def _nothing(
        self, request: SlidingRequest, token: SlidingToken, settled: Settled | None, place: _Place
    ) -> bytes:
        """That nothing came."""
        extensions = await self._extensions.nothing(request, place.to_device_since)
        return _encoded(request, token, {} if settled is None else settled.counts, {}, extensions)


def _encoded(
    request: SlidingRequest,
    token: SlidingToken,
    counts: Mapping[str, int],
    rooms: Mapping[RoomID, JsonObject],
    extensions: JsonObject,
) -> bytes:
    lists = {name: {"count": count} for name, count in counts.items()}
    answer = {"pos": str(token), "lists": lists, "rooms": rooms, "extensions": extensions}
    if request.txn_id is not None:
        answer["txn_id"] = request.txn_id
    return orjson.dumps(answer)
