"""What Prometheus is told, by one process and by several together."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from homeserver import figure_files
from homeserver.config import API, Listener, RateLimit, RateLimits
from homeserver.figure_names import FIGURES, table
from tests.client import Client, quote
from tests.rooms import create_room, join, send
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving
from tests.servers import running

pytestmark = pytest.mark.one_process("what each counts; where several are meant, they are started")

EVENTS = 7
SEND = "/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}"
LISTENER = Listener(address="127.0.0.1", port=0, apis=(API.CLIENT, API.METRICS))
METRICS_PAGE = Path(__file__).parents[2] / "docs" / "operations" / "metrics.md"
UNITS = ("_seconds", "_bytes", "_total")

Figures = Mapping[tuple[str, ...], float]


async def scrape(base_url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return await answer.text()


async def read_figures(base_url: str) -> Figures:
    """Each figure by its name and the values of its labels in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await scrape(base_url))
        for sample in family.samples
    }


def gained(before: Figures, after: Figures, *name: str) -> float:
    """By how much it grew."""
    return after[name] - before.get(name, 0)


@pytest.mark.one_process("figures of the process that is asked")
async def test_requests_and_the_log_are_counted(conninfo: str) -> None:
    async with running(conninfo, listeners=(LISTENER,)) as server:
        alice = await server.register("alice")
        room_id = await create_room(alice)
        before = await read_figures(server.base_url)
        for number in range(EVENTS):
            await send(alice, room_id, f"message {number}")
        assert (await alice.get(f"/v3/rooms/{room_id}/nothing")).status == 404
        assert (await alice.request("DELETE", f"/v3/rooms/{quote(room_id)}/leave")).status == 405
        after = await read_figures(server.base_url)

    assert after["hearth_request_seconds_count", SEND, "PUT", "200"] == EVENTS
    assert after["hearth_request_seconds_bucket", SEND, "+Inf", "PUT", "200"] == EVENTS
    assert 0 < after["hearth_request_seconds_sum", SEND, "PUT", "200"] < 60
    assert after["hearth_request_seconds_count", "", "", "404"] == 1
    assert after["hearth_request_seconds_count", "", "", "405"] == 1  # with no label of theirs
    assert gained(before, after, "hearth_log_batch_entries_sum") >= EVENTS
    assert gained(before, after, "hearth_log_append_seconds_count") >= EVENTS
    assert gained(before, after, "hearth_log_batch_seconds_count") == gained(
        before, after, "hearth_log_lock_seconds_count"
    )
    assert after["hearth_log_position",] > before["hearth_log_position",]
    assert after["hearth_log_head",] >= before["hearth_log_position",]
    assert gained(before, after, "hearth_cache_hits_total", "sessions") >= EVENTS
    assert after["hearth_requests_in_progress",] == 1  # the scrape
    assert 1 <= after["hearth_database_connections",] <= after["hearth_database_connections_limit",] == 10
    assert after["hearth_database_up",] == 1
    assert after["hearth_cpu_seconds_total",] > 0
    assert 0 < after["hearth_disk_free_bytes",] < after["hearth_disk_size_bytes",]


async def test_what_is_refused_waits_or_is_sent_to_a_device_is_counted(conninfo: str) -> None:
    limits = RateLimits(joins=RateLimit(0.001, 1))
    async with running(conninfo, listeners=(LISTENER,), rate_limits=limits, presence=False) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await create_room(alice, preset="public_chat")
        await join(bob, room_id)
        assert (await bob.post(f"/v3/rooms/{quote(room_id)}/join")).status == 429
        token = (await bob.ok("GET", "/v3/sync"))["next_batch"]
        waiting = asyncio.create_task(bob.ok("GET", f"/v3/sync?since={token}&timeout=30000"))
        await asyncio.sleep(0.3)
        during = await read_figures(server.base_url)
        await alice.ok("PUT", "/v3/sendToDevice/test/1", {"messages": {bob.user_id: {"*": {"a": 1}}}})
        await waiting
        server.application.metrics._stored.remembered_seconds = 0.0  # type: ignore[union-attr]  # a test's clock
        after = await read_figures(server.base_url)

    assert during["hearth_rate_limited_total", "joins"] == 1
    assert during["hearth_rate_limited_total", "messages"] == 0
    assert (during["hearth_syncs_waiting",], after["hearth_syncs_waiting",]) == (1, 0)
    assert during["hearth_requests_in_progress",] == 2
    assert (during["hearth_to_device_waiting",], after["hearth_to_device_waiting",]) == (0, 1)


async def test_every_figure_is_there_by_its_name_and_kind(conninfo: str) -> None:
    async with running(conninfo, listeners=(LISTENER,)) as server:
        await server.anonymous.get("/versions")
        families = {family.name: family for family in text_string_to_metric_families(await scrape(server.base_url))}

    told = {name.removeprefix("hearth_") for name in families}
    assert told == {name.removesuffix("_total") for name in FIGURES}
    for name, described in FIGURES.items():
        family = families[f"hearth_{name.removesuffix('_total')}"]
        expected = "histogram" if described.is_histogram else "counter" if name.endswith("_total") else "gauge"
        assert (name, family.type) == (name, expected)
        assert family.documentation == described.title
        for sample in family.samples:
            assert {*sample.labels} - {"le"} == {*described.labels}


def test_names_are_as_prometheus_has_them() -> None:
    for name, described in FIGURES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert not name.endswith("_count")
        for unit in ("seconds", "bytes"):  # at the end, before `_total`
            assert unit not in name.removesuffix("_total").split("_")[:-1]
        assert described.title
    assert all(name.endswith(UNITS) or "_seconds" not in name for name in FIGURES)


def test_the_page_has_every_figure() -> None:
    assert table() in METRICS_PAGE.read_text(encoding="utf-8")


async def test_the_rest_is_told_while_the_database_is_away(conninfo: str) -> None:
    async with running(conninfo, listeners=(LISTENER,)) as server:
        server.application.metrics._stored.remembered_seconds = 0.0  # type: ignore[union-attr]  # a test's clock
        before = await read_figures(server.base_url)
        await server.application.database.close()
        after = await read_figures(server.base_url)

    assert (before["hearth_database_up",], after["hearth_database_up",]) == (1, 0)
    assert after["hearth_log_head",] == before["hearth_log_head",]
    assert after["hearth_processes",] == 1


# --- several workers


_WORKER = """
from prometheus_client import Counter, Gauge, Histogram
counter = Counter("things_total", "Things", ["kind"])
for kind, count in (("a", 2), ("b", 3)):
    counter.labels(kind).inc(count)
Histogram("seconds", "Seconds", buckets=(1, 2)).observe(1.5)
Gauge("waiting", "What waits", multiprocess_mode="livesum").set(7)
"""


def test_what_workers_counted_that_have_ended_stays(tmp_path: Path) -> None:
    def told() -> dict[tuple[str, ...], float]:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]  # untyped in the library
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in registry.collect()
            for sample in family.samples
        }

    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    pids = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _WORKER], env=environment) as worker:
            assert worker.wait() == 0
        pids.append(worker.pid)
    before = told()
    for pid in pids:
        figure_files.forget_state(tmp_path, pid)
    figure_files.fold(tmp_path, pids[:2])
    figure_files.fold(tmp_path, pids[2:])
    after = told()

    assert before["things_total", "b"] == 9
    assert before["waiting",] == 21
    assert after == {name: value for name, value in before.items() if name[0] != "waiting"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counter_ended.db", "histogram_ended.db"]


async def until_figures(server: HearthProcess, expected: Mapping[tuple[str, ...], float]) -> Figures:
    """What any worker tells, once all of them have told; a few seconds are enough."""
    async with asyncio.timeout(30):
        while True:
            found = await read_figures(server.base_url)
            if all(found.get(name) == value for name, value in expected.items()):
                return found
            await asyncio.sleep(0.2)


async def send_by_any(alice: Client, server: HearthProcess, room_id: str) -> None:
    for number in range(EVENTS):
        async with a_visitor(server) as other:  # a connection of its own: to any of them
            elsewhere = Client(other.base_url, other.session, alice.user_id, access_token=alice.access_token)
            await send(elsewhere, room_id, f"message {number}")


async def test_any_of_several_workers_answers_for_all() -> None:
    async with (
        serving(arguments=("--workers", "2"), apis="[client, metrics, federation]") as server,
        a_visitor(server) as visitor,
    ):
        alice = await visitor.register_as("alice")
        room_id = await create_room(alice)
        await send_by_any(alice, server, room_id)
        sent = ("hearth_request_seconds_count", SEND, "PUT", "200")
        both = {sent: EVENTS, ("hearth_processes",): 2, ("hearth_federation_shards",): 32}
        before = await until_figures(server, both)
        tellers = Counter([await _teller(server) for _ in range(12)])

        workers = [
            child for child in psutil.Process(server.pid).children() if "homeserver.worker" in " ".join(child.cmdline())
        ]
        memory = sum(worker.memory_info().rss for worker in workers)
        os.kill(workers[0].pid, signal.SIGKILL)
        await asyncio.to_thread(workers[0].wait, 30)
        after = await until_figures(server, both)

    assert len(tellers) == 1  # whoever answers, all say the same
    assert before["hearth_memory_bytes",] / memory > 0.7
    assert before["hearth_database_connections_limit",] == 20
    assert after["hearth_log_batch_entries_sum",] >= before["hearth_log_batch_entries_sum",]  # nothing is forgotten
    assert after["hearth_memory_bytes",] < 1.5 * before["hearth_memory_bytes",]  # but of the one that is gone
    assert after["hearth_background_tasks", "log"] == 2


async def _teller(server: HearthProcess) -> tuple[float, ...]:
    found = await read_figures(server.base_url)
    return tuple(
        found[name]
        for name in (
            ("hearth_request_seconds_count", SEND, "PUT", "200"),
            ("hearth_processes",),
            ("hearth_log_batch_entries_sum",),
            ("hearth_log_position",),
        )
    )
