"""Endpoints by which users of other servers join, leave and knock, and ours are invited (Server-Server API, "Joining
rooms", "Knocking upon a room", "Inviting to a room", "Leaving rooms").
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from federation.inbound.authentication import FederationCall
from federation.inbound.streaming import stream_json
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, ServerName
from federation.rooms.join_answers import JoinAnswer
from federation.rooms.resident import Resident
from federation.web import Answer
from storage.database import Database

MAX_VERSIONS = 100


class MembershipAPI:
    """What a resident server is asked for."""

    def __init__(self, database: Database, resident: Resident, server_name: ServerName) -> None:
        self._database = database
        self._resident = resident
        self._server_name = server_name

    # --- join

    async def make_join(self, call: FederationCall) -> Answer:
        """`GET /v1/make_join/{roomId}/{userId}`: a server that names no versions knows the first alone."""
        return await self._template(call, "join", _versions(call) or ["1"])

    async def send_join(self, call: FederationCall) -> Answer:
        """`PUT /v2/send_join/{roomId}/{eventId}`."""
        return await self._join(call, omits_members=call.query_bool("omit_members"))

    async def send_join_v1(self, call: FederationCall) -> Answer:
        """`PUT /v1/send_join/{roomId}/{eventId}`, which old servers ask: the answer stands in an array."""
        return await self._join(call, omits_members=False, before=b"[200,", after=b"]")

    async def _join(
        self, call: FederationCall, *, omits_members: bool, before: bytes = b"", after: bytes = b""
    ) -> web.StreamResponse:
        entered = await self._resident.accept(call.origin, _room_and_event(call), call.json, "join")
        answer = JoinAnswer(self._database, self._server_name, entered, omits_members=omits_members)
        return await stream_json(call.request, _enclosed(before, answer.chunks(), after))

    # --- leave

    async def make_leave(self, call: FederationCall) -> Answer:
        """`GET /v1/make_leave/{roomId}/{userId}`."""
        return await self._template(call, "leave", None)

    async def send_leave(self, call: FederationCall) -> Answer:
        """`PUT /v2/send_leave/{roomId}/{eventId}`."""
        await self._resident.accept(call.origin, _room_and_event(call), call.json, "leave")
        return {}

    async def send_leave_v1(self, call: FederationCall) -> Answer:
        """`PUT /v1/send_leave/{roomId}/{eventId}`, which old servers ask."""
        await self.send_leave(call)
        return b"[200,{}]"

    # --- knock

    async def make_knock(self, call: FederationCall) -> Answer:
        """`GET /v1/make_knock/{roomId}/{userId}`."""
        versions = _versions(call)
        if not versions:
            raise InvalidInput("ver is missing", "M_MISSING_PARAM")
        return await self._template(call, "knock", versions)

    async def send_knock(self, call: FederationCall) -> Answer:
        """`PUT /v1/send_knock/{roomId}/{eventId}`."""
        entered = await self._resident.accept(call.origin, _room_and_event(call), call.json, "knock")
        return {"knock_room_state": await self._resident.stripped_state(entered.room)}

    async def _template(self, call: FederationCall, membership: str, versions: list[str] | None) -> JsonObject:
        event, version = await self._resident.template(
            call.origin, call.path["room_id"], call.path["user_id"], membership, versions
        )
        return {"event": event, "room_version": version}


async def _enclosed(before: bytes, chunks: AsyncGenerator[bytes, None], after: bytes) -> AsyncGenerator[bytes, None]:
    yield before
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    yield after


def _versions(call: FederationCall) -> list[str]:
    return [value for name, value in call.query if name == "ver"][:MAX_VERSIONS]


def _room_and_event(call: FederationCall) -> tuple[str, str]:
    return call.path["room_id"], call.path["event_id"]
