"""Spaces (Client-Server API v1.19, "Spaces")."""

from federation.web import Answer, Call
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.services.spaces import DEFAULT_LIMIT, MAX_DEPTH, MAX_LIMIT, Query, SpaceService


class SpacesAPI:
    """The rooms in spaces."""

    def __init__(self, spaces: SpaceService) -> None:
        self._spaces = spaces

    def routes(self) -> list[ClientRoute]:
        """The endpoint."""
        return [
            ClientRoute(
                method="GET",
                path="v1/rooms/{room_id}/hierarchy",
                endpoint=self.get_hierarchy,
                limit="requests",
                unstable=("unstable/org.matrix.msc2946/rooms/{room_id}/hierarchy",),
            )
        ]

    async def get_hierarchy(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/hierarchy."""
        query = Query(
            room_id=call.path["room_id"],
            suggested_only=call.query_bool("suggested_only"),
            max_depth=call.query_int("max_depth", MAX_DEPTH, maximum=MAX_DEPTH),
            limit=call.query_int("limit", DEFAULT_LIMIT, minimum=1, maximum=MAX_LIMIT),
            since=call.query_text("from"),
        )
        return await self._spaces.page(requester(call).user_id, query)
