"""What is asked of other servers about a room's events, with every answer checked and bounded.

Server-Server API, "Backfilling and retrieving missing events", "Retrieving events". Nothing that comes back is
believed: what is no list, no object or no event ID is left out, and events are verified by who asked for them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct, field

from federation.outbound.client import FederationClient, path_of
from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.identifiers import is_event_id
from federation.protocol.state_answer import EventSplitter
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName

MAX_EVENTS_BYTES = 16 * 1024 * 1024
"""Of an answer with some events."""
MAX_STATE_IDS_BYTES = 32 * 1024 * 1024
MAX_STATE_BYTES = 48 * 1024 * 1024
MAX_STATE_EVENTS = 200_000
"""Of an answer with a whole state."""
LARGE_AT_ONCE = 2
"""Answers that may be large and are read of one server at a time: so what it makes us hold in memory is bounded."""


class TooMuch(MatrixError):
    """More would have to be asked than one event is worth: it waits on the dead-letter list."""

    def __init__(self, message: str) -> None:
        super().__init__("M_UNKNOWN", message, 503)


class Allowance(Struct):
    """What may be asked for the sake of one event."""

    requests: int = 40
    """Other than for single events."""
    events: int = 1_000
    """Single events, one request each."""

    def take_request(self) -> None:
        """One less; raises TooMuch when there is none left."""
        self.requests -= 1
        if self.requests < 0:
            raise TooMuch("Too many requests were needed to find what the event refers to")

    def take_event(self) -> None:
        """One less; raises TooMuch when there is none left."""
        self.events -= 1
        if self.events < 0:
            raise TooMuch("Too many events would have to be fetched one by one")


class GivenStateIDs(Struct, frozen=True):
    """A state, and what authorises it, as event IDs."""

    state: tuple[EventID, ...]
    auth_chain: tuple[EventID, ...]


class Questions:
    """The questions; every method raises PeerFailed where there is no answer."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client
        self._turns: dict[ServerName, _Turn] = {}

    async def missing_events(
        self, server: ServerName, room_id: RoomID, *, earliest: Sequence[EventID], latest: Sequence[EventID], limit: int
    ) -> list[JsonObject]:
        """Events between what we have, `earliest`, and what we do not understand, `latest`."""
        body = {"earliest_events": list(earliest), "latest_events": list(latest), "limit": limit, "min_depth": 0}
        async with self._turn(server):
            answer = await self._client.post(
                server, path_of("/_matrix/federation/v1/get_missing_events/{}", room_id), body
            )
            return _objects(answer.get("events"), limit * 2)

    async def backfill(
        self, server: ServerName, room_id: RoomID, event_ids: Sequence[EventID], limit: int
    ) -> list[JsonObject]:
        """These events and what precedes them."""
        query = [*(("v", event_id) for event_id in event_ids), ("limit", str(limit))]
        async with self._turn(server):
            answer = await self._client.get(
                server, path_of("/_matrix/federation/v1/backfill/{}", room_id), query, max_bytes=MAX_EVENTS_BYTES
            )
            return _objects(answer.get("pdus"), limit * 2)

    async def by_timestamp(
        self, server: ServerName, room_id: RoomID, ts: int, *, backwards: bool
    ) -> tuple[EventID, int] | None:
        """The event that is nearest to a time, on one side of it, and when it was sent; None for what is no answer."""
        query = [("ts", str(ts)), ("dir", "b" if backwards else "f")]
        answer = await self._client.get(
            server, path_of("/_matrix/federation/v1/timestamp_to_event/{}", room_id), query, max_bytes=64 * 1024
        )
        event_id, origin_server_ts = answer.get("event_id"), answer.get("origin_server_ts")
        if not is_event_id(event_id) or type(origin_server_ts) is not int:
            return None
        return event_id, origin_server_ts

    async def event(self, server: ServerName, event_id: EventID) -> list[JsonObject]:
        """The event with this ID, or what is said to be it; at most one."""
        answer = await self._client.get(
            server, path_of("/_matrix/federation/v1/event/{}", event_id), max_bytes=1024 * 1024
        )
        return _objects(answer.get("pdus"), 1)

    async def event_auth(self, server: ServerName, room_id: RoomID, event_id: EventID) -> list[JsonObject]:
        """What authorises an event, and what authorises that, to the room's creation."""
        async with self._turn(server):
            answer = await self._client.get(
                server,
                path_of("/_matrix/federation/v1/event_auth/{}/{}", room_id, event_id),
                max_bytes=MAX_EVENTS_BYTES,
            )
            return _objects(answer.get("auth_chain"))

    async def state_ids(self, server: ServerName, room_id: RoomID, event_id: EventID) -> GivenStateIDs:
        """The state before an event."""
        query = [("event_id", event_id)]
        async with self._turn(server):
            answer = await self._client.get(
                server,
                path_of("/_matrix/federation/v1/state_ids/{}", room_id),
                query,
                timeout=60.0,
                max_bytes=MAX_STATE_IDS_BYTES,
            )
            return GivenStateIDs(_event_ids(answer.get("pdu_ids")), _event_ids(answer.get("auth_chain_ids")))

    async def state(self, server: ServerName, room_id: RoomID, event_id: EventID) -> list[bytes]:
        """The events of the state before an event, and what authorises them: each as it came, which need be no JSON.

        Raises InvalidInput for what is no such answer, or too much.
        """
        splitter = EventSplitter(("pdus", "auth_chain"))
        found: list[bytes] = []
        async with (
            self._turn(server),
            self._client.stream(
                "GET",
                server,
                path_of("/_matrix/federation/v1/state/{}", room_id),
                query=[("event_id", event_id)],
                timeout=120.0,
                max_bytes=MAX_STATE_BYTES,
            ) as stream,
        ):
            async for chunk in stream.chunks():
                found += (raw for _, raw in splitter.feed(chunk))
                if len(found) > MAX_STATE_EVENTS:
                    raise InvalidInput("The state has too many events", "M_TOO_LARGE")
            last, _ = splitter.finish()
        return [*found, *(raw for _, raw in last)]

    @asynccontextmanager
    async def _turn(self, server: ServerName) -> AsyncIterator[None]:
        turn = self._turns.setdefault(server, _Turn())
        turn.users += 1
        try:
            async with turn.slots:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(server, None)


class _Turn(Struct):
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))
    users: int = 0


def _objects(value: object, most: int | None = None) -> list[JsonObject]:
    return [item for item in value[:most] if isinstance(item, dict)] if isinstance(value, list) else []


def _event_ids(value: object) -> tuple[EventID, ...]:
    return tuple(item for item in value if is_event_id(item)) if isinstance(value, list) else ()
