"""Pages of the published room directory (Client-Server API v1.19, "Published room directory").

Rooms with most members come first. A token names the last room of a page, so rooms that come, go or grow meanwhile
move no others; a filter looks at summaries that are remembered while the rooms' state stays.
"""

from collections.abc import Collection

from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from federation.rooms.summaries import RoomSummaries, Summary
from storage import room_directory
from storage.database import Database, Tx
from storage.room_directory import Published

MAX_LIMIT = 500
DEFAULT_LIMIT = 50
CHUNK = 200


class Query(Struct, frozen=True, kw_only=True):
    """What somebody looks for."""

    limit: int = DEFAULT_LIMIT
    since: str | None = None
    search_term: str | None = None
    """Already case-folded."""
    room_types: Collection[str | None] | None = None
    networks: Collection[str] | None = ("",)
    """None: the directory and every network of application services."""


class _Token(Struct, frozen=True):
    is_backwards: bool
    joined_members: int
    number: int

    @classmethod
    def parse(cls, text: str) -> "_Token":
        parts = text[1:].split("_")
        if text[:1] not in ("n", "p") or len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise InvalidInput("since is no token of this directory")
        if any(len(part) > 9 for part in parts):
            raise InvalidInput("since is no token of this directory")
        return cls(text[0] == "p", int(parts[0]), int(parts[1]))

    def __str__(self) -> str:
        return f"{'p' if self.is_backwards else 'n'}{self.joined_members}_{self.number}"


class PublishedRooms:
    """Reads the directory."""

    def __init__(self, database: Database, summaries: RoomSummaries) -> None:
        self._database = database
        self._summaries = summaries

    async def page(self, query: Query) -> JsonObject:
        """One page, as the API answers it."""
        token = None if query.since is None else _Token.parse(query.since)
        backwards = token is not None and token.is_backwards
        wanted = min(query.limit, MAX_LIMIT)
        async with self._database.read() as tx:
            found = await self._collect(tx, query, token, wanted + 1)
            total = await room_directory.count_published(tx)
        has_more = len(found) > wanted
        found = found[:wanted]
        if backwards:
            found.reverse()
        body: JsonObject = {
            "chunk": [summary.as_json(room.joined_members) for room, summary in found],
            "total_room_count_estimate": total,
        }
        if found:
            first, last = found[0][0], found[-1][0]
            if has_more or backwards:
                body["next_batch"] = str(_Token(False, last.joined_members, last.number))
            if has_more if backwards else token is not None:
                body["prev_batch"] = str(_Token(True, first.joined_members, first.number))
        return body

    async def _collect(
        self, tx: Tx, query: Query, token: _Token | None, wanted: int
    ) -> list[tuple[Published, Summary]]:
        """The next rooms that match, in the token's direction."""
        backwards = token is not None and token.is_backwards
        after = None if token is None else (token.joined_members, token.number)
        found: list[tuple[Published, Summary]] = []
        while len(found) < wanted:
            rooms = await room_directory.page(tx, query.networks, after, limit=CHUNK, backwards=backwards)
            summaries = await self._summaries.get_many(tx, [room.number for room in rooms])
            found += [
                (room, summaries[room.number])
                for room in rooms
                if room.number in summaries and _matches(summaries[room.number], query)
            ]
            if len(rooms) < CHUNK:
                break
            after = (rooms[-1].joined_members, rooms[-1].number)
        return found[:wanted]


def _matches(summary: Summary, query: Query) -> bool:
    if query.room_types is not None and summary.room_type not in query.room_types:
        return False
    if not query.search_term:
        return True
    term = query.search_term
    texts = (summary.name, summary.topic, summary.canonical_alias)
    return any(text is not None and term in text.casefold() for text in texts)
