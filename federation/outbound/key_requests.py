"""Asking for keys over the network, for `key_fetching.py` (Server-Server API, "Retrieving server keys")."""

from federation.outbound.client import FederationClient
from federation.protocol.types import JsonObject, ServerName

NOTARY_SECONDS = 30.0
"""A notary may have to ask others first."""

MAX_OWN_BYTES = 64 * 1024
"""Of what a server says of itself, all of which is stored."""

MAX_NOTARY_BYTES = 10 * 1024 * 1024


class KeyRequests:
    """A `KeySource`. It asks servers in back-off, too: one that comes back may do so with a request to be verified."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def get_keys(self, server_name: ServerName, timeout: float) -> JsonObject:
        """What the server says of itself, within so many seconds."""
        path = "/_matrix/key/v2/server"
        return await self._client.get(server_name, path, timeout=timeout, max_bytes=MAX_OWN_BYTES, patient=True)

    async def query_notary(self, notary: ServerName, body: JsonObject) -> JsonObject:
        """What a notary says of others."""
        path = "/_matrix/key/v2/query"
        return await self._client.post(notary, path, body, timeout=NOTARY_SECONDS, max_bytes=MAX_NOTARY_BYTES)
