"""`GET /sync` (Client-Server API, "Syncing")."""

from federation.protocol.errors import InvalidInput
from federation.web import Answer, Call
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.services.filters import FilterService
from homeserver.services.presence import PresenceService
from homeserver.services.sync import SyncRequest, SyncService
from homeserver.tokens import parse_stream_token
from storage.ephemeral import PresenceState

PRESENCE: dict[str | None, PresenceState] = {
    None: "online",
    "online": "online",
    "unavailable": "unavailable",
    "offline": "offline",
}


class SyncAPI:
    """Syncing."""

    def __init__(self, syncs: SyncService, filters: FilterService, presence: PresenceService) -> None:
        self._syncs = syncs
        self._filters = filters
        self._presence = presence

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        return [
            ClientRoute(method="GET", path="v3/sync", endpoint=self.sync, guests=True, waits=True, limit="requests")
        ]

    async def sync(self, call: Call) -> Answer:
        """What happened since a token, at once or as soon as something does."""
        who = requester(call)
        since = call.query_text("since")
        unstable = call.query_bool("org.matrix.msc4222.use_state_after")
        presence = call.query_text("set_presence")
        if presence not in PRESENCE:
            raise InvalidInput("set_presence must be online, unavailable or offline")
        request = SyncRequest(
            requester=who,
            since=None if not since else parse_stream_token(since),
            filter=await self._filters.resolve(who.user_id, call.query_text("filter")),
            timeout_ms=call.query_int("timeout", 0),
            full_state=call.query_bool("full_state"),
            use_state_after=unstable or call.query_bool("use_state_after"),
            is_msc4222=unstable,
        )
        await self._presence.synced(who.user_id, PRESENCE[presence])
        return await self._syncs.sync(request)
