"""What `hearth serve` runs: the server from its start to the signal that ends it."""

import asyncio
import signal
import sys
from collections.abc import Callable

import uvloop

from homeserver.app import Application
from homeserver.config import Config, RegistrationMode
from homeserver.startup import Prepared, prepare


def serve(config: Config, announce: Callable[[str], None]) -> None:
    """Run the server until SIGTERM or SIGINT; `announce` gets what to tell the person at the terminal.

    Raises StartupError before it listens, OSError if it cannot listen.
    """
    with prepare(config) as prepared, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, prepared, announce))


async def _serve(config: Config, prepared: Prepared, announce: Callable[[str], None]) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    application = Application(config, prepared.conninfo, prepared.keys)
    await application.start()
    try:
        announce(_greeting(config))
        application.failed.add_done_callback(lambda _: asked_to_stop.set())
        await asked_to_stop.wait()
        if application.failed.done():
            application.failed.result()
    finally:
        await application.stop()


def _greeting(config: Config) -> str:
    lines = [f"Hearth serves {config.server_name} at {config.base_url}"]
    if config.registration.mode is RegistrationMode.CLOSED:
        program = sys.argv[0] if sys.argv[0].endswith("hearth") else "hearth"
        lines.append(
            f"Registration is closed. Make an account from a second terminal: {program} user create NAME --admin"
        )
        lines.append(f"Then log in with any Matrix client that takes {config.base_url} as its homeserver.")
    else:
        lines.append(f"Open a Matrix client, enter {config.base_url} as the homeserver, and register.")
    return "\n".join(lines)
