"""Aliases and published rooms (Client-Server API v1.19, "Room aliases", "Published room directory")."""

from collections.abc import Awaitable, Callable, Collection

from msgspec.structs import replace

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.identifiers import check_server_name
from federation.protocol.types import JsonObject, ServerName
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.routing import optional_requester, requester
from homeserver.services.published_rooms import DEFAULT_LIMIT, MAX_LIMIT, PublishedRooms, Query
from homeserver.services.room_directory import RoomDirectory

AskOther = Callable[[ServerName, JsonObject], Awaitable[JsonObject]]
"""Asks another server for a page of its published rooms."""

MAX_SEARCH_TERM = 1000
MAX_ROOM_TYPES = 100
MAX_TOKEN = 2048
"""Of characters, in what names another server's page or network."""


class RoomDirectoryAPI:
    """Finding rooms."""

    def __init__(
        self, directory: RoomDirectory, published: PublishedRooms, server_name: ServerName, ask_other: AskOther
    ) -> None:
        self._directory = directory
        self._published = published
        self._server_name = server_name
        self._ask_other = ask_other

    async def get_alias(self, call: Call) -> Answer:
        """GET /directory/room/{roomAlias}."""
        room_id, servers = await self._directory.resolve(call.path["alias"])
        return {"room_id": room_id, "servers": servers}

    async def put_alias(self, call: Call) -> Answer:
        """PUT /directory/room/{roomAlias}."""
        body = await call.body()
        await self._directory.create(requester(call), call.path["alias"], fields.get_text(body, "room_id"))
        return {}

    async def delete_alias(self, call: Call) -> Answer:
        """DELETE /directory/room/{roomAlias}."""
        await self._directory.delete(requester(call), call.path["alias"])
        return {}

    async def list_aliases(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/aliases."""
        return {"aliases": await self._directory.list_aliases(requester(call), call.path["room_id"])}

    async def get_visibility(self, call: Call) -> Answer:
        """GET /directory/list/room/{roomId}."""
        is_published = await self._directory.is_published(call.path["room_id"])
        return {"visibility": "public" if is_published else "private"}

    async def put_visibility(self, call: Call) -> Answer:
        """PUT /directory/list/room/{roomId}."""
        visibility = fields.find_text(await call.body(optional=True), "visibility") or "public"
        if visibility not in ("public", "private"):
            raise InvalidInput("visibility must be public or private")
        await self._directory.set_published(requester(call), call.path["room_id"], is_published=visibility == "public")
        return {}

    async def put_on_network(self, call: Call) -> Answer:
        """PUT /directory/list/appservice/{networkId}/{roomId} (Application Service API, "Published room directory")."""
        visibility = fields.get_text(await call.body(), "visibility")
        if visibility not in ("public", "private"):
            raise InvalidInput("visibility must be public or private")
        network_id, room_id = call.path["network_id"], call.path["room_id"]
        await self._directory.set_on_network(requester(call), network_id, room_id, is_published=visibility == "public")
        return {}

    async def list_public_rooms(self, call: Call) -> Answer:
        """GET /publicRooms."""
        limit, since = call.query_int("limit", DEFAULT_LIMIT, minimum=1), call.query_text("since")
        server = self._other_server(call)
        query = Query(limit=limit, since=since)
        if server is None:
            return await self._published.page(query)
        if optional_requester(call) is None:
            raise Forbidden("Log in to see rooms of other servers")
        return await self._ask_other(server, _as_json(query))

    async def search_public_rooms(self, call: Call) -> Answer:
        """POST /publicRooms."""
        body = await call.body(optional=True)
        server = self._other_server(call)
        return await self.search(body) if server is None else await self._ask_other(server, _as_json(_query(body)))

    async def search(self, body: JsonObject) -> JsonObject:
        """The page of our own directory that a body asks for; for other servers, too."""
        query = _query(body)
        if query.search_term is not None:
            query = replace(query, search_term=query.search_term.casefold())
        return await self._published.page(query)

    def _other_server(self, call: Call) -> ServerName | None:
        server = call.query_text("server")
        return None if not server or server == self._server_name else check_server_name(server)


def _query(body: JsonObject) -> Query:
    """What a body asks for, the search term as it came."""
    limit = fields.find_int(body, "limit")
    if limit is not None and limit < 1:
        raise InvalidInput("limit must be at least 1")
    filtered = fields.get_object(body, "filter")
    return Query(
        limit=DEFAULT_LIMIT if limit is None else limit,
        since=fields.find_text(body, "since"),
        search_term=_search_term(filtered),
        room_types=_room_types(filtered),
        networks=_networks(body),
    )


def _as_json(query: Query) -> JsonObject:
    """The query as another server is asked: of what the client sent, what the specification names."""
    body: JsonObject = {"limit": min(query.limit, MAX_LIMIT)}
    if query.since is not None:
        if len(query.since) > MAX_TOKEN:
            raise InvalidInput("since is too long")
        body["since"] = query.since
    filtered: JsonObject = {}
    if query.search_term is not None:
        filtered["generic_search_term"] = query.search_term
    if query.room_types is not None:
        filtered["room_types"] = sorted(query.room_types, key=str)
    if filtered:
        body["filter"] = filtered
    if query.networks is None:
        body["include_all_networks"] = True
    elif network := next(iter(query.networks)):
        body["third_party_instance_id"] = network
    return body


def _room_types(filtered: JsonObject) -> Collection[str | None] | None:
    types = filtered.get("room_types")
    if isinstance(types, list) and len(types) > MAX_ROOM_TYPES:
        raise InvalidInput(f"At most {MAX_ROOM_TYPES} room types can be asked for")
    if types is None:
        return None
    if not isinstance(types, list) or not all(isinstance(each, str | None) for each in types):
        raise InvalidInput("room_types must be an array of strings and nulls", "M_BAD_JSON")
    return frozenset(types)


def _search_term(filtered: JsonObject) -> str | None:
    term = fields.find_text(filtered, "generic_search_term")
    if term is not None and len(term) > MAX_SEARCH_TERM:
        raise InvalidInput(f"The search term is longer than {MAX_SEARCH_TERM} characters")
    return term


def _networks(body: JsonObject) -> Collection[str] | None:
    instance = fields.find_text(body, "third_party_instance_id")
    if instance is not None and len(instance) > MAX_TOKEN:
        raise InvalidInput("third_party_instance_id is too long")
    if fields.get_bool(body, "include_all_networks"):
        if instance:
            raise InvalidInput("include_all_networks and third_party_instance_id exclude each other")
        return None
    return (instance or "",)
