"""What other servers ask on behalf of their clients (Server-Server API v1.18, "Querying for information", "Published
room directory"): aliases, profiles and published rooms of this server."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from federation.inbound.authentication import FederationCall
from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.identifiers import check_room_alias, check_user_id, server_name_of, server_of_alias
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, UserID
from federation.web import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswers:
    """What knows."""

    alias: Callable[[RoomAlias], Awaitable[tuple[RoomID, list[ServerName]]]]
    """An alias of ours; raises NotFound."""
    profile: Callable[[UserID], Awaitable[JsonObject]]
    """All fields of a user of ours; raises NotFound."""
    public_rooms: Callable[[JsonObject], Awaitable[JsonObject]]
    """The page that a body of POST /publicRooms asks for."""


class QueriesAPI:
    """Only about what is this server's own."""

    def __init__(self, answers: QueryAnswers, server_name: ServerName) -> None:
        self._answers = answers
        self._server_name = server_name

    async def get_alias(self, call: FederationCall) -> Answer:
        """GET /query/directory."""
        alias = check_room_alias(_required(call, "room_alias"))
        if server_of_alias(alias) != self._server_name:
            raise NotFound("The alias is none of this server")
        room_id, servers = await self._answers.alias(alias)
        return {"room_id": room_id, "servers": servers}

    async def get_profile(self, call: FederationCall) -> Answer:
        """GET /query/profile."""
        user_id = check_user_id(_required(call, "user_id"))
        if server_name_of(user_id) != self._server_name:
            raise NotFound("The user is none of this server")
        fields = await self._answers.profile(user_id)
        wanted = call.query_text("field")
        if wanted is None:
            return fields
        return {wanted: fields[wanted]} if wanted in fields else {}

    async def list_rooms(self, call: FederationCall) -> Answer:
        """GET /publicRooms."""
        body: JsonObject = {}
        for name in ("since", "third_party_instance_id"):
            value = call.query_text(name)
            if value is not None:
                body[name] = value
        if call.query_text("limit") is not None:
            body["limit"] = call.query_int("limit", 0, minimum=0)
        if call.query_text("include_all_networks") == "true":
            body["include_all_networks"] = True
        return await self._answers.public_rooms(body)

    async def search_rooms(self, call: FederationCall) -> Answer:
        """POST /publicRooms."""
        return await self._answers.public_rooms(call.json)


def _required(call: FederationCall, name: str) -> str:
    value = call.query_text(name)
    if value is None:
        raise InvalidInput(f"{name} is required", "M_MISSING_PARAM")
    return value
