"""Rooms from outside (Client-Server API v1.19, "Room Summaries", "Mutual rooms")."""

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import check_user_id
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.routing import ClientRoute, Login, optional_requester, requester
from homeserver.services.room_summaries import RoomSummaryService
from storage import memberships
from storage.database import Database

MUTUAL_ROOMS_PAGE = 100


class RoomSummariesAPI:
    """Rooms as others know them."""

    def __init__(self, database: Database, summaries: RoomSummaryService) -> None:
        self._database = database
        self._summaries = summaries

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        old = "unstable/im.nheko.summary"
        stable = ClientRoute(
            method="GET",
            path="v1/room_summary/{room}",
            endpoint=self.get_summary,
            login=Login.OPTIONAL,
            limit="requests",
            guests=True,
        )
        unstable = [
            ClientRoute(
                method="GET",
                path=f"{old}/{path}",
                endpoint=self.get_unstable_summary,
                login=Login.OPTIONAL,
                limit="requests",
                guests=True,
            )
            for path in ("summary/{room}", "rooms/{room}/summary")
        ]
        mutual = ClientRoute(
            method="GET",
            path="v1/mutual_rooms",
            endpoint=self.get_mutual_rooms,
            limit="requests",
            unstable=("unstable/uk.half-shot.msc2666/user/mutual_rooms",),
        )
        return [stable, *unstable, mutual]

    async def get_summary(self, call: Call) -> Answer:
        """GET /room_summary/{roomIdOrAlias}."""
        return await self._get(call)

    async def get_unstable_summary(self, call: Call) -> Answer:
        """The same with the names that MSC3266 gave two members before it was accepted."""
        summary = await self._get(call)
        old = {
            f"im.nheko.summary.{name}": summary[member]
            for name, member in (("room_version", "room_version"), ("version", "room_version"), ("encryption",) * 2)
            if member in summary
        }
        return summary | old

    async def _get(self, call: Call) -> JsonObject:
        who = optional_requester(call)
        via = [value for name, value in call.query if name == "via"]
        return await self._summaries.get(call.path["room"], None if who is None else who.user_id, via)

    async def get_mutual_rooms(self, call: Call) -> Answer:
        """GET /mutual_rooms."""
        who = requester(call)
        text = call.query_text("user_id")
        if text is None:
            raise InvalidInput("user_id is required", "M_MISSING_PARAM")
        other = check_user_id(text)
        if other == who.user_id:
            raise InvalidInput("user_id is your own")
        after = _after(call.query_text("from"))
        async with self._database.read() as tx:
            shared = await memberships.mutual_rooms(tx, who.user_id, other)
        rest = [(number, room_id) for number, room_id in shared if number > after]
        shown = rest[:MUTUAL_ROOMS_PAGE]
        answer: dict[str, object] = {"joined": [room_id for _, room_id in shown], "count": len(shared)}
        if len(rest) > len(shown):
            answer["next_batch"] = f"m{shown[-1][0]}"
        return answer


def _after(token: str | None) -> int:
    if token is None:
        return 0
    if not token.startswith("m") or not token[1:].isdecimal() or not token.isascii() or len(token) > 10:
        raise InvalidInput("from is no token of this endpoint")
    return int(token[1:])
