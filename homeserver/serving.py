"""What `hearth serve` runs: the server from its start to the signal that ends it."""

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Sequence

import uvloop

from federation.protocol.errors import Unavailable
from homeserver.app import Application
from homeserver.config import Config
from homeserver.startup import Prepared, StartupError, prepare
from storage import background

MAX_FILES = 65_536
"""Open at once, connections among them."""


def serve(config: Config, announce: Callable[[], None]) -> None:
    """Run the server until SIGTERM or SIGINT; `announce` is called when it answers.

    Raises StartupError before it listens, OSError if it cannot listen.
    """
    allow_connections()
    with prepare(config) as prepared, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, prepared, announce))


def allow_connections() -> None:
    """As many as the system lets this process have: many start with 1024, and other servers alone may take so many."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(config: Config, prepared: Prepared, announce: Callable[[], None]) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    await run(Application(config, prepared.conninfo, prepared.keys), asked_to_stop, announce)


async def run(
    application: Application,
    asked_to_stop: asyncio.Event,
    announce: Callable[[], None],
    sockets: Sequence[socket.socket] = (),
    *,
    drain: bool = False,
) -> None:
    """Start a server, on these sockets if they are bound already, and announce it; stop it when asked to, also before
    it has started, or when one of its tasks fails: then raises why. Raises StartupError where the database
    is lost before it has started.

    `drain` is for `Application.stop`: of a worker, of whose end the supervisor gives notice if no other follows.
    """
    loop = asyncio.get_running_loop()
    asking = loop.create_task(asked_to_stop.wait())
    starting = loop.create_task(application.start(sockets))
    try:
        await asyncio.wait([asking, starting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        try:
            starting.result()
        except Unavailable:
            raise StartupError(["the database was lost while the server started: see to it, and start again"]) from None
        _collect_less_often()
        announce()
        application.failed.add_done_callback(lambda _: asked_to_stop.set())
        await asking
        if application.failed.done():
            application.failed.result()
        if not drain:
            await application.give_notice()
    finally:
        await background.end([asking, starting])
        await application.stop(drain=drain)


def _collect_less_often() -> None:
    """Look for cyclic garbage after 20,000 new objects instead of 700, and never again at what the start made.

    A message makes hundreds of objects, of which none is a cycle: looking cost an eighth of its time, and more while
    many requests were waiting (`python -m benchmarks send-64`).
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
