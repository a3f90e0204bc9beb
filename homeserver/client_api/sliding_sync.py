"""Sliding sync (MSC4186): `POST v4/sync` as accepted, and the form that was deployed before."""

from collections import OrderedDict

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, UserID
from federation.web import Answer, Call
from homeserver.client_api import sliding_forms
from homeserver.client_api.fields import find_int, find_text
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.client_api.syncing import PRESENCE
from homeserver.services.presence import PresenceService
from homeserver.services.sliding_request import Form, SlidingRequest, Wanted
from homeserver.services.sliding_sync import SlidingSyncService

MAX_BODY_BYTES = 1024 * 1024
MAX_REMEMBERED = 1_000
"""Bodies, which clients repeat with every request."""
MAX_REMEMBERED_BYTES = 8 * 1024
"""Of one of them."""
MAX_ALL_REMEMBERED_BYTES = 2 * 1024 * 1024
"""What is made of them takes ten times as much."""

_Asked = tuple[Wanted, str | None, str | None, str | None]


class SlidingSyncAPI:
    """Sliding sync."""

    def __init__(self, syncs: SlidingSyncService, presence: PresenceService) -> None:
        self._syncs = syncs
        self._presence = presence
        self._remembered: OrderedDict[tuple[UserID, bytes], _Asked] = OrderedDict()
        self._remembered_bytes = 0

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        return [
            ClientRoute(method="POST", path=path, endpoint=endpoint, guests=True, waits=True, limit="requests")
            for path, endpoint in (
                ("v4/sync", self.sync),
                ("unstable/org.matrix.simplified_msc3575/sync", self.sync_as_deployed),
            )
        ]

    async def sync(self, call: Call) -> Answer:
        """POST /v4/sync: all is in the body."""
        who = requester(call)
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        timeout_ms = find_int(body, "timeout") or 0
        if timeout_ms < 0:
            raise InvalidInput("timeout must be at least 0")
        request = SlidingRequest(
            requester=who,
            form=Form.ACCEPTED,
            wanted=sliding_forms.parse(Form.ACCEPTED, body, who.user_id),
            conn_id=find_text(body, "conn_id") or "",
            pos=find_text(body, "pos"),
            timeout_ms=timeout_ms,
            to_device_since=sliding_forms.to_device_since(body),
            is_abandoned=lambda: call.request.transport is None,
        )
        return await self._answer(request, find_text(body, "set_presence"))

    async def sync_as_deployed(self, call: Call) -> Answer:
        """POST /unstable/org.matrix.simplified_msc3575/sync: the client's place is in the query."""
        who = requester(call)
        data = await call.raw_body(MAX_BODY_BYTES)
        key = (who.user_id, data)
        asked = self._remembered.get(key)
        if asked is None:
            asked = _read(data, who.user_id)
            if len(data) <= MAX_REMEMBERED_BYTES:
                self._remember(key, asked)
        else:
            self._remembered.move_to_end(key)
        wanted, conn_id, to_device_since, txn_id = asked
        request = SlidingRequest(
            requester=who,
            form=Form.DEPLOYED,
            wanted=wanted,
            conn_id=conn_id or "",
            pos=call.query_text("pos") or None,
            timeout_ms=call.query_int("timeout", 0),
            to_device_since=to_device_since,
            txn_id=txn_id,
            is_abandoned=lambda: call.request.transport is None,
        )
        return await self._answer(request, call.query_text("set_presence"))

    def _remember(self, key: tuple[UserID, bytes], asked: _Asked) -> None:
        self._remembered[key] = asked
        self._remembered_bytes += len(key[1])
        while len(self._remembered) > MAX_REMEMBERED or self._remembered_bytes > MAX_ALL_REMEMBERED_BYTES:
            (_, oldest), _ = self._remembered.popitem(last=False)
            self._remembered_bytes -= len(oldest)

    async def _answer(self, request: SlidingRequest, presence: str | None) -> bytes:
        if presence not in PRESENCE:
            raise InvalidInput("set_presence must be online, unavailable or offline")
        await self._presence.synced(request.requester.user_id, PRESENCE[presence])
        return await self._syncs.sync(request)


def _read(data: bytes, user_id: UserID) -> _Asked:
    body = canonical_json.loads(data)
    if not isinstance(body, dict):
        raise InvalidInput("The body must be a JSON object", "M_BAD_JSON")
    given: JsonObject = body
    return (
        sliding_forms.parse(Form.DEPLOYED, given, user_id),
        find_text(given, "conn_id"),
        sliding_forms.to_device_since(given),
        find_text(given, "txn_id"),
    )
