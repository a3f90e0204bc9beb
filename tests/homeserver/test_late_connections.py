"""Who connects while a server of the tests closes is not left waiting, and nothing is left of them."""

import asyncio
import contextlib
import gc
import socket

import pytest


@pytest.mark.parametrize("steps", range(5))
async def test_who_comes_while_a_server_closes_is_shut_out(steps: int) -> None:
    """At whichever step of the loop it is closed."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    with socket.create_connection(address) as visitor:
        for _ in range(steps):
            await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(0.05)
        visitor.setblocking(False)
        with contextlib.suppress(ConnectionResetError):  # where nobody had accepted it
            assert visitor.recv(1) == b""
    gc.collect()
