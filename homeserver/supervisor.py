"""`hearth serve --workers N`: identical processes on one port, kept alive and replaced without a refused request.

Each of N places has sockets of its own on every listener's port, among which the system spreads new connections
(SO_REUSEPORT). They are this process's and outlive the workers that answer on them: whoever connects while one process
follows another waits for a moment instead of being refused.

- A worker that ends is followed by another; so is one that says nothing for some seconds, which is ended.
- SIGHUP replaces them one by one: the new one has read the settings and answers before the old one is told to go.
- SIGTERM or SIGINT ends all of them, and what is under way is finished.
- If this process is killed, its workers notice that their standard input ends, and end.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import orjson

from homeserver import figure_files
from homeserver.config import Config, Listener
from homeserver.shared_memory import SharedMemory
from homeserver.startup import Prepared, StartupError, prepare
from storage import background

logger = logging.getLogger(__name__)

READY = b"ready\n"
"""What a worker writes to its standard output once it answers."""
NOTICE = signal.SIGUSR1
"""Tells a worker that the server will end, and that no more requests should come."""
READY_SECONDS = 60.0
STOP_SECONDS = 40.0
"""How long a worker may take to finish what is under way; then it is killed."""
BEAT = b"."
"""What it writes there again and again while it lives."""
BEAT_SECONDS = 1.0
SILENT_BEATS = 15
"""A worker that misses so many hangs, or was stopped: it is killed, for those who wait for its answers."""
STEADY_SECONDS = 10.0
"""A worker that lived for so long was all right, and is followed by another at once."""
LONGEST_PAUSE_SECONDS = 10.0
BACKLOG = 1024
MANY_ENDED = 20
"""After so many workers, the files of those that have ended are made one."""


def supervise(config: Config, file: Path | None, count: int, announce: Callable[[], None]) -> None:
    """Run the server in `count` processes until SIGTERM or SIGINT; `announce` is called when all of them answer.

    Raises StartupError when they do not come up, OSError if the ports cannot be bound.
    """
    with prepare(config) as prepared, tempfile.TemporaryDirectory(prefix="hearth-") as figures:
        orders = Orders(file, prepared, Path(figures), SharedMemory(count))
        asyncio.run(_supervise(orders, config, count, announce))


async def _supervise(orders: "Orders", config: Config, count: int, announce: Callable[[], None]) -> None:
    asked_to_stop, asked_to_replace = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    loop.add_signal_handler(signal.SIGHUP, asked_to_replace.set)
    places = [Place(number, orders, bind(config.listeners)) for number in range(1, count + 1)]
    keeping = [loop.create_task(place.keep(), name=f"worker {place.number}") for place in places]
    stopping = loop.create_task(asked_to_stop.wait())
    try:
        if not await _before(stopping, asyncio.gather(*(place.is_filled.wait() for place in places)), keeping):
            return
        announce()
        while True:
            if not await _before(stopping, asked_to_replace.wait(), keeping):
                return
            asked_to_replace.clear()
            if not await _before(stopping, _replace(places), keeping):
                return
    finally:
        if stopping.done() and config.shutdown_delay:
            for place in places:
                place.give_notice()
            await asyncio.sleep(config.shutdown_delay / 1000)
        await background.end([stopping, *keeping])
        await asyncio.gather(*(place.empty() for place in places))


async def _before(
    stopping: "asyncio.Task[bool]", work: Awaitable[object], keeping: "Sequence[asyncio.Task[None]]"
) -> bool:
    """Wait for some work; False if it was told to stop before. Raises what kept a place from being filled."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([stopping, task, *keeping], return_when=asyncio.FIRST_COMPLETED)
        for each in keeping:
            if each.done():
                each.result()
        return task.done()
    finally:
        await background.end([task])


async def _replace(places: Sequence["Place"]) -> None:
    logger.info("the workers are replaced")
    for place in places:
        try:
            await place.replace()
        except StartupError as error:
            logger.error("the workers are not replaced: %s", error)  # the worker has said why
            return
    logger.info("all workers are replaced")


def bind(listeners: Sequence[Listener]) -> list[socket.socket]:
    """A socket on each listener's address that others may share; raises OSError."""
    sockets = []
    for listener in listeners:
        family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind((listener.address, listener.port))
        found.listen(BACKLOG)
        sockets.append(found)
    return sockets


class Orders:
    """What each worker is told on its standard input, one line of JSON."""

    def __init__(self, file: Path | None, prepared: Prepared, figures: Path, memory: SharedMemory) -> None:
        self.figures = figures
        """Where the workers add up what Prometheus is told (`metrics.py`)."""
        self.memory = memory
        self._ended: list[int] = []
        self._told = {
            "file": None if file is None else str(file),
            "conninfo": prepared.conninfo,
            "key_id": prepared.keys.signing_key.key_id,
        }

    def forget(self, pid: int) -> None:
        """A worker has ended: what it told of its state holds no longer."""
        figure_files.forget_state(self.figures, pid)
        self._ended.append(pid)
        if len(self._ended) >= MANY_ENDED:
            figure_files.fold(self.figures, self._ended)
            self._ended.clear()

    def render(self, number: int, generation: int, sockets: Sequence[socket.socket]) -> bytes:
        """The line for the worker in one place, after so many others there."""
        own = {
            "number": number,
            "sockets": [each.fileno() for each in sockets],
            "memory": self.memory.given(number, generation),
        }
        return orjson.dumps({**self._told, **own}) + b"\n"


class Place:
    """One of the places for workers."""

    def __init__(self, number: int, orders: Orders, sockets: Sequence[socket.socket]) -> None:
        self.number = number
        self.is_filled = asyncio.Event()
        """Set once a worker answers here."""
        self._orders = orders
        self._sockets = sockets
        self._worker: Process | None = None
        self._next: Process | None = None
        self._started = 0
        self._starting = asyncio.Lock()

    async def keep(self) -> None:
        """Have a worker here until cancelled. Raises StartupError if the first does not come up."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with self._starting:
                    self._worker, self._next = self._next or await self._start(), None
                self.is_filled.set()
                await _outlive(self._worker)
                self._orders.forget(self._worker.pid)
            except StartupError:
                if not self.is_filled.is_set():
                    raise
            if self._next is not None:
                failures = 0
                continue
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            logger.error("worker %d has ended, another takes its place", self.number)
            await asyncio.sleep(min(0.1 * 2**failures, LONGEST_PAUSE_SECONDS) if failures > 1 else 0)

    async def replace(self) -> None:
        """Put a new worker in the place of this one; raises StartupError, and leaves all as it is, if it does not come
        up."""
        async with self._starting:  # else one that ends meanwhile would be followed by two
            old = self._worker
            self._next = await self._start()
        if old is not None:
            await _stop(old)

    def give_notice(self) -> None:
        """Have who is here say that no more requests should come."""
        for each in (self._worker, self._next):
            if each is not None and each.returncode is None:
                each.send_signal(NOTICE)

    async def empty(self) -> None:
        """End whoever is here, and listen no longer."""
        await asyncio.gather(*(_stop(each) for each in (self._worker, self._next) if each is not None))
        for each in self._sockets:
            each.close()

    async def _start(self) -> Process:
        """A new worker that answers; raises StartupError."""
        self._started += 1
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "homeserver.worker"),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._orders.figures)},
            pass_fds=[*self._orders.memory.descriptors, *(each.fileno() for each in self._sockets)],
            start_new_session=True,  # Control-C at the terminal is for this process alone
        )
        try:
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(self._orders.render(self.number, self._started, self._sockets))
                async with asyncio.timeout(READY_SECONDS):
                    if (await process.stdout.readline()).lstrip(BEAT) == READY:
                        return process
        except (TimeoutError, OSError):
            pass
        except BaseException:
            await _stop(process)
            raise
        await _stop(process)
        raise StartupError([f"worker {self.number} did not come up"])


async def _outlive(process: Process) -> None:
    """Return when it has ended; one that hangs is killed.

    What counts are turns of this loop, not seconds: after a pause of the whole machine nobody is to blame.
    """
    if process.stdout is None:
        raise RuntimeError("what a worker writes is not read")
    silent, ending = 0, asyncio.ensure_future(process.wait())
    try:
        while not ending.done() and not process.stdout.at_eof():
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await process.stdout.read(4096)
                silent = 0
            except TimeoutError:
                silent += 1
            if silent == SILENT_BEATS:
                logger.error("a worker has said nothing for %d seconds and is killed", SILENT_BEATS * BEAT_SECONDS)
                process.kill()
        await ending
    finally:
        await background.end([ending])


async def _stop(process: Process) -> None:
    """Have it finish what is under way, and end."""
    if process.returncode is not None:
        return
    try:
        process.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except ProcessLookupError:
        await process.wait()
    except TimeoutError:
        logger.error("a worker did not end within %d seconds and is killed", STOP_SECONDS)
        process.kill()
        await process.wait()
