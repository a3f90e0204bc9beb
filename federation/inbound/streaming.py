"""Answers that are too large to be put together first, for peers that may read them slowly or not at all."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from aiohttp import web
from msgspec import Struct, field

from federation.protocol.errors import LimitExceeded
from federation.protocol.types import ServerName
from federation.web import SERVING

logger = logging.getLogger(__name__)

SECONDS = 900
"""In so long a peer must have read all of an answer."""

STALLED_SECONDS = 60
"""For so long it may read nothing."""

PER_ORIGIN = 4
"""Large answers that are made for one server at a time; each keeps the state of a room in memory."""

MAX_WAITING = 50
"""More that one server asked for meanwhile, and waits for."""

PATIENCE_SECONDS = 30


async def stream_json(request: web.BaseRequest, pieces: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Answer 200 with these pieces of JSON as they are made."""
    return await stream(request, pieces, "application/json")


async def stream(
    request: web.BaseRequest, pieces: AsyncGenerator[bytes, None], content_type: str
) -> web.StreamResponse:
    """Answer 200 with these pieces as they are made. What fails after it was begun can only break off, not raise."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    serving = SERVING.get()
    if serving is not None:
        response.headers["X-Request-ID"] = serving.request_id
    await response.prepare(request)
    try:
        async with asyncio.timeout(SECONDS), aclosing(pieces):
            async for piece in pieces:
                async with asyncio.timeout(STALLED_SECONDS):
                    await response.write(piece)
            await response.write_eof()
    except ConnectionError:
        raise
    except TimeoutError:
        logger.info("the answer to %s was not read", request.path)
        _break_off(request)
    except Exception:
        logger.exception("the answer to %s broke off", request.path)
        _break_off(request)
    return response


def _break_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


class _Line(Struct):
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PER_ORIGIN))
    asked: int = 0


class LargeAnswers:
    """How many large answers each server gets at a time."""

    def __init__(self) -> None:
        self._lines: dict[ServerName, _Line] = {}

    @asynccontextmanager
    async def turn(self, origin: ServerName) -> AsyncIterator[None]:
        """One answer, when it is its turn; raises LimitExceeded where too many are waited for, or it takes too long."""
        line = self._lines.setdefault(origin, _Line())
        if line.asked >= PER_ORIGIN + MAX_WAITING:
            raise LimitExceeded(PATIENCE_SECONDS * 1000)
        line.asked += 1
        try:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await line.slots.acquire()
            except TimeoutError:
                raise LimitExceeded(PATIENCE_SECONDS * 1000) from None
            try:
                yield
            finally:
                line.slots.release()
        finally:
            line.asked -= 1
            if not line.asked:
                del self._lines[origin]
