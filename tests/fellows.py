"""Servers of tests as several processes behind one port: `make test-workers`.

HEARTH_TEST_WORKERS=4 makes each server that a test starts four processes on one database and one port, among which the
system spreads new connections (SO_REUSEPORT) as it does for `hearth serve --workers 4`. One of them is the test's own,
so that a test reaches into it as ever; clients take a new connection for each request, and so ask any of them.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any

import aiohttp
import uvloop
from nats.errors import Error

from homeserver import supervisor
from homeserver.app import Application
from homeserver.config import Config
from homeserver.shared_memory import Shared, SharedMemory, attach
from homeserver.signing_keys import OwnKeys
from storage.nats_bus import NatsBus
from tests import loopback

COUNT = int(os.environ.get("HEARTH_TEST_WORKERS", "1"))
"""Processes of each server."""
READY_SECONDS = 60

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.fellows"])


def a_session(application: Application) -> aiohttp.ClientSession:
    """For clients of a server; where it is several processes, each request goes to any of them.

    When a request is answered, this process knows what it changed, as it would if it were asked next.
    """

    async def hear(*_of_the_answer: object) -> None:
        if isinstance(application.bus, NatsBus) and application.bus._client.is_connected:
            with contextlib.suppress(Error):
                await application.bus._client.flush()  # what NATS was told before comes before this is answered
            await asyncio.sleep(0.002)
        if application.tail.is_behind():
            await application.tail.hear_neighbours()

    tracing = aiohttp.TraceConfig()
    tracing.on_request_end.append(hear)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=COUNT > 1),
        timeout=aiohttp.ClientTimeout(total=60),
        trace_configs=[tracing] if COUNT > 1 else [],
    )


@asynccontextmanager
async def started(
    config: Config, conninfo: str, keys: OwnKeys, prepare: Callable[[Application], object] = lambda _: None
) -> AsyncIterator[Application]:
    """This process's part of a server that answers, until the end of the block; `prepare` gets it before it starts."""
    if COUNT == 1:
        application = Application(config, conninfo, keys)
        prepare(application)
        await application.start()
        try:
            yield application
        finally:
            await application.stop()
        return
    own = supervisor.bind(config.listeners)
    ports = [each.getsockname()[1] for each in own]
    listeners = tuple(replace(each, port=port) for each, port in zip(config.listeners, ports, strict=True))
    config = replace(config, listeners=listeners)
    async with AsyncExitStack() as stack:
        memory = SharedMemory(COUNT)
        for each in memory.descriptors:
            stack.callback(os.close, each)
        application = Application(config, conninfo, keys, attach(memory.given(1, 0)))
        prepare(application)
        for number in range(2, COUNT + 1):
            await stack.enter_async_context(_fellow(_Orders(config, conninfo, keys), memory.given(number, 0)))
        await application.start(own)
        stack.push_async_callback(application.stop)
        yield application


@dataclass(frozen=True)
class _Orders:
    config: Config
    conninfo: str
    keys: OwnKeys


@asynccontextmanager
async def _fellow(orders: _Orders, memory: Sequence[int]) -> AsyncIterator[None]:
    """Another process of the server."""
    sockets = supervisor.bind(orders.config.listeners)
    here, there = _forking.Pipe()
    process = _forking.Process(
        target=_serve,
        args=(orders, there, [*map(DupFd, memory[:-2]), *memory[-2:]], [DupFd(each.fileno()) for each in sockets]),
        daemon=True,
    )
    await asyncio.to_thread(process.start)
    there.close()
    try:
        assert await asyncio.to_thread(here.poll, READY_SECONDS), "another process of the server does not start"
        here.recv()
        for each in sockets:
            each.close()
        yield
    finally:
        await asyncio.to_thread(_end, process)
        here.close()


def _end(process: ForkServerProcess) -> None:
    process.terminate()
    process.join(30)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, f"another process of the server ended with {process.exitcode}; see what it wrote"


def _serve(orders: _Orders, ready: Connection, memory: Sequence[Any], sockets: Sequence[Any]) -> None:
    """What another process does until SIGTERM, or the end of the test's."""
    loopback.stay()
    shared = attach([*(each.detach() for each in memory[:-2]), *memory[-2:]])
    uvloop.run(_serve_until_told(orders, ready, shared, [socket.socket(fileno=each.detach()) for each in sockets]))


async def _serve_until_told(
    orders: _Orders, ready: Connection, shared: Shared, sockets: Sequence[socket.socket]
) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)

    def end() -> None:
        loop.remove_reader(ready.fileno())
        told.set()

    loop.add_reader(ready.fileno(), end)  # only its end can be read
    application = Application(orders.config, orders.conninfo, orders.keys, shared)
    application.failed.add_done_callback(lambda _: told.set())
    await application.start(sockets)
    ready.send("ready")
    await told.wait()
    if application.failed.done():
        application.failed.result()
    await application.stop()
