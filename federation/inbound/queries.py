"""What other servers ask on behalf of their clients (Server-Server API v1.18, "Querying for information", "Published
room directory", "Spaces"): aliases, profiles, published rooms and spaces of this server."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from federation.inbound.authentication import FederationCall
from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.identifiers import check_room_alias, check_user_id, server_name_of, server_of_alias
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, UserID
from federation.rooms.hierarchy import Hierarchy
from federation.web import Answer

MAX_ROOMS = 500
"""Of a page."""


class QueryAnswers(Struct, frozen=True, kw_only=True):
    """What knows."""

    alias: Callable[[RoomAlias], Awaitable[tuple[RoomID, list[ServerName]]]]
    """An alias of ours; raises NotFound."""
    profile: Callable[[UserID], Awaitable[JsonObject]]
    """All fields of a user of ours; raises NotFound."""
    public_rooms: Callable[[JsonObject], Awaitable[JsonObject]] | None
    """The page that a body of POST /publicRooms asks for; None where other servers are not told."""
    hierarchy: Hierarchy


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
        body["limit"] = call.query_int("limit", 0, minimum=0)
        body["include_all_networks"] = call.query_bool("include_all_networks")
        return await self._page(body)

    async def search_rooms(self, call: FederationCall) -> Answer:
        """POST /publicRooms."""
        return await self._page(call.json)

    async def get_hierarchy(self, call: FederationCall) -> Answer:
        """GET /hierarchy/{roomId}."""
        suggested_only = call.query_bool("suggested_only")
        return await self._answers.hierarchy.read(call.origin, call.path["room_id"], suggested_only=suggested_only)

    async def _page(self, body: JsonObject) -> JsonObject:
        """No limit, or one of 0, is as many rooms as a page may hold."""
        if self._answers.public_rooms is None:
            raise Forbidden("This server's rooms are published to its own users")
        return await self._answers.public_rooms({**body, "limit": body.get("limit") or MAX_ROOMS})


def _required(call: FederationCall, name: str) -> str:
    value = call.query_text(name)
    if value is None:
        raise InvalidInput(f"{name} is required", "M_MISSING_PARAM")
    return value
