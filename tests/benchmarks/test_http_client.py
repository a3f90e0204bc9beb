"""The load's HTTP client reads what servers send, however it is cut into pieces."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from benchmarks.http_client import HttpClient, RequestFailedError

_PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
_CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n'


@asynccontextmanager
async def answering(pieces: Sequence[bytes]) -> AsyncIterator[HttpClient]:
    """A client of a server that answers any request with these pieces."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = HttpClient(server.sockets[0].getsockname()[1])
    async with server:
        yield client
        client.close()


@pytest.mark.parametrize("answer", [_PLAIN, _CHUNKED])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_an_answer_arrives_whole_and_the_connection_serves_the_next(answer: bytes, size: int) -> None:
    async with answering([answer[at : at + size] for at in range(0, len(answer), size)]) as client:
        first, second = await client.request("GET", "/"), await client.request("GET", "/")

    assert first == second == {"a": 1}


async def test_an_error_is_raised_with_what_the_server_says() -> None:
    async with answering([b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}"]) as client:
        with pytest.raises(RequestFailedError, match="GET /there: 403"):
            await client.request("GET", "/there?secret=1")
