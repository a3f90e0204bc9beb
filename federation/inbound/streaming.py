"""Answers that are too large to be put together first: JSON in pieces, for peers that may read slowly or not at all."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

logger = logging.getLogger(__name__)

SECONDS = 900
"""In so long a peer must have read all of an answer."""


async def stream_json(request: web.BaseRequest, pieces: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Answer 200 with these pieces as they are made. What fails after it was begun can only break off."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        async with asyncio.timeout(SECONDS), aclosing(pieces):
            async for piece in pieces:
                await response.write(piece)
            await response.write_eof()
    except ConnectionError:
        raise
    except Exception as error:
        logger.exception("the answer to %s broke off", request.path)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("broken off") from error
    return response
