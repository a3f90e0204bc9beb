"""What `hearth serve` runs: the server from its start to the signal that ends it."""

import asyncio
import signal
from collections.abc import Callable

import uvloop

from homeserver.app import Application
from homeserver.config import Config
from homeserver.startup import Prepared, prepare


def serve(config: Config, announce: Callable[[], None]) -> None:
    """Run the server until SIGTERM or SIGINT; `announce` is called when it answers.

    Raises StartupError before it listens, OSError if it cannot listen.
    """
    with prepare(config) as prepared, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, prepared, announce))


async def _serve(config: Config, prepared: Prepared, announce: Callable[[], None]) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    application = Application(config, prepared.conninfo, prepared.keys)
    await application.start()
    await run(application, asked_to_stop, announce)


async def run(
    application: Application, asked_to_stop: asyncio.Event, announce: Callable[[], None], *, drain: bool = False
) -> None:
    """Announce a server that has started, and stop it when asked to, or when one of its tasks fails: then raises why.

    `drain` is for `Application.stop`.
    """
    try:
        announce()
        application.failed.add_done_callback(lambda _: asked_to_stop.set())
        await asked_to_stop.wait()
        if application.failed.done():
            application.failed.result()
    finally:
        await application.stop(drain=drain)
