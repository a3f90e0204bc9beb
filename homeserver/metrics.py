"""What Prometheus is told of this server: every listener with the API `metrics` answers at `/metrics`.

The parts count for themselves (`storage/figures.py`), requests are counted here, and all of it is read every few
seconds, so that it costs a request next to nothing. Several workers add theirs up in files of a directory that the
supervisor names (`PROMETHEUS_MULTIPROC_DIR`), and any of them answers for all. What only the database knows is asked
for by the worker that answers, however many there are. `figure_names.py` has the names.
"""

import asyncio
import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from federation.protocol.errors import Unavailable
from federation.web import Answer, Call, Route
from homeserver import release
from homeserver.figure_names import FIGURES, REQUEST_SECONDS
from homeserver.shared_answer import SharedAnswer
from storage.figures import Figure, Figures, Reading, Tally

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 2.0
"""Of other workers, figures are so old at most."""
LAG_SECONDS = 0.5
STORED_SECONDS = 5.0
"""The database is asked once in so long, however often it is asked for the figures."""
PATIENCE_SECONDS = 2.0

_PYTHON = ".".join(map(str, sys.version_info[:3]))

Labels = tuple[str, ...]
ReadStored = Callable[[], Awaitable[Figures]]


class _Child(Protocol):
    """A figure with the values of its labels."""

    def put(self, value: Figure) -> None:
        """It is so much now."""


class Metrics:
    """The figures of this process, and the answer for all."""

    def __init__(self, readings: Sequence[Reading], read_stored: ReadStored) -> None:
        self._readings = [self._read_requests, *readings, _read_process]
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library; several processes have none
        self._registry = CollectorRegistry()
        self._collectors: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[str, Labels], _Child] = {}
        self._requests: dict[Labels, Tally] = {}
        self._in_progress = 0
        self._lag = 0.0
        self._stored = SharedAnswer(read_stored, remembered_seconds=STORED_SECONDS, patience_seconds=PATIENCE_SECONDS)

    def _collector(self, name: str) -> Counter | Gauge | Histogram:
        """Made with the first value: until then nothing is told."""
        found = self._collectors.get(name)
        if found is None:
            found = self._collectors[name] = self._new_collector(name)
        return found

    def _new_collector(self, name: str) -> Counter | Gauge | Histogram:
        described, full_name = FIGURES[name], f"hearth_{name}"
        if described.is_histogram:
            bounds = described.bounds
            return Histogram(full_name, described.title, described.labels, buckets=bounds, registry=self._registry)
        if name.endswith("_total"):
            return Counter(full_name, described.title, described.labels, registry=self._registry)
        return Gauge(
            *(full_name, described.title, described.labels), multiprocess_mode=described.mode, registry=self._registry
        )

    def routes(self) -> list[Route]:
        """What a listener serves."""
        return [Route("GET", "/metrics", self._answer)]

    # --- requests

    def begin(self) -> None:
        """A request has come."""
        self._in_progress += 1

    def observe(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """It was answered."""
        self._in_progress -= 1
        key = (method, endpoint, str(status))
        tally = self._requests.get(key)
        if tally is None:
            tally = self._requests[key] = Tally(REQUEST_SECONDS)
        tally.add(seconds)

    def _read_requests(self) -> Figures:
        return {"requests_in_progress": self._in_progress, "loop_lag_seconds": self._lag}

    # --- reading

    async def run(self) -> None:
        """Read the figures again and again, until cancelled."""
        self._put("build_info", (release.number(), _PYTHON), 1)
        while True:
            try:
                self.update()
            except Exception:  # a figure that cannot be told ends no server
                logger.exception("some figures cannot be told")
            self._lag = 0.0
            for _ in range(round(UPDATE_SECONDS / LAG_SECONDS)):
                began = time.monotonic()
                await asyncio.sleep(LAG_SECONDS)
                self._lag = max(self._lag, time.monotonic() - began - LAG_SECONDS)

    async def close(self) -> None:
        """Tell for the last time; ask the database no more."""
        await self._stored.close()
        self.update()

    def update(self) -> None:
        """Read the figures of this process."""
        for labels, tally in self._requests.items():
            self._put("request_seconds", labels, tally)
        for reading in self._readings:
            self._take(reading())

    def _take(self, figures: Figures) -> None:
        for name, value in figures.items():
            if isinstance(value, Mapping):
                for label, each in value.items():
                    self._put(name, (label,), each)
            else:
                self._put(name, (), value)

    def _put(self, name: str, labels: Labels, value: Figure) -> None:
        child = self._children.get((name, labels))
        if child is None:
            collector = self._collector(name)
            child = self._children[name, labels] = _child(collector.labels(*labels) if labels else collector)
        child.put(value)

    # --- answering

    async def _answer(self, _call: Call) -> Answer:
        await self._update_stored()
        self.update()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped in the library
        text = await asyncio.to_thread(_render, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _update_stored(self) -> None:
        """Ask the database; what it does not answer stays as it was."""
        is_up = False
        try:
            self._take(await self._stored.get())
            is_up = True
        except (Unavailable, TimeoutError):  # logged where it arose
            pass
        except Exception:
            logger.exception("the database cannot be asked for figures")
        self._put("database_up", (), float(is_up))


# --- handing figures to Prometheus


def _render(registry: CollectorRegistry) -> bytes:
    for _ in range(5):
        with contextlib.suppress(FileNotFoundError):  # of a worker that has just ended (`figure_files.py`)
            return generate_latest(registry)
    return generate_latest(registry)


def _child(collector: Counter | Gauge | Histogram) -> _Child:
    if isinstance(collector, Histogram):
        return _HistogramChild(collector)
    return _CounterChild(collector) if isinstance(collector, Counter) else _GaugeChild(collector)


class _GaugeChild:
    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def put(self, value: Figure) -> None:
        assert not isinstance(value, Tally)
        self._gauge.set(value)


class _CounterChild:
    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._told = 0.0

    def put(self, value: Figure) -> None:
        assert not isinstance(value, Tally)
        if value > self._told:
            self._counter.inc(value - self._told)
            self._told = value


class _HistogramChild:
    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._told: list[int] = []
        self._total = 0.0

    def put(self, value: Figure) -> None:
        """Add what was counted since; one by one, as `observe` would, it took hundreds of times as long."""
        assert isinstance(value, Tally)
        told = self._told or [0] * len(value.counts)
        for index, (count, before) in enumerate(zip(value.counts, told, strict=True)):
            if count > before:
                self._histogram._buckets[index].inc(count - before)
        self._histogram._sum.inc(value.total - self._total)
        self._told, self._total = list(value.counts), value.total


# --- the process


def _read_process() -> Figures:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/proc/self/statm", encoding="ascii") as memory:  # no file on a disk
        pages = int(memory.read().split()[1])
    return {
        "processes": 1,
        "cpu_seconds_total": used.ru_utime + used.ru_stime,
        "memory_bytes": pages * resource.getpagesize(),
        "open_files": len(os.listdir("/proc/self/fd")) - 1,
        "open_files_limit": limit,
        "start_seconds": _STARTED,
    }


_STARTED = time.time()
