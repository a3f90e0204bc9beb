"""Where an application service should be: what listens there, and keeps what it is asked."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: Any


class ListeningService:
    """Answers every request alike."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.status, self.text, self.seconds = 200, "{}", 0.0
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """On a port of this machine, which `url` names."""
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(Asked(request.path, dict(request.headers), await request.json()))
        await asyncio.sleep(self.seconds)
        return web.Response(status=self.status, text=self.text)
