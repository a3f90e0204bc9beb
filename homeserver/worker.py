"""One of the processes of `hearth serve --workers N`; `supervisor.py` starts it and tells it what to serve."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import orjson
import uvloop

from federation.protocol.types import JsonObject
from homeserver import config_loading, logs, serving, shared_memory, signing_keys
from homeserver.app import Application
from homeserver.config import Config
from homeserver.config_loading import ConfigurationError
from homeserver.signing_keys import OwnKeys, SigningKeyError
from homeserver.startup import StartupError
from homeserver.supervisor import BEAT, BEAT_SECONDS, NOTICE, READY
from storage import background


def main() -> None:
    """Read what to do from standard input, and do it until that ends, or SIGTERM."""
    orders = orjson.loads(sys.stdin.buffer.readline())
    sockets = [socket.socket(fileno=number) for number in orders["sockets"]]
    try:
        config = config_loading.find(None if orders["file"] is None else Path(orders["file"]))
        keys = signing_keys.load_all(config.signing_key_path, int(time.time() * 1000))
    except (ConfigurationError, SigningKeyError) as error:
        sys.exit(str(error))
    changed = _find_changed(config, sockets, is_same_key=keys.signing_key.key_id == orders["key_id"])
    if changed:
        sys.exit(f"{changed} has changed: restart the server, SIGHUP cannot bring this about")
    logs.set_up(config.log, worker=orders["number"])
    serving.allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(config, keys, orders, sockets))
        except StartupError as error:
            sys.exit(str(error))


def _find_changed(config: Config, sockets: list[socket.socket], *, is_same_key: bool) -> str | None:
    """What all processes must have the same, and was something else when the first was started."""
    if not is_same_key:
        return "the signing key"
    wanted = [(each.address, each.port) for each in config.listeners]
    bound = [each.getsockname()[:2] for each in sockets]
    return None if wanted == bound else "`listeners`"


async def _serve(config: Config, keys: OwnKeys, orders: JsonObject, sockets: list[socket.socket]) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    said = sys.stdin.fileno()

    def end() -> None:
        loop.remove_reader(said)  # its end can be read again and again
        asked_to_stop.set()

    loop.add_reader(said, end)  # it says no more: whoever started this has ended
    os.set_blocking(sys.stdout.fileno(), False)  # whoever started this may read nothing for long
    beating = loop.create_task(_beat())
    application = Application(config, orders["conninfo"], keys, shared_memory.attach(orders["memory"]))
    loop.add_signal_handler(NOTICE, application.health.note_end)
    try:
        await serving.run(application, asked_to_stop, lambda: _say(READY), sockets, drain=True)
    finally:
        await background.end([beating])


async def _beat() -> None:
    """Show that this process does not hang, until cancelled."""
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            _say(BEAT)


def _say(text: bytes) -> None:
    os.write(sys.stdout.fileno(), text)


if __name__ == "__main__":
    main()
