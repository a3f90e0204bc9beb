"""Other servers for tests of what we answer: each is a name and a key, and signs requests.

    async def test_something(server: Server) -> None:
        peer = await a_peer(server)
        status, body = await peer.get("/_matrix/federation/v1/query/profile", params={"user_id": ...})

A peer listens nowhere. Its key is in our database as if it had been fetched.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
import yarl

from federation.protocol import request_signing, server_keys, signatures
from federation.protocol.event_hashes import encode_base64
from federation.protocol.request_signing import SignedRequest
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName
from storage import server_keys as stored_keys
from tests.clients import Answer, Server, unique

DAY_MS = 24 * 3600 * 1000


def now_ms() -> int:
    """The time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Peer:
    """Another server, as ours sees it."""

    server: Server
    name: ServerName
    key: SigningKey

    def header(self, method: str, uri: str, content: bytes | None) -> str:
        """The Authorization header of a request to our server."""
        request = SignedRequest(
            method=method, uri=uri, origin=self.name, destination=ServerName(self.server.name), content=content
        )
        return request_signing.make_header(request, self.key)

    async def request(
        self, method: str, path: str, body: JsonObject | None = None, *, params: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a signed request; `path` is whole, with its segments encoded."""
        uri = path if not params else f"{path}?{urlencode(params)}"
        content = None if body is None else orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        return await self.send(method, uri, content, self.header(method, uri, content))

    async def send(self, method: str, uri: str, content: bytes | None, authorization: str | None) -> Answer:
        """Send these bytes as they are, signed or not."""
        headers = {} if authorization is None else {"Authorization": authorization}
        url = yarl.URL(self.server.base_url + uri, encoded=True)
        async with self.server.anonymous.session.request(method, url, data=content, headers=headers) as response:
            data = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(response.status, orjson.loads(data) if is_json else data, response.headers)

    async def get(self, path: str, *, params: Mapping[str, str] | None = None) -> Answer:
        """A signed GET."""
        return await self.request("GET", path, params=params)

    async def put(self, path: str, body: JsonObject, *, params: Mapping[str, str] | None = None) -> Answer:
        """A signed PUT."""
        return await self.request("PUT", path, body, params=params)

    async def post(self, path: str, body: JsonObject, *, params: Mapping[str, str] | None = None) -> Answer:
        """A signed POST."""
        return await self.request("POST", path, body, params=params)


async def a_peer(server: Server, name: str | None = None, *, seed: bytes | None = None) -> Peer:
    """A server whose key ours knows."""
    name = name or f"{unique('peer')}.example"
    key = SigningKey.from_seed("peer", seed or name.encode()[:32].ljust(32, b"."))
    peer = Peer(server, ServerName(name), key)
    answer = a_key_answer(peer.name, peer.key)
    async with server.application.database.transaction() as tx:
        await stored_keys.save(tx, [server_keys.parse(answer, peer.name, now_ms())], now_ms())
    return peer


def a_key_answer(name: ServerName, key: SigningKey, **changes: Any) -> JsonObject:
    """What a server says of its key, signed by it; `changes` replace members before that."""
    answer = {
        "server_name": name,
        "verify_keys": {key.key_id: {"key": encode_base64(key.public_key)}},
        "old_verify_keys": {},
        "valid_until_ts": now_ms() + DAY_MS,
        **changes,
    }
    return signatures.sign_json(answer, name, key)
