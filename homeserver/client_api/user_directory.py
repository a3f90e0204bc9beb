"""Searching users (Client-Server API v1.19, "User Directory")."""

from collections.abc import Sequence

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, ServerName
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.routing import ClientRoute, requester
from storage import user_directory
from storage.database import Database
from storage.search_words import fold, name_query
from storage.user_directory import Found

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
_LOOKED_AT = 300
"""Users of each kind among whom the best are chosen."""
MAX_TERM = 1_000


class UserDirectoryAPI:
    """The endpoint."""

    def __init__(self, database: Database, server_name: ServerName, *, all_local: bool) -> None:
        self._database = database
        self._server_name = server_name
        self._all_local = all_local

    def routes(self) -> list[ClientRoute]:
        """The endpoint."""
        path = "v3/user_directory/search"
        return [ClientRoute(method="POST", path=path, endpoint=self.post_search, limit="requests")]

    async def post_search(self, call: Call) -> Answer:
        """POST /user_directory/search."""
        who = requester(call)
        body = await call.body()
        term, limit = fields.get_text(body, "search_term"), fields.find_int(body, "limit")
        if limit is not None and limit < 0:
            raise InvalidInput("limit must not be negative")
        if len(term) > MAX_TERM:
            raise InvalidInput(f"search_term may have {MAX_TERM} characters")
        limit = DEFAULT_LIMIT if limit is None else min(limit, MAX_LIMIT)
        beginnings = name_query(term)
        if not beginnings:
            return {"results": [], "limited": False}
        async with self._database.read() as tx:
            found, has_more = await user_directory.search(
                tx, who.user_id, beginnings, all_local=self._all_local, limit=_LOOKED_AT
            )
        best = sorted(found, key=lambda each: self._order(each, term, beginnings))[:limit]
        return {"results": [_result(each) for each in best], "limited": has_more or len(found) > len(best)}

    def _order(self, found: Found, term: str, beginnings: Sequence[str]) -> tuple[object, ...]:
        """Who is called exactly so comes first, then who has all these words, then users of ours, then names."""
        wanted = fold(term.strip())
        local_part, _, server = found.user_id[1:].partition(":")
        is_exact = wanted in (fold(found.display_name or ""), local_part, found.user_id)
        whole_words = sum(beginning in found.words for beginning in beginnings)
        return (
            not is_exact,
            -whole_words,
            found.display_name is None,
            server != self._server_name,
            fold(found.display_name or local_part),
            found.user_id,
        )


def _result(found: Found) -> JsonObject:
    result: JsonObject = {"user_id": found.user_id}
    if found.display_name is not None:
        result["display_name"] = found.display_name
    if found.avatar_url is not None:
        result["avatar_url"] = found.avatar_url
    return result
