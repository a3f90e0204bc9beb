"""What other servers ask of rooms' events (Server-Server API v1.18, "Retrieving events", "Backfilling and retrieving
missing events"). Every answer comes from `federation/rooms/server_reader.py`, which decides what they may see."""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence

import orjson

from federation.inbound.authentication import FederationCall
from federation.inbound.streaming import stream_json
from federation.protocol.errors import InvalidInput
from federation.protocol.types import EventID, JsonObject, ServerName
from federation.rooms.server_reader import MAX_EVENTS, Missing, ServerReader, State
from federation.web import Answer

DEFAULT_MISSING = 10
MAX_NAMED = 100
"""Event IDs that a request may name."""
MAX_WHOLE = 500
"""Events of a state that are answered in one piece; more are streamed."""


class EventsAPI:
    """Events, states and history of rooms, for servers in them."""

    def __init__(self, reader: ServerReader, server_name: ServerName) -> None:
        self._reader = reader
        self._server_name = server_name

    async def get_event(self, call: FederationCall) -> Answer:
        """GET /event/{eventId}: M_NOT_FOUND also for what the server may not see."""
        return self._transaction([await self._reader.event(call.origin, call.path["event_id"])])

    async def get_state_ids(self, call: FederationCall) -> Answer:
        """GET /state_ids/{roomId}."""
        state = await self._reader.state(call.origin, call.path["room_id"], _event_id(call))
        return orjson.dumps({"pdu_ids": list(state.state.values()), "auth_chain_ids": list(state.auth_chain.values())})

    async def get_state(self, call: FederationCall) -> Answer:
        """GET /state/{roomId}."""
        state = await self._reader.state(call.origin, call.path["room_id"], _event_id(call))
        return await self._events_of(call, state, (("pdus", state.state), ("auth_chain", state.auth_chain)))

    async def get_event_auth(self, call: FederationCall) -> Answer:
        """GET /event_auth/{roomId}/{eventId}."""
        state = await self._reader.event_auth(call.origin, call.path["room_id"], call.path["event_id"])
        return await self._events_of(call, state, (("auth_chain", state.auth_chain),))

    async def backfill(self, call: FederationCall) -> Answer:
        """GET /backfill/{roomId}."""
        event_ids = [EventID(value) for name, value in call.query if name == "v" and "\0" not in value]
        if not event_ids:
            raise InvalidInput("v is required", "M_MISSING_PARAM")
        if len(event_ids) > MAX_NAMED:
            raise InvalidInput(f"v may be given {MAX_NAMED} times")
        if call.query_text("limit") is None:
            raise InvalidInput("limit is required", "M_MISSING_PARAM")
        limit = call.query_int("limit", MAX_EVENTS, maximum=MAX_EVENTS)
        return self._transaction(await self._reader.backfill(call.origin, call.path["room_id"], event_ids, limit))

    async def get_missing_events(self, call: FederationCall) -> Answer:
        """POST /get_missing_events/{roomId}."""
        missing = Missing(
            latest=_event_ids(call.json, "latest_events"),
            earliest=frozenset(_event_ids(call.json, "earliest_events")),
            limit=_integer(call.json, "limit", DEFAULT_MISSING),
            min_depth=_integer(call.json, "min_depth", 0),
        )
        pdus = await self._reader.missing_events(call.origin, call.path["room_id"], missing)
        return b'{"events":[' + b",".join(pdus) + b"]}"

    async def get_by_timestamp(self, call: FederationCall) -> Answer:
        """GET /timestamp_to_event/{roomId}."""
        direction = call.query_text("dir")
        if direction not in ("b", "f"):
            raise InvalidInput("dir must be b or f")
        if call.query_text("ts") is None:
            raise InvalidInput("ts is required", "M_MISSING_PARAM")
        event_id, origin_server_ts = await self._reader.by_timestamp(
            call.origin, call.path["room_id"], call.query_int("ts", 0), backwards=direction == "b"
        )
        return {"event_id": event_id, "origin_server_ts": origin_server_ts}

    def _transaction(self, pdus: Sequence[bytes]) -> bytes:
        head = orjson.dumps({"origin": self._server_name, "origin_server_ts": time.time_ns() // 1_000_000})
        return head[:-1] + b',"pdus":[' + b",".join(pdus) + b"]}"

    async def _events_of(
        self, call: FederationCall, state: State, parts: Sequence[tuple[str, Iterable[int]]]
    ) -> Answer:
        """An object with arrays of events: in one piece, or streamed where they are many."""
        pieces = self._pieces(state, parts)
        if len(state.state) + len(state.auth_chain) <= MAX_WHOLE:
            return b"".join([piece async for piece in pieces])
        return await stream_json(call.request, pieces)

    async def _pieces(self, state: State, parts: Sequence[tuple[str, Iterable[int]]]) -> AsyncGenerator[bytes, None]:
        start = b"{"
        for name, positions in parts:
            yield start + orjson.dumps(name) + b":["
            separator = b""
            async for pdus in self._reader.pdus(state.room, positions):
                if pdus:
                    yield separator + b",".join(pdus)
                    separator = b","
            start = b"],"
        yield b"]}"


def _event_id(call: FederationCall) -> str:
    event_id = call.query_text("event_id")
    if not event_id or "\0" in event_id:
        raise InvalidInput("event_id is required", "M_MISSING_PARAM")
    return event_id


def _event_ids(json: JsonObject, member: str) -> list[EventID]:
    given = json.get(member)
    if not isinstance(given, list) or len(given) > MAX_NAMED:
        raise InvalidInput(f"{member} must be an array of at most {MAX_NAMED}", "M_BAD_JSON")
    if not all(isinstance(each, str) and "\0" not in each for each in given):
        raise InvalidInput(f"{member} must be event IDs", "M_BAD_JSON")
    return [EventID(each) for each in given]


def _integer(json: JsonObject, member: str, default: int) -> int:
    value = json.get(member, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"{member} must be a non-negative integer", "M_BAD_JSON")
    return value
