"""What those are told who restart processes, and who spread requests among them."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from homeserver import health
from homeserver.app import Application
from homeserver.config import API, Listener
from homeserver.signing_keys import OwnKeys
from storage import tail
from tests.scenarios.hearth_process import serving
from tests.servers import SIGNING_KEY, TEST_CONFIG, running

pytestmark = pytest.mark.one_process("what each says of itself")


async def ask(session: aiohttp.ClientSession, base_url: str, path: str) -> tuple[int, str]:
    """Status, and what is wrong."""
    async with session.get(base_url + path) as answer:
        return answer.status, (await answer.json()).get("error", "")


async def until_status(session: aiohttp.ClientSession, base_url: str, status: int) -> None:
    """Wait for this answer to `/ready`."""
    async with asyncio.timeout(20):
        while (await ask(session, base_url, "/ready"))[0] != status:  # noqa: ASYNC110  # of a server
            await asyncio.sleep(0.05)


@contextmanager
def away(maintenance_conninfo: str, conninfo: str) -> Iterator[None]:
    """Nobody is connected to the database, or can connect to it."""
    name = conninfo_to_dict(conninfo)["dbname"]
    with psycopg.connect(maintenance_conninfo, autocommit=True) as connection:
        connection.execute(f"alter database {name} with allow_connections false".encode())
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = %s and backend_type = 'client backend'",
            (name,),
        )
        try:
            yield
        finally:
            connection.execute(f"alter database {name} with allow_connections true".encode())


async def test_without_the_database_a_process_lives_and_is_not_ready(maintenance_conninfo: str, conninfo: str) -> None:
    async with running(conninfo) as server, aiohttp.ClientSession() as session:
        assert await ask(session, server.base_url, "/health") == (200, "")
        assert await ask(session, server.base_url, "/ready") == (200, "")
        with away(maintenance_conninfo, conninfo):
            await until_status(session, server.base_url, 503)
            status, why = await ask(session, server.base_url, "/ready")
            assert (status, why.startswith("The database")) == (503, True)
            assert await ask(session, server.base_url, "/health") == (200, "")
        await until_status(session, server.base_url, 200)


async def test_a_database_that_hangs_is_not_waited_for(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(health, "REMEMBERED_SECONDS", 0.0)
    async with running(conninfo) as server, aiohttp.ClientSession() as session:
        with psycopg.connect(conninfo) as connection:
            connection.execute("lock table log_head in access exclusive mode")
            asked = [ask(session, server.base_url, "/ready") for _ in range(20)]
            answers = await asyncio.gather(*asked)
            assert {status for status, _ in answers} == {503}
            assert "has not answered" in answers[0][1]
            assert await ask(session, server.base_url, "/health") == (200, "")
        assert await ask(session, server.base_url, "/ready") == (200, "")


async def test_who_does_not_follow_the_log_is_not_ready(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(health, "UNFOLLOWED_SECONDS", 1.0)
    monkeypatch.setattr(health, "REMEMBERED_SECONDS", 0.0)
    async with running(conninfo) as server, aiohttp.ClientSession() as session:
        await asyncio.sleep(1.2)
        assert await ask(session, server.base_url, "/ready") == (200, "")
        async with server.application.tail.reading:
            await asyncio.sleep(1.2)
            status, why = await ask(session, server.base_url, "/ready")
        assert (status, why) == (503, "The log has not been followed for 1 seconds")
        await asyncio.sleep(0.3)
        assert await ask(session, server.base_url, "/ready") == (200, "")


async def test_who_drains_is_not_ready(conninfo: str) -> None:
    application = Application(TEST_CONFIG, conninfo, OwnKeys(SIGNING_KEY))
    await application.start()
    base_url = f"http://127.0.0.1:{application.ports[0]}"
    async with aiohttp.ClientSession() as session:
        try:
            assert await ask(session, base_url, "/ready") == (200, "")
        finally:
            stopping = asyncio.create_task(application.stop(drain=True))
        await asyncio.sleep(0.1)
        answers = [await ask(session, base_url, "/ready")]  # on the connection from before
        await stopping
    assert answers == [(503, "The server is shutting down")]


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_server_gives_notice_of_its_end_and_answers_meanwhile(arguments: tuple[str, ...]) -> None:
    async with (
        serving("shutdown_delay: 3 s\n", apis="[client, health]", arguments=arguments) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        assert await ask(session, server.base_url, "/ready") == (200, "")
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.sleep(0.5)
        answers = [await ask(session, server.base_url, "/ready") for _ in range(8)]
        others = [await ask(session, server.base_url, "/_matrix/client/versions") for _ in range(8)]
        code = await asyncio.to_thread(server.wait_for_end)

    assert answers == [(503, "The server is shutting down")] * 8  # each of a connection of its own
    assert others == [(200, "")] * 8
    assert code == 0


async def test_nobody_is_told_where_it_is_not_configured(conninfo: str) -> None:
    listener = Listener(address="127.0.0.1", port=0, apis=(API.CLIENT,))
    async with running(conninfo, listeners=(listener,)) as server, aiohttp.ClientSession() as session:
        assert (await ask(session, server.base_url, "/health"))[0] == 404
        assert (await ask(session, server.base_url, "/ready"))[0] == 404
