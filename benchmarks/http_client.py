"""A light HTTP/1.1 client for the load: kept-alive connections to one local server, JSON in and out.

It knows what Hearth and Synapse answer with (a length, or chunks) and nothing else, so that a request costs the load
generator little of the machine that it shares with the server.
"""

import asyncio
import time
from typing import cast

import orjson

_IDLE_SECONDS = 5.0  # both servers keep a connection for longer than this
_REQUEST_SECONDS = 120.0

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


class RequestFailedError(Exception):
    """The server answered with an error, or not at all."""


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_open = False
        self.used_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailedError(f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is None or self._answer.done():
            return
        try:
            answer = _parse(self._received)
        except (ValueError, IndexError) as error:
            self._answer.set_exception(RequestFailedError(f"not an HTTP answer: {error}"))
            self.close()
            return
        if answer is not None:
            self._received.clear()
            self._answer.set_result(answer)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None
            self.used_at = time.monotonic()

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()


def _parse(received: bytearray) -> tuple[int, bytes] | None:
    """Status and body once all of it is there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = bytes(received[:end]).lower().split(b"\r\n")
    status = int(lines[0].split(b" ", 2)[1])
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    start = end + 4
    if headers.get(b"transfer-encoding") == b"chunked":
        body = _join_chunks(received, start)
        return None if body is None else (status, body)
    stop = start + int(headers.get(b"content-length", b"0"))
    return None if len(received) < stop else (status, bytes(received[start:stop]))


def _join_chunks(received: bytearray, at: int) -> bytes | None:
    if not received.endswith(b"0\r\n\r\n"):
        return None
    parts: list[bytes] = []
    while True:
        line_end = received.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(received[at:line_end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        at = line_end + 2
        if len(received) < at + size + 2:
            return None
        parts.append(bytes(received[at : at + size]))
        at += size + 2


class HttpClient:
    """A pool of connections to a server on this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []

    async def request(self, method: str, path: str, body: object = None, token: str | None = None) -> Json:
        """The answer's JSON; raises RequestFailedError unless the status is 200."""
        content = b"" if body is None else orjson.dumps(body)
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        connection = await self._connection()
        status, answer = await connection.ask("\r\n".join([*lines, "", ""]).encode() + content)
        self._free.append(connection)
        if status != 200:
            raise RequestFailedError(f"{method} {path.partition('?')[0]}: {status} {answer[:300]!r}")
        result: Json = orjson.loads(answer)
        return result

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open and time.monotonic() - connection.used_at < _IDLE_SECONDS:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return connection

    def close(self) -> None:
        """Close what is idle."""
        while self._free:
            self._free.pop().close()
