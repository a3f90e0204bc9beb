"""What Prometheus is told of this server: every listener with the API `metrics` answers at `/metrics`.

Counted where it happens are requests alone. All else is read from the parts that know it, every few seconds, so that
it costs a request nothing. Several workers add theirs up in files of a directory that the supervisor names
(`PROMETHEUS_MULTIPROC_DIR`), and any of them answers for all.
"""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from federation.web import Answer, Call, Route

UPDATE_SECONDS = 2.0
_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 30)

Reading = Callable[[], Mapping[str, float]]
"""Figures by name. Those whose names end with `_total` only grow; others are states."""

TITLES = {
    "log_batches_total": "Transactions that appended to the log",
    "log_entries_total": "Entries that were appended to the log",
    "log_seconds_total": "Time that appending took",
    "log_waiting": "Entries that wait to be appended",
    "log_position": "Newest position of the log that is applied",
    "tail_changes": "Changes of the log that are kept in memory",
    "tail_changes_carried_total": "Changes of other processes that came by the bus",
    "tail_changes_read_total": "Changes of other processes that were read from the database",
    "users_followed": "Users whose rooms and counts are kept in memory",
    "syncs_waiting": "Users with a sync that waits for news",
    "database_connections": "Connections of the pool",
    "database_connections_idle": "Connections of the pool that nobody uses",
    "database_waiting": "Requests that wait for a connection",
    "database_requests_total": "How often a connection was asked for",
    "database_wait_seconds_total": "Time spent waiting for connections",
    "federation_destinations": "Servers that this one sends to",
    "federation_sending": "Transactions to other servers that are under way",
    "to_device_dropped_total": "Other servers' messages to devices that did not ask for them: too many, or too old",
    "remote_joins": "Joins to rooms of other servers that are under way",
    "cpu_seconds_total": "CPU time of the server's processes, without PostgreSQL",
    "memory_bytes": "Resident memory of the server's processes, at most",
    "loop_lag_seconds": "How much later than asked the event loop got to its last regular task",
}
"""Every figure that is read, without the prefix `hearth_`."""


LARGEST = frozenset(("loop_lag_seconds", "log_position"))
"""States of which the largest among the workers counts, and not the sum."""


class Metrics:
    """The figures of this process, and the answer for all."""

    def __init__(self, readings: list[Reading]) -> None:
        self._readings = [*readings, _read_process]
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "hearth_request_seconds",
            "Requests by endpoint and status, and how long they took; a sync may wait for long",
            ("method", "endpoint", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._seen: dict[str, float] = {}
        for name, title in TITLES.items():
            if name.endswith("_total"):
                self._counters[name] = Counter(f"hearth_{name}", title, registry=self._registry)
            else:
                self._gauges[name] = Gauge(
                    f"hearth_{name}",
                    title,
                    registry=self._registry,
                    multiprocess_mode="livemax" if name in LARGEST else "livesum",
                )

    def routes(self) -> list[Route]:
        """What a listener serves."""
        return [Route("GET", "/metrics", self._answer)]

    def observe(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, endpoint, str(status)).observe(seconds)

    async def run(self) -> None:
        """Read the figures again and again, until cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(UPDATE_SECONDS)
            self._gauges["loop_lag_seconds"].set(max(0.0, time.monotonic() - began - UPDATE_SECONDS))
            self.update()

    def update(self) -> None:
        """Read the figures."""
        for reading in self._readings:
            for name, value in reading().items():
                if name in self._gauges:
                    self._gauges[name].set(value)
                else:
                    self._counters[name].inc(max(0.0, value - self._seen.get(name, 0)))
                    self._seen[name] = value

    async def _answer(self, _call: Call) -> Answer:
        self.update()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped in the library
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _read_process() -> Mapping[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds_total": used.ru_utime + used.ru_stime, "memory_bytes": used.ru_maxrss * 1024.0}
