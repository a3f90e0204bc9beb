"""Measure a stretch of load: CPU time of the server and of PostgreSQL, throughput, and how long clients waited."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from benchmarks import processes
from benchmarks.figures import Load, Quantiles
from benchmarks.server import Server

_T = TypeVar("_T")

_LOOK_SECONDS = 0.05
_QUIET_SHARE = 0.04
_LONGEST_LOOKS = 100


async def quiet(server: Server) -> None:
    """Return when server and PostgreSQL do next to nothing, after five seconds at the latest."""
    before = _cpu_of_both(server)
    for _ in range(_LONGEST_LOOKS):
        await asyncio.sleep(_LOOK_SECONDS)
        now = _cpu_of_both(server)
        if now - before < _QUIET_SHARE * _LOOK_SECONDS:
            return
        before = now


def machine_ms() -> float:
    """CPU time of a fixed piece of Python: how fast this machine is at the moment. Busy neighbours slow it down."""
    begin = time.process_time()
    total = 0
    for number in range(1_000_000):
        total += number % 7
    return 1000 * (time.process_time() - begin)


def _cpu_of_both(server: Server) -> float:
    return processes.cpu_seconds(server.pid) + processes.cpu_seconds(server.cluster.pid)


class Meter:
    """Adds up what one kind of operation costs, over one stretch or several."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.server_seconds = 0.0
        self.postgres_seconds = 0.0
        self.seconds = 0.0
        self.waits: list[float] = []

    @asynccontextmanager
    async def running(self, *, settles: bool = True) -> AsyncIterator[None]:
        """What happens inside counts, and what the servers do because of it until they are quiet."""
        server, cluster = self._server, self._server.cluster
        server.note_measuring(begins=True)
        postgres_before, server_before = processes.cpu_seconds(cluster.pid), processes.cpu_seconds(server.pid)
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin
        if settles:
            await quiet(server)
        self.server_seconds += processes.cpu_seconds(server.pid) - server_before
        self.postgres_seconds += processes.cpu_seconds(cluster.pid) - postgres_before
        server.note_measuring(begins=False)

    def timed(self, work: Callable[[_T], Awaitable[object]]) -> Callable[[_T], Awaitable[None]]:
        """The same, with how long it took kept."""

        async def run(item: _T) -> None:
            begin = time.perf_counter()
            await work(item)
            self.waits.append(time.perf_counter() - begin)

        return run

    def load(self, name: str, note: str = "") -> Load:
        """The cost of each timed operation."""
        return Load(
            name=name,
            operations=len(self.waits),
            server_ms=1000 * self.server_seconds / len(self.waits),
            postgres_ms=1000 * self.postgres_seconds / len(self.waits),
            per_second=len(self.waits) / self.seconds,
            latency=Quantiles.of(self.waits),
            note=note,
        )
