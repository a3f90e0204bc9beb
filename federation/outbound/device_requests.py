"""What other servers are asked about the devices of their users (Server-Server API v1.18, "Device Management",
"End-to-End Encryption"). Nothing in the answers is checked but that they are JSON objects and not too large."""

from collections.abc import Collection, Mapping

from federation.outbound.client import FederationClient, path_of
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import DeviceID, JsonObject, ServerName, UserID

MAX_BYTES = 8 * 1024 * 1024
QUERY_SECONDS = 10.0
"""For what a client waits for."""
LIST_SECONDS = 30.0


class DeviceRequests:
    """Questions to one server each. Raises PeerFailed."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def list_devices(self, user_id: UserID) -> JsonObject:
        """All devices of a user, with the `stream_id` that updates follow."""
        path = path_of("/_matrix/federation/v1/user/devices/{}", user_id)
        return await self._client.get(server_name_of(user_id), path, timeout=LIST_SECONDS, max_bytes=MAX_BYTES)

    async def query(self, server: ServerName, wanted: Mapping[UserID, Collection[str]]) -> JsonObject:
        """Keys of users; an empty collection means all devices."""
        body = {"device_keys": {user_id: sorted(devices) for user_id, devices in wanted.items()}}
        return await self._post(server, "query", body)

    async def claim(self, server: ServerName, wanted: Mapping[UserID, Mapping[DeviceID, str]]) -> JsonObject:
        """A one-time key of each device, by algorithm."""
        return await self._post(server, "claim", {"one_time_keys": wanted})

    async def _post(self, server: ServerName, what: str, body: JsonObject) -> JsonObject:
        path = f"/_matrix/federation/v1/user/keys/{what}"
        return await self._client.post(server, path, body, timeout=QUERY_SECONDS, max_bytes=MAX_BYTES)
