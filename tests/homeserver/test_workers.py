"""`hearth serve --workers N`: several processes behind one port, started, lost and replaced."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.client import Client, unique
from tests.rooms import create_room, send
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving

WORKERS = 2


@pytest_asyncio.fixture(scope="module")
async def server() -> AsyncIterator[HearthProcess]:
    async with serving(arguments=("--workers", str(WORKERS))) as server:
        yield server


def workers(server: HearthProcess) -> set[int]:
    """The processes that answer."""
    return {child.pid for child in psutil.Process(server.pid).children() if _is_worker(child)}


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "homeserver.worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # nor is one that has just ended
        return False


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(0.05)


async def connections(server: HearthProcess) -> dict[int, int]:
    """How many of many new connections each worker was given."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            async with session.get(f"{server.base_url}/_matrix/client/versions") as answer:
                assert answer.status == 200

        await asyncio.gather(*(ask() for _ in range(60)))
        return {
            pid: sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port for each in found)
            for pid in workers(server)
            for found in [psutil.Process(pid).net_connections("tcp")]
        }


async def test_all_of_them_answer_and_one_that_is_killed_is_followed_by_another(server: HearthProcess) -> None:
    before = await connections(server)
    assert len(before) == WORKERS
    assert all(before.values())

    os.kill(next(iter(before)), signal.SIGKILL)

    await until(lambda: len(workers(server) - before.keys()) == 1)
    async with a_visitor(server) as visitor:
        alice = await visitor.register_as(f"alice-{unique()}")
        room_id = await create_room(alice)
        assert await send(alice, room_id, "still here")
    await until(lambda: len(workers(server)) == WORKERS)
    assert all((await connections(server)).values())


async def test_what_is_written_by_one_is_read_by_any(server: HearthProcess) -> None:
    async with a_visitor(server) as visitor:
        alice = await visitor.register_as(f"alice-{unique()}")
        room_id = await create_room(alice)
        for number in range(20):
            async with a_visitor(server) as other:  # a connection of its own: to any of them
                anywhere = Client(other.base_url, other.session, alice.user_id, access_token=alice.access_token)
                event_id = await send(anywhere, room_id, f"message {number}")
            assert (await alice.ok("GET", f"/v3/rooms/{room_id}/event/{event_id}"))["event_id"] == event_id


async def test_settings_that_cannot_be_used_leave_the_old_workers_alone(server: HearthProcess) -> None:
    before = workers(server)
    settings = server.directory / "config.yaml"
    good = settings.read_text(encoding="utf-8")
    for tries, (bad, why) in enumerate(
        ((good + "nonsense: 1\n", "nonsense"), (good.replace(str(server.port), "1"), "`listeners` has changed")), 1
    ):
        settings.write_text(bad, encoding="utf-8")
        os.kill(server.pid, signal.SIGHUP)
        await until(lambda tries=tries: server.log.count("the workers are not replaced") == tries)  # type: ignore[misc]  # a default
        assert why in server.log
    settings.write_text(good, encoding="utf-8")

    assert workers(server) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_none_is_left_when_the_server_ends(number: signal.Signals) -> None:
    async with serving(arguments=("--workers", str(WORKERS))) as server:
        processes = [psutil.Process(pid) for pid in workers(server)]
        os.kill(server.pid, number)
        await asyncio.to_thread(server.wait_for_end)

        await until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes))


async def test_a_server_whose_workers_cannot_start_ends_and_says_why() -> None:
    with pytest.raises(AssertionError, match="did not come up"):
        async with serving("application_service_files: [config.yaml]\n", arguments=("--workers", "2")):
            pass


async def test_budgets_hold_for_all_workers_together() -> None:
    limits = "rate_limits: {login: {per_second: 0.001, burst: 5}}\n"
    async with serving(limits, arguments=("--workers", str(WORKERS))) as server:
        statuses = []
        for _ in range(12):
            async with a_visitor(server) as visitor:  # a connection of its own: to any of them
                body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "x"}, "password": "y"}
                statuses.append((await visitor.post("/v3/login", body)).status)

        assert statuses == [403] * 5 + [429] * 7
