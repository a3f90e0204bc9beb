"""Servers that publish keys, for tests: over TLS they answer whatever a test wants, and count who asks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from federation.protocol.types import ServerName
from tests.client import Server
from tests.federation.authority import Authority
from tests.federation.peer import Peer

Respond = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class KeyServer:
    """A peer that listens: `answer` is what it says of its keys, `respond` how, unless as JSON."""

    peer: Peer
    answer: Any = None
    respond: Respond | None = None
    asked: list[str] = field(default_factory=list)
    """The path of every request."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> ServerName:
        """Its name, with the port."""
        return self.peer.name

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        self.asked.append(request.path)
        await self.may_answer.wait()
        if self.respond is not None:
            return await self.respond(request)
        answer = self.peer.key_answer() if self.answer is None else self.answer
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


@asynccontextmanager
async def key_server(server: Server, authority: Authority) -> AsyncIterator[KeyServer]:
    """A peer of this server that publishes its key until the end of the block."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    listening: list[KeyServer] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await listening[0].handle(request)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    listening.append(KeyServer(Peer(server, f"127.0.0.1:{runner.addresses[0][1]}")))
    listening[0].may_answer.set()
    yield listening[0]
    await runner.cleanup()
