"""A peer that listens: it takes transactions as another server would, or fails in whatever way a test asks for."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from federation.protocol.types import JsonObject
from tests.client import Server
from tests.federation.authority import Authority
from tests.federation.peer import Peer, Reached
from tests.federation.servers import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Respond = Callable[[str, JsonObject], tuple[int, JsonObject]]


class ListeningPeer(Peer):
    """Another server with an address. What it was sent is in `transactions`, also what it refused."""

    def __init__(self, server: Reached, authority: Authority, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        super().__init__(server, f"127.0.0.1:{self.port}")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.issue("127.0.0.1"))
        self._runner: web.AppRunner | None = None
        self.transactions: list[tuple[str, JsonObject]] = []
        self.headers: list[set[str]] = []
        """The names of those that came with each."""
        self.taken: list[JsonObject] = []
        """Those that were answered with 200."""
        self.respond: Respond = lambda _txn_id, _body: (200, {"pdus": {}})
        self.answers = asyncio.Event()
        """While it is clear the peer takes requests and answers none."""
        self.answers.set()
        self._came = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        application = web.Application(middlewares=[self._while_listening])
        application.router.add_put("/_matrix/federation/v1/send/{txn_id}", self._take)
        application.router.add_get("/_matrix/key/v2/server", self._keys)
        self.routes(application)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._context, reuse_address=True).start()

    def routes(self, application: web.Application) -> None:
        """What else it serves: nothing, for a peer that only takes transactions."""

    async def stop(self) -> None:
        """Refuse connections."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @web.middleware
    async def _while_listening(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A connection that was being made when the peer stopped outlives that, and is of no use either."""
        if self._runner is None and request.transport is not None:
            request.transport.abort()
        return await handler(request)

    async def _keys(self, _request: web.Request) -> web.Response:
        return web.json_response(self.key_answer())

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.transactions.append((request.match_info["txn_id"], body))
        self.headers.append({name.lower() for name in request.headers})
        self._came.set()
        await self.answers.wait()
        status, answer = self.respond(request.match_info["txn_id"], body)
        if status == 200:
            self.taken.append(body)
        self._came.set()
        return web.json_response(answer, status=status)

    @property
    def pdus(self) -> list[JsonObject]:
        """The events that it took."""
        return [pdu for body in self.taken for pdu in body.get("pdus", [])]

    @property
    def messages(self) -> list[str]:
        """The texts of the messages among them."""
        return [pdu["content"]["body"] for pdu in self.pdus if pdu["type"] == "m.room.message"]

    def edus(self, edu_type: str) -> list[JsonObject]:
        """The contents of the EDUs of a type that it took."""
        return [edu["content"] for body in self.taken for edu in body.get("edus", []) if edu["edu_type"] == edu_type]

    async def until(self, condition: Callable[[], Any], seconds: float = 15) -> Any:
        """What `condition` finds once it finds something, after whatever transactions that takes."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                self._came.clear()
                await self._came.wait()
        return found

    async def until_messages(self, texts: Iterable[str], seconds: float = 15) -> None:
        """Wait until these have come."""
        wanted = set(texts)
        try:
            await self.until(lambda: wanted <= set(self.messages), seconds)
        except TimeoutError:
            raise AssertionError(f"{sorted(wanted - set(self.messages))} did not come; {self.messages} did") from None


@asynccontextmanager
async def listening(server: Reached, authority: Authority) -> AsyncIterator[ListeningPeer]:
    """A peer that the server trusts and reaches."""
    peer = ListeningPeer(server, authority)
    await peer.trust()
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


async def until_left_alone(server: Server, peer: ListeningPeer) -> None:
    """Wait until the server has seen that it cannot reach the peer."""
    async with asyncio.timeout(10):
        while not server.application.outbound.availability.seconds_left(peer.name):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.02)
