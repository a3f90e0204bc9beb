"""Stored filters (Client-Server API, "Filtering")."""

from federation.web import Answer, Call
from homeserver.client_api.own_user import own_user
from homeserver.services.filters import MAX_FILTER_BYTES, FilterService


class FilteringAPI:
    """Keeping a filter and getting it back."""

    def __init__(self, filters: FilterService) -> None:
        self._filters = filters

    async def post_filter(self, call: Call) -> Answer:
        """POST /user/{userId}/filter."""
        user_id = own_user(call)
        return {"filter_id": await self._filters.store(user_id, await call.body(max_bytes=MAX_FILTER_BYTES))}

    async def get_filter(self, call: Call) -> Answer:
        """GET /user/{userId}/filter/{filterId}."""
        return await self._filters.get(own_user(call), call.path["filter_id"])
