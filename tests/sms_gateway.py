"""A gateway on loopback that takes SMS, and keeps them: for tests of phone numbers.

async with a_gateway() as gateway, running(conninfo, sms=gateway.settings()) as server:
    ...
    text = await gateway.next_for("4915112345678")
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from homeserver.config import SMS, Secret

TOKEN = "gateway token"
SECONDS = 20


@dataclass(slots=True)
class Gateway:
    """Takes SMS, unless it is told what to answer instead."""

    port: int = 0
    taken: list[tuple[str, str]] = field(default_factory=list)
    """Number and text."""
    bodies: list[Any] = field(default_factory=list)
    """All that it was asked, as it came."""
    authorizations: set[str | None] = field(default_factory=set)
    answers: dict[str, list[int]] = field(default_factory=dict)
    """By number the statuses that are answered to the next SMS to it, instead of taking them."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def settings(self, **changes: Any) -> SMS:
        """With which a Hearth sends its SMS here."""
        return SMS(url=f"http://127.0.0.1:{self.port}/send", token=Secret(TOKEN), **changes)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Take one."""
        body = await request.json()
        number = body["to"].removeprefix("+")
        self.bodies.append(body)
        self.authorizations.add(request.headers.get("Authorization"))
        async with self._changed:
            if self.answers.get(number):
                return web.Response(status=self.answers[number].pop(0))
            self.taken.append((number, body["text"]))
            self._changed.notify_all()
        return web.Response(status=202, text="x" * 100_000)

    def texts_to(self, number: str) -> list[str]:
        """What was sent to it, so far."""
        return [text for to, text in self.taken if to == number]

    async def next_for(self, number: str, index: int = 0) -> str:
        """The first text to this number, or a later one, once it is there."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.texts_to(number)) > index)
        return self.texts_to(number)[index]

    async def code_for(self, number: str, index: int = 0) -> str:
        """The code in it."""
        found = re.match(r"(\d{8}) ", text := await self.next_for(number, index))
        assert found is not None, text
        return found[1]


@asynccontextmanager
async def a_gateway(port: int = 0) -> AsyncIterator[Gateway]:
    """A gateway that listens until the end of the block."""
    gateway = Gateway()
    application = web.Application()
    application.router.add_post("/send", gateway.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    gateway.port = runner.addresses[0][1]
    try:
        yield gateway
    finally:
        await runner.cleanup()
