"""What other servers are asked on behalf of clients (Server-Server API v1.18, "Querying for information", "Published
room directory"). Every answer is checked, and only what the specification names is taken over."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from federation.outbound.client import FederationClient
from federation.outbound.query_answers import read_page, read_profile
from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound, PeerRefused, PeerUnreachable
from federation.protocol.identifiers import is_room_id, is_server_name, server_name_of, server_of_alias
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, UserID

MAX_ALIAS_BYTES = 256 * 1024
MAX_PROFILE_BYTES = 128 * 1024
MAX_ROOMS_BYTES = 8 * 1024 * 1024
MAX_SERVERS = 20
"""Of those that an alias's server names, so many are told."""

PROFILE_SECONDS = 60.0
"""For so long a profile is remembered, or that there is none."""
MAX_PROFILES = 1000
MAX_REMEMBERED = 4096
"""Bytes of a profile; a larger one is asked for each time."""


class Queries:
    """Questions to one server each. Raises PeerFailed where it does not answer well, NotFound where it knows no such
    thing, and Forbidden where it does not tell."""

    def __init__(self, client: FederationClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._profiles: OrderedDict[tuple[UserID, str | None], tuple[float, JsonObject | None]] = OrderedDict()

    async def alias(self, alias: RoomAlias) -> tuple[RoomID, list[ServerName]]:
        """The room that an alias of another server stands for, and servers in it, its own among them."""
        server = server_of_alias(alias)
        answer = await self._get(server, "directory", {"room_alias": alias}, MAX_ALIAS_BYTES)
        room_id, named = answer.get("room_id"), answer.get("servers")
        if not is_room_id(room_id) or not isinstance(named, list):
            raise PeerUnreachable(server, "what it says of an alias is malformed")
        servers = dict.fromkeys([server, *(name for name in named[:MAX_SERVERS] if is_server_name(name))])
        return room_id, list(servers)[:MAX_SERVERS]

    async def profile(self, user_id: UserID, field: str | None) -> JsonObject:
        """A user's profile, or one field of it, empty where that is not set: as it was within the last minute."""
        known = self._remembered(user_id, field)
        if known is None:
            known = await self._ask_profile(user_id, field)
        if field is None:
            return known
        return {field: known[field]} if field in known else {}

    async def public_rooms(self, server: ServerName, body: JsonObject) -> JsonObject:
        """A page of another server's published rooms; `body` is as for the client's endpoint."""
        path = "/_matrix/federation/v1/publicRooms"
        try:
            answer = await self._client.post(server, path, body, patient=True, max_bytes=MAX_ROOMS_BYTES)
        except PeerRefused as refusal:
            raise _as_told(refusal, f"The server {server} has no such list of rooms") from None
        return read_page(server, answer)

    async def _ask_profile(self, user_id: UserID, field: str | None) -> JsonObject:
        server = server_name_of(user_id)
        query = {"user_id": user_id} if field is None else {"user_id": user_id, "field": field}
        try:
            answer = await self._get(server, "profile", query, MAX_PROFILE_BYTES)
        except NotFound:
            self._remember(user_id, field, None)
            raise
        profile, size = read_profile(server, answer)
        if size <= MAX_REMEMBERED:
            self._remember(user_id, field, profile)
        return profile

    def _remembered(self, user_id: UserID, field: str | None) -> JsonObject | None:
        """What is known of the user, which may be more than the field; raises NotFound for whom there is none."""
        for key in ((user_id, None), (user_id, field)):
            until, profile = self._profiles.get(key, (0.0, None))
            if until > self._clock():
                if profile is None:
                    raise NotFound(_unknown(server_name_of(user_id), "profile"))
                return profile
        return None

    def _remember(self, user_id: UserID, field: str | None, profile: JsonObject | None) -> None:
        if len(user_id) + len(field or "") > MAX_REMEMBERED:
            return
        self._profiles[user_id, field] = (self._clock() + PROFILE_SECONDS, profile)
        self._profiles.move_to_end((user_id, field))
        if len(self._profiles) > MAX_PROFILES:
            self._profiles.popitem(last=False)

    async def _get(self, server: ServerName, what: str, query: Mapping[str, str], max_bytes: int) -> JsonObject:
        path = f"/_matrix/federation/v1/query/{what}"
        try:
            return await self._client.get(server, path, query.items(), patient=True, max_bytes=max_bytes)
        except PeerRefused as refusal:
            raise _as_told(refusal, _unknown(server, what)) from None


_NAMES = {"directory": "alias", "profile": "user"}


def _unknown(server: ServerName, what: str) -> str:
    return f"The server {server} knows no such {_NAMES[what]}"


def _as_told(refusal: PeerRefused, unknown: str) -> MatrixError:
    """What the client is told of a refusal: that there is nothing, or that it may not know, is an answer."""
    if refusal.status == 404:
        return NotFound(unknown)
    if refusal.status == 403:
        return Forbidden(refusal.message)
    if refusal.status == 400 and refusal.errcode == "M_INVALID_PARAM":
        return InvalidInput(refusal.message)
    return refusal
