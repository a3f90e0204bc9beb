"""Connections that come in the very step of the event loop in which a test's server closes.

asyncio forgets such a connection without closing it (`Server._attach` finds the server closed): who made it waits in
vain, and whatever test runs when the socket is collected fails. uvloop, by which Hearth runs, does not.
"""

import socket
from asyncio import Server
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Awaitable, Callable
from typing import Any

_accept: Callable[..., Awaitable[None]] = BaseSelectorEventLoop._accept_connection2  # type: ignore[attr-defined]


async def _accept_or_close(
    loop: BaseSelectorEventLoop,
    protocol_factory: Callable[[], Any],
    connection: socket.socket,
    extra: dict[str, Any],
    context: Any = None,
    server: Server | None = None,
    *timeouts: float,
) -> None:
    if server is not None and not server.sockets:
        connection.close()
        return
    await _accept(loop, protocol_factory, connection, extra, context, server, *timeouts)


def close() -> None:
    """Have each closed in this process, as it is by the system where it comes a moment later."""
    BaseSelectorEventLoop._accept_connection2 = _accept_or_close  # type: ignore[attr-defined]
