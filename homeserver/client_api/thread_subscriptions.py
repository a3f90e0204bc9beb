"""Following threads (MSC4306), and paging back through what changed of it (MSC4308)."""

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import is_event_id
from federation.web import Answer, Call
from homeserver.client_api.reading_events import direction, place
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.services.thread_subscriptions import ThreadSubscriptionService
from storage.database import Database
from storage.tail import Tail

MAX_LIMIT = 100


class ThreadSubscriptionsAPI:
    """A user's subscriptions to threads."""

    def __init__(self, database: Database, tail: Tail, service: ThreadSubscriptionService) -> None:
        self._database = database
        self._tail = tail
        self._service = service

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        one = "unstable/io.element.msc4306/rooms/{room_id}/thread/{event_id}/subscription"
        changes = "unstable/io.element.msc4308/thread_subscriptions"
        return [
            ClientRoute(method="GET", path=one, endpoint=self.get, limit="requests"),
            ClientRoute(method="PUT", path=one, endpoint=self.put, limit="requests"),
            ClientRoute(method="DELETE", path=one, endpoint=self.delete, limit="requests"),
            ClientRoute(method="GET", path=changes, endpoint=self.get_changes, limit="requests"),
        ]

    async def get(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/thread/{eventId}/subscription."""
        user_id = requester(call).user_id
        return {"automatic": await self._service.is_automatic(user_id, call.path["room_id"], call.path["event_id"])}

    async def put(self, call: Call) -> Answer:
        """PUT the same; `automatic` names the event that a client subscribes for."""
        cause = (await call.body(optional=True)).get("automatic")
        if cause is not None and not is_event_id(cause):
            raise InvalidInput("automatic must be the ID of an event")
        await self._service.subscribe(requester(call).user_id, call.path["room_id"], call.path["event_id"], cause)
        return {}

    async def delete(self, call: Call) -> Answer:
        """DELETE the same."""
        await self._service.unsubscribe(requester(call).user_id, call.path["room_id"], call.path["event_id"])
        return {}

    async def get_changes(self, call: Call) -> Answer:
        """GET /thread_subscriptions: the newest first, from one token back to another."""
        if not direction(call):
            raise InvalidInput("dir must be b")
        start, stop = place(call, "from"), place(call, "to")
        upto = self._tail.position if start is None else start
        limit = call.query_int("limit", MAX_LIMIT, minimum=1, maximum=MAX_LIMIT)
        async with self._database.read() as tx:
            changes = await self._service.changes(tx, requester(call).user_id, stop or 0, upto, limit=limit)
        return changes.told if changes.end is None else {**changes.told, "end": changes.end}
