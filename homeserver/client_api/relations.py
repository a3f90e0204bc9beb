"""What relates to an event, and a room's threads (Client-Server API v1.19, "Relationships API", "Threading")."""

from typing import Any

import orjson
from msgspec.structs import replace

from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.rooms.aggregations import Onlooker
from federation.rooms.pages import PageRequest
from federation.rooms.relations import DEPTH, RelationReader, Wanted
from federation.web import Answer, Call
from homeserver.client_api.reading_events import DEFAULT_LIMIT, RoomReading, fragments, place
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.tokens import page_token

MAX_LIMIT = 100


class RelationsAPI:
    """Events by what they relate to."""

    def __init__(self, reading: RoomReading) -> None:
        self._reading = reading
        self._relations = RelationReader(reading.reader, reading.aggregations)

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        relations = "rooms/{room_id}/relations/{event_id}"
        return [
            *(
                ClientRoute(
                    method="GET", path=f"v1/{path}", endpoint=self.get_relations, unstable=(f"unstable/{path}",)
                )
                for path in (relations, f"{relations}/{{rel_type}}", f"{relations}/{{rel_type}}/{{event_type}}")
            ),
            ClientRoute(
                method="GET",
                path="v1/rooms/{room_id}/threads",
                endpoint=self.get_threads,
                limit="requests",
                unstable=("unstable/org.matrix.msc3856/rooms/{room_id}/threads",),
            ),
        ]

    async def get_relations(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/relations/{eventId}[/{relType}[/{eventType}]]."""
        who = requester(call)
        recurse = _recurse(call)
        request = PageRequest(
            backwards=_backwards(call),
            start=place(call, "from"),
            stop=place(call, "to"),
            limit=call.query_int("limit", DEFAULT_LIMIT, minimum=1, maximum=MAX_LIMIT),
        )
        reading = self._reading
        async with reading.database.read() as tx:
            try:
                access = await reading.reader.access(tx, call.path["room_id"], who.user_id)
            except Forbidden as error:
                raise NotFound("There is no such event") from error
            wanted = Wanted(
                await reading.reader.event(tx, access, call.path["event_id"]),
                call.path.get("rel_type"),
                call.path.get("event_type"),
                recurses=recurse is True,
            )
            ignored = await reading.account_data.ignored_users(tx, who.user_id)
            page = await self._relations.children(tx, access, wanted, replace(request, ignored=ignored))
            answer: dict[str, Any] = {"chunk": fragments(await reading.render(tx, who, page.seen))}
        if page.end is not None:
            answer["next_batch"] = page_token(page.end)
        if call.query_text("from"):
            answer["prev_batch"] = call.query_text("from")
        if recurse is not None:
            answer["recursion_depth"] = DEPTH if recurse else 1
        return orjson.dumps(answer)

    async def get_threads(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/threads."""
        who = requester(call)
        include = call.query_text("include") or "all"
        if include not in ("all", "participated"):
            raise InvalidInput("include must be all or participated")
        request = PageRequest(
            backwards=True,
            start=place(call, "from"),
            limit=call.query_int("limit", DEFAULT_LIMIT, minimum=1, maximum=MAX_LIMIT),
        )
        reading = self._reading
        async with reading.database.read() as tx:
            access = await reading.reader.access(tx, call.path["room_id"], who.user_id)
            ignored = await reading.account_data.ignored_users(tx, who.user_id)
            page = await self._relations.threads(
                tx,
                access,
                Onlooker(who.user_id, ignored, who.device),
                request,
                participated=include == "participated",
            )
            rendered = await reading.reader.render(tx, page.roots, who.device, page.bundles)
        answer: dict[str, Any] = {"chunk": fragments(rendered)}
        if page.end is not None:
            answer["next_batch"] = page_token(page.end)
        return orjson.dumps(answer)


def _backwards(call: Call) -> bool:
    """Whether the newest come first, which is so unless `dir` says otherwise; the unstable name is an old one."""
    text = call.query_text("dir") or call.query_text("org.matrix.msc3715.dir") or "b"
    if text not in ("b", "f"):
        raise InvalidInput("dir must be b or f")
    return text == "b"


def _recurse(call: Call) -> bool | None:
    """Whether what relates indirectly is asked for; None where nothing is said of it."""
    for name in ("recurse", "org.matrix.msc3981.recurse"):
        if call.query_text(name) is not None:
            return call.query_bool(name)
    return None
