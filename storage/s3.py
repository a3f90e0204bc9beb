"""A bucket of an S3-compatible store: objects put, looked for, and read in pieces.

The operator names it, nobody else chooses what is asked of it, and every name in it is ours. So it is asked directly,
not by way of the client that guards against hostile addresses.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from msgspec import Struct
from yarl import URL

from federation.protocol.errors import Unavailable
from storage.s3_signing import NOTHING, Credentials, Unsigned, sign

logger = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2
IDLE_SECONDS = 30.0
CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 100
PIECE_BYTES = 64 * 1024

Result = TypeVar("Result")

_KEY = re.compile(r"<Key>([^<]*)</Key>")
"""In a list of objects. Ours have no character that XML would escape."""

_PASSING = frozenset((429, 500, 502, 503, 504))


class S3Object(Struct, frozen=True):
    """What the store says of an object."""

    size: int
    content_type: str


class _PassingError(Exception):
    """The store fails at the moment."""


class S3Bucket:
    """Requests to one bucket. What fails for a moment is tried again; then it raises Unavailable."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        """`address` is the bucket's, such as `https://s3.example.org/BUCKET`."""
        self._address = URL(address.rstrip("/"))
        self._credentials = credentials
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def put(self, key: str, content: Path | bytes, sha256: bytes, content_type: str) -> None:
        """Store an object whole, or not at all: the store compares what arrives with the hash."""
        hexadecimal = sha256.hex()

        async def attempt() -> None:
            data = content if isinstance(content, bytes) else await asyncio.to_thread(content.open, "rb")
            try:
                async with self._ask("PUT", key, {"Content-Type": content_type}, data, hexadecimal) as answer:
                    await self._check(answer, 200)
            finally:
                if not isinstance(data, bytes):
                    data.close()

        await _try(attempt)

    async def put_bytes(self, key: str, content: bytes, content_type: str) -> None:
        """The same for what is in memory."""
        await self.put(key, content, hashlib.sha256(content).digest(), content_type)

    async def find(self, key: str) -> S3Object | None:
        """What is known of an object; None where there is none."""

        async def attempt() -> S3Object | None:
            async with self._ask("HEAD", key) as answer:
                if answer.status == 404:
                    return None
                await self._check(answer, 200)
                return S3Object(int(answer.headers.get("Content-Length", 0)), answer.headers.get("Content-Type", ""))

        return await _try(attempt)

    async def read(self, key: str, first: int, end: int) -> AsyncGenerator[bytes, None]:
        """An object's bytes from `first` up to `end`, as they arrive; goes on where it broke off."""
        failures = 0
        while first < end:
            try:
                async with self._ask("GET", key, {"Range": f"bytes={first}-{end - 1}"}) as answer:
                    await self._check(answer, 206)
                    async for piece in answer.content.iter_chunked(PIECE_BYTES):
                        yield piece
                        first += len(piece)
                        failures = 0
            except (_PassingError, aiohttp.ClientError, TimeoutError) as error:
                failures += 1
                if failures == ATTEMPTS:
                    raise _unavailable(error) from error
                await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**failures)

    async def list(self, prefix: str) -> list[str]:
        """The keys that begin so: the first thousand."""

        async def attempt() -> list[str]:
            async with self._ask("GET", "", query=f"list-type=2&prefix={quote(prefix, safe='')}") as answer:
                await self._check(answer, 200)
                return _KEY.findall(await answer.text())

        return await _try(attempt)

    async def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

        async def attempt() -> None:
            async with self._ask("DELETE", key) as answer:
                if answer.status != 404:
                    await self._check(answer, 204)

        await _try(attempt)

    @asynccontextmanager
    async def _ask(  # a request has as many parts
        self,
        method: str,
        key: str,
        headers: Mapping[str, str] | None = None,
        data: Any = None,  # noqa: ANN401  # what aiohttp takes: bytes, or an open file
        sha256: str = NOTHING,
        query: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
                auto_decompress=False,
            )
        url = self._address / key if key else self._address
        host = url.host_subcomponent or ""
        signed = sign(
            Unsigned(
                method=method,
                host=host if url.is_default_port() else f"{host}:{url.port}",
                path=url.raw_path,
                query=query,
                body_sha256=sha256,
            ),
            self._credentials,
            datetime.now(UTC),
        )
        async with self._session.request(
            method,
            URL(f"{url}?{query}", encoded=True) if query else url,
            headers={**(headers or {}), **signed},
            data=data,
            allow_redirects=False,
        ) as answer:
            yield answer

    async def _check(self, answer: aiohttp.ClientResponse, wanted: int) -> None:
        if answer.status == wanted:
            return
        said = (await answer.content.read(2000)).decode(errors="replace")
        if answer.status in _PASSING:
            raise _PassingError(f"{answer.status} {said}")
        logger.error("S3 answers %s %s with %d: %s", answer.method, answer.url, answer.status, said)
        raise Unavailable("The server cannot reach its media at the moment")


async def _try(attempt: Callable[[], Awaitable[Result]]) -> Result:
    for number in range(ATTEMPTS):
        try:
            return await attempt()
        except (_PassingError, aiohttp.ClientError, TimeoutError) as error:
            if number == ATTEMPTS - 1:
                raise _unavailable(error) from error
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**number)
    raise AssertionError("unreachable")


def _unavailable(error: Exception) -> Unavailable:
    logger.error("S3 cannot be used: %s", str(error) or type(error).__name__)
    return Unavailable("The server cannot reach its media at the moment")
