"""Filters as clients name them: inline, or by the number of a stored one (Client-Server API, "Filtering")."""

import orjson

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, NotFound, TooLarge
from federation.protocol.types import JsonObject, UserID
from homeserver.services.sync_filter import EVERYTHING, SyncFilter, parse_filter
from storage import account_data
from storage.database import Database

MAX_FILTER_BYTES = 64 * 1024
MAX_FILTERS = 1000
_REMEMBERED = 2000
_REMEMBERED_BYTES = 4096
"""Larger ones are compiled for each sync: a user's thousand of them would fill the memory."""


class FilterService:
    """Stored filters; what is stored never changes, so compiled ones are remembered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stored: dict[tuple[UserID, str], SyncFilter] = {}
        self._inline: dict[str, SyncFilter] = {}

    async def resolve(self, user_id: UserID, text: str | None) -> SyncFilter:
        """The filter that a sync names; raises M_INVALID_PARAM for one that is not stored, M_BAD_JSON and the like."""
        if not text:
            return EVERYTHING
        if text.startswith("{"):
            return self._compile_inline(text)
        known = self._stored.get((user_id, text))
        if known is None:
            try:
                stored = await self.get(user_id, text)
                known = parse_filter(orjson.loads(stored))
            except NotFound:
                raise InvalidInput("There is no such filter") from None
            if len(self._stored) >= _REMEMBERED:
                self._stored.clear()
            if len(stored) < _REMEMBERED_BYTES:
                self._stored[user_id, text] = known
        return known

    def _compile_inline(self, text: str) -> SyncFilter:
        known = self._inline.get(text)
        if known is None:
            if len(text) > MAX_FILTER_BYTES:
                raise TooLarge("The filter is too large")
            known = parse_filter(canonical_json.loads(text))
            if len(self._inline) >= _REMEMBERED:
                self._inline.clear()
            if len(text) < _REMEMBERED_BYTES:
                self._inline[text] = known
        return known

    async def store(self, user_id: UserID, body: JsonObject) -> str:
        """Keep a filter; its ID. Raises M_BAD_JSON for what is none."""
        parse_filter(body)
        data = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        if len(data) > MAX_FILTER_BYTES:
            raise TooLarge("The filter is too large")
        async with self._database.transaction() as tx:
            number = await account_data.put_filter(tx, user_id, data, at_most=MAX_FILTERS)
        if number is None:
            raise TooLarge("This account has too many filters")
        return str(number)

    async def get(self, user_id: UserID, filter_id: str) -> bytes:
        """A stored filter's JSON; raises M_NOT_FOUND."""
        if filter_id.isascii() and filter_id.isdigit() and len(filter_id) < 10:
            async with self._database.read() as tx:
                found = await account_data.find_filter(tx, user_id, int(filter_id))
            if found is not None:
                return found
        raise NotFound("Unknown filter")
