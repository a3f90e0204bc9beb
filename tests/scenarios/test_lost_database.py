"""A database that goes away, or cannot write: clients are told to come again, nothing answered is lost, it recovers."""

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from storage import database, migrate
from storage.cluster_settings import ClusterSettings
from storage.embedded import EmbeddedPostgres
from tests.client import Answer, Client, Server, quote
from tests.rooms import create_room, join, send
from tests.scenarios.cutting_proxy import Cut, cutting_proxy
from tests.scenarios.hearth_process import a_directory, signal_all
from tests.scenarios.load import Counts, check_refusal, until_answered
from tests.servers import running

TOLD_SECONDS = 8
"""Within which a client hears that the database is away, on a machine that does much else."""
HANGS_SECONDS = 30
"""The same where the database hangs: a new connection is tried for ten seconds."""
BACK_SECONDS = 15
"""Within which all is well again once the database is."""


class External:
    """A PostgreSQL that the server neither starts nor stops."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        postgres.start()
        self.conninfo = postgres.create_database()

    async def stop(self) -> None:
        await asyncio.to_thread(self._postgres.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self._postgres.start)

    def send_signal(self, number: signal.Signals) -> None:
        """To all of its processes."""
        postmaster = psutil.Process(self._postgres.postmaster_pid)
        signal_all([postmaster.pid, *(child.pid for child in postmaster.children())], number)


@pytest_asyncio.fixture
async def external() -> AsyncIterator[External]:
    """A migrated database in a cluster of the test's own, which no server owns."""
    directory = a_directory()
    settings = ClusterSettings(durable=False, shared_buffers_bytes=32 << 20)
    external = External(EmbeddedPostgres(directory, settings=settings))
    try:
        await asyncio.to_thread(migrate.upgrade, external.conninfo)
        yield external
    finally:
        await external.stop()
        shutil.rmtree((directory / "postgresql").resolve(), ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture
async def server(external: External) -> AsyncIterator[Server]:
    """A server on that database."""
    async with running(external.conninfo, presence=False) as server:
        yield server


def message(room_id: str, txn_id: str) -> tuple[str, str, Any]:
    """A request that sends one."""
    path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/{txn_id}"
    return "PUT", path, {"msgtype": "m.text", "body": f"message {txn_id}"}


async def is_refused(
    client: Client, method: str, path: str, body: Any = None, *, seconds: float = TOLD_SECONDS
) -> Answer:
    """The answer to a request while the database is away: soon, and with the hint when to try again."""
    began = time.monotonic()
    answer = await client.request(method, path, body)
    assert time.monotonic() - began < seconds
    check_refusal(method, path, answer.status, answer.body, answer.headers)
    return answer


async def test_while_the_database_is_away_clients_are_told_and_afterwards_all_goes_on(
    external: External, server: Server
) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    before = await alice.ok(*message(room_id, "before"))
    token = (await bob.ok("GET", "/v3/sync"))["next_batch"]
    waiting = asyncio.create_task(bob.request("GET", "/v3/sync", params={"since": token, "timeout": "50000"}))
    await asyncio.sleep(0.3)
    await external.stop()
    for round_ in range(3):
        requests = [
            is_refused(alice, *message(room_id, "during")),
            is_refused(alice, "GET", f"/v3/rooms/{quote(room_id)}/messages?dir=b"),
            is_refused(alice, "PUT", f"/v3/sendToDevice/test/{round_}", {"messages": {bob.user_id: {"*": {}}}}),
            is_refused(bob, "GET", "/v3/sync"),
            is_refused(alice, "POST", "/v3/createRoom", {}),
            is_refused(
                server.anonymous.logged_in({"user_id": "", "device_id": "", "access_token": "x"}), "GET", "/v3/sync"
            ),
        ]
        await asyncio.gather(*requests)
        await asyncio.sleep(2)
    assert (await server.anonymous.get("/versions")).status == 200
    assert not waiting.done(), "a sync that waits needs no database"
    assert not server.application.failed.done()

    await external.start()
    async with asyncio.timeout(BACK_SECONDS):
        during = await until_answered(alice, Counts(), *message(room_id, "during"))
        answer = await waiting
    assert (await alice.ok(*message(room_id, "during"))) == during
    assert (await alice.ok(*message(room_id, "before"))) == before
    assert answer.status == 200
    timeline = answer.body["rooms"]["join"][room_id]["timeline"]["events"]
    assert [event["event_id"] for event in timeline] == [during["event_id"]]
    for number in range(30):  # no connection of before is handed out
        await bob.ok("GET", f"/v3/rooms/{quote(room_id)}/messages", params={"dir": "b", "limit": str(number + 1)})


@pytest.mark.one_process("its patience is shortened here")
async def test_a_database_that_hangs_is_given_up_and_taken_up_again(
    external: External, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await server.register("alice")
    room_id = await create_room(alice)
    before = await alice.ok(*message(room_id, "before"))
    monkeypatch.setattr(database, "STUCK_SECONDS", 1.0)
    external.send_signal(signal.SIGSTOP)
    try:
        for txn_id in ("one", "two"):
            refused = [
                is_refused(alice, *message(room_id, txn_id), seconds=HANGS_SECONDS),
                is_refused(alice, "GET", f"/v3/rooms/{quote(room_id)}/messages?dir=b", seconds=HANGS_SECONDS),
            ]
            await asyncio.gather(*refused)
    finally:
        external.send_signal(signal.SIGCONT)
    async with asyncio.timeout(BACK_SECONDS):
        one = await until_answered(alice, Counts(), *message(room_id, "one"))
    assert (await alice.ok(*message(room_id, "one"))) == one
    assert (await alice.ok(*message(room_id, "before"))) == before


@pytest.mark.one_process("it is this one that stops")
async def test_a_server_stops_while_its_database_is_away(external: External) -> None:
    async with running(external.conninfo) as server:
        alice = await server.register("alice")
        waiting = asyncio.create_task(
            alice.request("GET", "/v3/sync", params={"since": await token_of(alice), "timeout": "50000"})
        )
        await asyncio.sleep(0.3)
        await external.stop()
        began = time.monotonic()
    assert time.monotonic() - began < BACK_SECONDS
    assert (await waiting).status in (200, 503)
    await external.start()


async def token_of(client: Client) -> str:
    """Where a first sync ends."""
    token: str = (await client.ok("GET", "/v3/sync"))["next_batch"]
    return token


@pytest.mark.parametrize("cut", Cut)
async def test_a_commit_whose_answer_was_lost_is_there_once(conninfo: str, cut: Cut) -> None:
    """The connection breaks around the commit, so that nobody knows; the client asks again with its transaction ID."""
    async with cutting_proxy(conninfo) as proxy, running(proxy.conninfo, presence=False) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await create_room(alice, preset="public_chat", power_level_content_override={"state_default": 0})
        await join(bob, room_id)
        token = (await bob.ok("GET", "/v3/sync"))["next_batch"]
        told: list[str] = []
        for number in range(5):
            proxy.arm(cut)
            requests = [(alice, message(room_id, f"{number}-{index}")) for index in range(3)]
            requests.append((bob, topic(room_id, number)))
            answers = await asyncio.gather(*(client.request(*request) for client, request in requests))
            assert not proxy.is_armed
            refused = [answer for answer in answers if answer.status != 200]
            assert refused or cut is Cut.AFTER  # then a message is found by its transaction at once
            for answer in refused:
                check_refusal("PUT", "", answer.status, answer.body, answer.headers)
            repeated = [client.ok(*request) for client, request in requests]
            event_ids = [answer["event_id"] for answer in await asyncio.gather(*repeated)]
            assert len(set(event_ids)) == 4
            body = await bob.ok("GET", "/v3/sync", params={"since": token, "timeout": "0"})
            token = body["next_batch"]
            new = [event["event_id"] for event in body["rooms"]["join"][room_id]["timeline"]["events"]]
            assert sorted(new) == sorted(event_ids)
            told += new
        await send(alice, room_id, "and on it goes")
        async with server.application.database.read() as tx:
            rows = await tx.fetch("select event_id from events where txn_id is not null order by position")
            assert {event_id for (event_id,) in rows} <= {*told, *(event_id for (event_id,) in rows[-1:])}
            assert len(rows) == 5 * 3 + 1
            [(extremities,)] = await tx.fetch("select extremities from rooms where room_id = %s", (room_id,))
            assert extremities == [rows[-1][0]]


def topic(room_id: str, number: int) -> tuple[str, str, Any]:
    """A request that changes state."""
    return "PUT", f"/v3/rooms/{quote(room_id)}/state/test.topic/", {"n": number}
