"""Processes on one database hear of each other by PostgreSQL or by NATS. What is lost on the way costs time alone."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.types import UserID
from homeserver.config import Bus, BusKind, ExistingFile, Secret
from storage import exchange, log, tail
from storage.account_data import AccountDataChanged
from storage.bus import Hear, PostgresBus
from storage.log_entries import Entry
from storage.nats_bus import NatsBus
from tests.client import Client, Server, quote
from tests.federation.authority import Authority
from tests.homeserver.syncs import ids, joined, sync, timeline, token
from tests.homeserver.test_sync_equivalence import FILTERS, a_story, at, comparable, differences
from tests.nats_server import NatsServer
from tests.rooms import create_room, join, send
from tests.scenarios.cutting_proxy import Cut, cutting_proxy
from tests.servers import running

BY_POSTGRES = Bus()
MESSAGES = 40

pytestmark = pytest.mark.one_process("each server of these is one of several as it is")


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """A NATS server of the test's own."""
    server = NatsServer()
    yield server
    server.kill()


def by(nats: NatsServer) -> Bus:
    return Bus(BusKind.NATS, (Secret(nats.url),))


@asynccontextmanager
async def processes(conninfo: str, bus: Bus, count: int = 2) -> AsyncIterator[list[Server]]:
    """Several on one database, each of which knows that there are others."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running(conninfo, bus=bus)) for _ in range(count)]
        if bus == BY_POSTGRES:
            for server in servers:
                server.application.bus.carried_bytes = 7_900
        yield servers


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Half of all messages are lost, others come twice, or late; those that were lost."""
    chance, lost = random.Random(5), []

    def damaged(handle: Hear) -> Hear:
        def hear(message: bytes) -> None:
            if chance.random() < 0.5:
                lost.append(message)
                return
            handle(message)
            if chance.random() < 0.5:
                asyncio.get_running_loop().call_later(chance.random() / 20, handle, message)

        return hear

    for kind in (PostgresBus, NatsBus):

        def run(bus: Any, hear: Mapping[str, Hear], look: Callable[[], None], *, whole: Any = kind.run) -> Any:
            return whole(bus, {subject: damaged(handle) for subject, handle in hear.items()}, look)

        monkeypatch.setattr(kind, "run", run)
    monkeypatch.setattr(tail, "POLL_SECONDS", 0.5)
    return lost


async def follow(clients: list[Client], room_id: str, expected: int) -> list[str]:
    """What a user sees of a room who waits for news, each time at another process."""
    seen: list[str] = []
    since, chance = await token(clients[0]), random.Random(expected)
    async with asyncio.timeout(60):
        while len(seen) < expected:
            answer = await sync(chance.choice(clients), since, timeout=5000)
            since = answer["next_batch"]
            assert not joined(answer, room_id).get("timeline", {}).get("limited")
            seen.extend(ids(timeline(answer, room_id)))
    return seen


async def converse(servers: list[Server], during: Callable[[int], None] = lambda _number: None) -> None:
    """Users write and follow through all these processes, and each sees all that was written, once and in order."""
    users = [await servers[0].register(name) for name in ("alice", "bob", "carol")]
    room_id = await create_room(users[0], preset="public_chat")
    for user in users[1:]:
        await join(user, room_id)
    followers = [
        asyncio.create_task(follow([at(server, user) for server in servers], room_id, MESSAGES)) for user in users
    ]
    await asyncio.sleep(0.2)
    sent = []
    for number in range(MESSAGES):
        during(number)
        writer = at(servers[number % len(servers)], users[number % len(users)])
        sent.append(await send(writer, room_id, f"message {number}"))
    for seen in await asyncio.gather(*followers):
        assert seen == sent


def figure(server: Server, name: str) -> float:
    value = server.application.tail.figures()[name]
    assert isinstance(value, int | float)
    return value


@pytest.mark.parametrize("kind", [BusKind.POSTGRES, BusKind.NATS])
async def test_half_of_the_messages_are_enough(
    conninfo: str, nats: NatsServer, lossy: list[bytes], kind: BusKind
) -> None:
    async with processes(conninfo, by(nats) if kind is BusKind.NATS else BY_POSTGRES, 3) as servers:
        await converse(servers)

        assert len(lossy) > MESSAGES / 2
        assert all(figure(server, "tail_changes_read_total") for server in servers)
        assert any(figure(server, "tail_changes_carried_total") for server in servers)


@pytest.mark.parametrize("kind", [BusKind.POSTGRES, BusKind.NATS])
async def test_a_process_that_heard_half_answers_as_a_fresh_one(
    conninfo: str, nats: NatsServer, lossy: list[bytes], kind: BusKind
) -> None:
    bus = by(nats) if kind is BusKind.NATS else BY_POSTGRES
    async with processes(conninfo, bus) as (one, other):
        tokens = await a_story([one, other], 3)
        async with running(conninfo, presence=False) as fresh:
            for user, since in tokens:
                answers = [comparable(await sync(at(each, user), since, **FILTERS[0])) for each in (fresh, one, other)]
                for from_memory in answers[1:]:
                    assert differences(from_memory, answers[0]) == []


@pytest.mark.parametrize("kind", [BusKind.POSTGRES, BusKind.NATS])
async def test_others_hear_of_a_commit_whose_answer_was_lost(
    conninfo: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch, kind: BusKind
) -> None:
    monkeypatch.setattr(tail, "POLL_SECONDS", 60)
    bus = by(nats) if kind is BusKind.NATS else BY_POSTGRES
    async with (
        cutting_proxy(conninfo) as proxy,
        running(proxy.conninfo, bus=bus, presence=False) as one,
        running(conninfo, bus=bus, presence=False) as other,
    ):
        alice = await one.register("alice")
        room_id = await create_room(alice)
        await until(lambda: other.application.tail.position == one.application.tail.position)
        there = at(other, alice)
        since = await token(there)
        proxy.arm(Cut.AFTER)
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/lost"
        _, answer = await asyncio.gather(
            alice.request("PUT", path, {"msgtype": "m.text", "body": "lost?"}), sync(there, since, timeout=10_000)
        )
        assert not proxy.is_armed
        assert [event["content"]["body"] for event in timeline(answer, room_id)] == ["lost?"]


async def test_who_repeats_what_was_told_to_nobody_finds_it_then(
    conninfo: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "POLL_SECONDS", 60)
    async with processes(conninfo, by(nats)) as (one, other):
        alice = await one.register("alice")
        room_id = await create_room(alice)
        await until(lambda: other.application.tail.position == one.application.tail.position)
        there = at(other, alice)
        since = await token(there)
        # As if it were killed between the commit and what it says of it.
        monkeypatch.setattr(one.application.bus, "after_commit", lambda _subject, _message: None)
        path, body = f"/v3/rooms/{quote(room_id)}/send/m.room.message/once", {"msgtype": "m.text", "body": "once"}
        sent = await alice.ok("PUT", path, body)

        assert await there.ok("PUT", path, body) == sent
        assert ids(timeline(await sync(there, since), room_id)) == [sent["event_id"]]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def connected(*servers: Server) -> None:
    """Return when what others tell by the bus arrives at these."""
    await until(lambda: all(server.application.bus.figures()["bus_up"] for server in servers))


async def carried(server: Server) -> None:
    """Return when something came by the bus."""
    await until(lambda: figure(server, "tail_changes_carried_total") > 0)


async def test_nats_brings_entries_and_no_process_listens_at_the_database(conninfo: str, nats: NatsServer) -> None:
    async with processes(conninfo, by(nats)) as servers:
        await connected(*servers)
        await converse(servers)

        # A process that appends reads what has not come yet: how much that is depends on the machine.
        assert sum(figure(server, "tail_changes_carried_total") for server in servers) > MESSAGES / 2
        async with servers[0].application.database.read() as tx:
            listening = await tx.fetch(
                "select query from pg_stat_activity where datname = current_database() and query ilike 'listen%%'"
            )
            assert listening == []


async def test_what_a_process_wrote_last_is_heard_when_it_ends(
    conninfo: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "POLL_SECONDS", 60.0)
    async with processes(conninfo, by(nats), 1) as (staying,):
        await connected(staying)
        alice = await staying.register("alice")
        room_id = await create_room(alice)
        since = await token(alice)
        async with running(conninfo, bus=by(nats)) as ending:
            await connected(ending)
            waiting = asyncio.create_task(sync(alice, since, timeout=30_000))
            entry = Entry([AccountDataChanged(UserID(alice.user_id), None, "org.example", b"{}")])

            async def write() -> None:
                await ending.application.log.append(entry)

            monkeypatch.setattr(ending.application.accounts.activity, "flush", write)
        answer = await asyncio.wait_for(waiting, 10)

        assert [event["type"] for event in answer["account_data"]["events"]] == ["org.example"]
        assert room_id not in answer.get("rooms", {}).get("join", {})


@pytest.mark.parametrize("kind", [BusKind.POSTGRES, BusKind.NATS])
async def test_typing_comes_by_the_bus_and_nonsense_does_no_harm(
    conninfo: str, nats: NatsServer, kind: BusKind
) -> None:
    async with processes(conninfo, by(nats) if kind is BusKind.NATS else BY_POSTGRES) as (one, other):
        await connected(one, other)
        for subject in (exchange.CHANNEL, log.CHANNEL):
            for nonsense in (b"nonsense", b"{}", b"[]", b"1 2 3", b'{"room":1}', b"5 4 1\n"):
                await one.application.bus.tell(subject, nonsense)
        alice = await one.register("alice")
        room_id = await create_room(alice)
        there = at(other, alice)
        since = await token(there)
        path = f"/v3/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
        waiting = asyncio.create_task(sync(there, since, timeout=10_000))
        await alice.ok("PUT", path, {"typing": True, "timeout": 60_000})

        (event,) = joined(await asyncio.wait_for(waiting, 9), room_id)["ephemeral"]["events"]
        assert event["content"] == {"user_ids": [alice.user_id]}


@pytest.mark.parametrize("fault", ["killed", "stopped", "not there yet"])
async def test_nobody_misses_anything_while_nats_is_away(
    conninfo: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(tail, "POLL_SECONDS", 0.5)

    def during(number: int) -> None:
        if number == 10 and fault == "killed":
            nats.kill()
        elif number == 10 and fault == "stopped":
            nats.signal(signal.SIGSTOP)
        elif number == 30 and fault == "stopped":
            nats.signal(signal.SIGCONT)
        elif number == 30:
            nats.start()

    if fault == "not there yet":
        nats.kill()
    async with processes(conninfo, by(nats)) as servers:
        await converse(servers, during)
        before, dave = figure(servers[1], "tail_changes_carried_total"), await servers[0].register("dave")
        async with asyncio.timeout(30):  # until both are connected again
            while figure(servers[1], "tail_changes_carried_total") == before:
                await create_room(dave)


async def test_nats_may_be_reached_by_tls(conninfo: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    nats = NatsServer("--tls", "--tlscert", str(certificate), "--tlskey", str(key))
    address = Secret(nats.url.replace("nats://", "tls://"))
    trusting = Bus(BusKind.NATS, (address,), (ExistingFile(authority.certificate),))
    try:
        async with (
            processes(conninfo, trusting) as (one, other),
            running(conninfo, bus=Bus(BusKind.NATS, (address,))) as stranger,
        ):
            await connected(one, other)
            await create_room(await one.register("alice"))
            await carried(other)

            assert figure(stranger, "tail_changes_carried_total") == 0
    finally:
        nats.kill()


async def test_a_password_is_needed_where_nats_has_one(conninfo: str) -> None:
    nats = NatsServer("--user", "hearth", "--pass", "a secret")
    with_password = nats.url.replace("nats://", "nats://hearth:a%20secret@")
    try:
        async with (
            running(conninfo, bus=Bus(BusKind.NATS, (Secret(with_password),))) as one,
            running(conninfo, bus=Bus(BusKind.NATS, (Secret(with_password),))) as other,
            running(conninfo, bus=by(nats)) as stranger,
        ):
            await connected(one, other)
            await create_room(await one.register("alice"))
            await carried(other)

            assert figure(stranger, "tail_changes_carried_total") == 0
    finally:
        nats.kill()
