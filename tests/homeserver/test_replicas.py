"""History is read from a standby, and nobody notices: not what it lacks, nor that it is away."""

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from federation.protocol.errors import NotFound
from homeserver.config import Database, Secret
from storage import database
from storage.database import Tx
from tests.client import Client, Server, quote
from tests.homeserver.rooms import history, leave, page, redact
from tests.rooms import create_room, join, send
from tests.servers import running
from tests.standby import Replicated

pytestmark = pytest.mark.one_process("where it reads")


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    """One pair for all tests but those that end it."""
    pair = Replicated()
    yield pair
    pair.close()


@pytest.fixture
def a_pair_of_its_own() -> Iterator[Replicated]:
    pair = Replicated()
    yield pair
    pair.close()


def settings(pair: Replicated) -> Database:
    return Database(replicas=(Secret(pair.replica),))


async def where(server: Server) -> bool:
    """Whether history is read from a replica just now."""

    async def ask(tx: Tx) -> bool:
        row = await tx.fetch_one("select pg_is_in_recovery()")
        return row is not None and bool(row[0])

    async with server.application.database.read() as tx:
        return await server.application.database.read_history(tx, ask)


def replica_reads(server: Server) -> float:
    value = server.application.database.figures()["database_replica_reads_total"]
    assert isinstance(value, int | float)
    return value


def again(server: Server) -> None:
    """Ask the replica at once, which was avoided."""
    for replica in server.application.database._replicas:
        replica.avoided_until = 0.0


async def a_conversation(server: Server, count: int = 20) -> tuple[Client, str, list[str]]:
    alice = await server.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    return alice, room_id, [await send(alice, room_id, f"message {number}") for number in range(count)]


def texts(events: list[dict[str, object]]) -> list[str]:
    return [str(event["event_id"]) for event in events if event["type"] == "m.room.message"]


async def test_history_comes_from_the_replica(replicated: Replicated, monkeypatch: pytest.MonkeyPatch) -> None:
    for patience in ("_REPLICA_PATIENCE_SECONDS", "_REPLICA_CONNECT_SECONDS"):  # whatever else the machine does
        monkeypatch.setattr(database, patience, 10.0)
    async with running(replicated.primary, database=settings(replicated)) as server:
        alice, room_id, sent = await a_conversation(server)
        again(server)

        assert await where(server)
        before = replica_reads(server)
        assert texts(await history(alice, room_id, limit=7)) == sent[::-1]
        assert replica_reads(server) >= before + 3
        assert texts((await page(alice, room_id, dir="f", limit=50))["chunk"]) == sent
        context = await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/context/{quote(sent[10])}?limit=4")
        assert texts(context["events_before"]) == sent[9:7:-1]
        assert texts(context["events_after"]) == sent[11:13]
        assert replica_reads(server) >= before + 5


async def test_who_has_sent_reads_it_back_though_the_replica_lacks_it(replicated: Replicated) -> None:
    async with running(replicated.primary, database=settings(replicated)) as server:
        alice, room_id, sent = await a_conversation(server)
        replicated.pause(is_paused=True)
        try:
            for _ in range(3):
                sent.append(await send(alice, room_id, "news"))
                again(server)
                assert texts((await page(alice, room_id, limit=1))["chunk"]) == sent[-1:]
            assert not await where(server)
            redaction = await redact(alice, room_id, sent[0])
            again(server)
            chunk = (await page(alice, room_id, limit=50))["chunk"]
            (event,) = [each for each in chunk if each["event_id"] == sent[0]]
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == redaction
        finally:
            replicated.pause(is_paused=False)
        async with asyncio.timeout(30):
            while not await where(server):
                again(server)
        assert texts((await page(alice, room_id, limit=50))["chunk"])[0] == sent[-1]


async def test_who_was_thrown_out_reads_nothing_new_though_the_replica_does_not_know(replicated: Replicated) -> None:
    async with running(replicated.primary, database=settings(replicated)) as server:
        alice, room_id, sent = await a_conversation(server, 3)
        bob = await server.register("bob")
        await join(bob, room_id)
        replicated.pause(is_paused=True)
        try:
            await leave(bob, room_id)
            await send(alice, room_id, "not for bob")
            again(server)
            assert texts((await page(bob, room_id, limit=50))["chunk"]) == sent[::-1]
            await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/forget", {})
            again(server)
            assert (await bob.get(f"/v3/rooms/{quote(room_id)}/messages", dir="b")).status == 403
        finally:
            replicated.pause(is_paused=False)


async def test_an_error_of_the_reading_itself_is_told(replicated: Replicated) -> None:
    async def refuse(_tx: Tx) -> None:
        raise NotFound("nothing here")

    async with (
        running(replicated.primary, database=settings(replicated)) as server,
        server.application.database.read() as tx,
    ):
        with pytest.raises(NotFound):
            await server.application.database.read_history(tx, refuse)


async def test_without_the_replica_the_primary_answers(a_pair_of_its_own: Replicated) -> None:
    pair = a_pair_of_its_own
    async with running(pair.primary, database=settings(pair)) as server:
        alice, room_id, sent = await a_conversation(server)
        pair.promote()  # it goes its own way, without what follows
        sent.append(await send(alice, room_id, "news"))
        again(server)
        assert texts(await history(alice, room_id)) == sent[::-1]
        assert not await where(server)
        pair.stop_replica()
        for _ in range(3):
            again(server)
            assert texts(await history(alice, room_id)) == sent[::-1]
        assert not await where(server)
    async with running(pair.primary, database=settings(pair)) as server:  # it need not be there at the start
        there = dataclasses.replace(alice, base_url=server.base_url, session=server.anonymous.session)
        assert texts(await history(there, room_id)) == sent[::-1]
