"""What other servers are asked on behalf of clients (Server-Server API v1.18, "Querying for information", "Published
room directory"). Every answer is checked, and only what the specification names is taken over."""

from collections.abc import Callable, Mapping
from typing import Any

from federation.outbound.client import FederationClient
from federation.protocol.errors import NotFound, PeerRefused, PeerUnreachable
from federation.protocol.identifiers import is_room_alias, is_room_id, is_server_name, server_name_of, server_of_alias
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, UserID

MAX_ALIAS_BYTES = 256 * 1024
MAX_PROFILE_BYTES = 128 * 1024
MAX_ROOMS_BYTES = 8 * 1024 * 1024
MAX_SERVERS = 20
"""Of those that an alias's server names, so many are told."""

_MAY_BE = {
    "avatar_url": str,
    "join_rule": str,
    "name": str,
    "room_type": str,
    "topic": str,
}


class Queries:
    """Questions to one server each. Raises PeerFailed where it does not answer well, and NotFound where it knows no
    such thing."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def alias(self, alias: RoomAlias) -> tuple[RoomID, list[ServerName]]:
        """The room that an alias of another server stands for, and servers in it, its own among them."""
        server = server_of_alias(alias)
        answer = await self._get(server, "directory", {"room_alias": alias}, MAX_ALIAS_BYTES)
        room_id, named = answer.get("room_id"), answer.get("servers")
        if not is_room_id(room_id) or not isinstance(named, list):
            raise PeerUnreachable(server, "what it says of an alias is malformed")
        servers = dict.fromkeys([server, *(name for name in named[:MAX_SERVERS] if is_server_name(name))])
        return room_id, list(servers)

    async def profile(self, user_id: UserID, field: str | None) -> JsonObject:
        """A user's profile, or one field of it; name and avatar are text."""
        query = {"user_id": user_id} if field is None else {"user_id": user_id, "field": field}
        answer = await self._get(server_name_of(user_id), "profile", query, MAX_PROFILE_BYTES)
        return {
            key: value
            for key, value in answer.items()
            if isinstance(value, str) or key not in ("displayname", "avatar_url")
        }

    async def public_rooms(self, server: ServerName, body: JsonObject) -> JsonObject:
        """A page of another server's published rooms; `body` is as for the client's endpoint."""
        path = "/_matrix/federation/v1/publicRooms"
        answer = await self._client.post(server, path, body, patient=True, max_bytes=MAX_ROOMS_BYTES)
        chunk = answer.get("chunk")
        if not isinstance(chunk, list):
            raise PeerUnreachable(server, "its list of rooms is malformed")
        page: JsonObject = {"chunk": [room for each in chunk if (room := _published(each)) is not None]}
        for name, is_right in _OF_PAGES.items():
            if is_right(answer.get(name)):
                page[name] = answer[name]
        return page

    async def _get(self, server: ServerName, what: str, query: Mapping[str, str], max_bytes: int) -> JsonObject:
        path = f"/_matrix/federation/v1/query/{what}"
        try:
            return await self._client.get(server, path, query.items(), patient=True, max_bytes=max_bytes)
        except PeerRefused as refusal:
            if refusal.status == 404:
                raise NotFound(f"The server {server} knows no such {_NAMES[what]}") from None
            raise


_NAMES = {"directory": "alias", "profile": "user"}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


_OF_PAGES: Mapping[str, Callable[[object], bool]] = {
    "next_batch": _is_text,
    "prev_batch": _is_text,
    "total_room_count_estimate": _is_count,
}


def _published(given: Any) -> JsonObject | None:  # noqa: ANN401  # whatever another server says
    """A room as the client's endpoint shows it, None for what is none."""
    if not isinstance(given, dict) or not is_room_id(given.get("room_id")):
        return None
    members = given.get("num_joined_members")
    if not _is_count(members):
        return None
    room: JsonObject = {
        "room_id": given["room_id"],
        "num_joined_members": members,
        "world_readable": given.get("world_readable") is True,
        "guest_can_join": given.get("guest_can_join") is True,
    }
    room |= {name: given[name] for name, kind in _MAY_BE.items() if isinstance(given.get(name), kind)}
    if is_room_alias(given.get("canonical_alias")):
        room["canonical_alias"] = given["canonical_alias"]
    return room
