"""What is to be sent survives restarts and deaths, one process at a time sends it, and nothing bad blocks the rest."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from federation.outbound import destinations as queues
from federation.outbound import sender
from federation.protocol.errors import NotFound
from federation.protocol.types import JsonObject
from homeserver import federation_commands
from homeserver.config import ExistingFile, Federation, Listener
from storage import destinations, outbox
from storage.bus import PostgresBus
from storage.tail import POLL_SECONDS
from tests.client import Client, Server, unique
from tests.federation import sending_process
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer, listening
from tests.federation.peer import path_of
from tests.federation.resident_rooms import SharedRoom
from tests.federation.sending_process import Running
from tests.federation.servers import federating_on, free_port
from tests.rooms import send

HOST = "127.0.0.1"


class Installation:
    """A server name with a database, on which servers are started and stopped."""

    def __init__(self, conninfo: str, authority: Authority) -> None:
        self.conninfo = conninfo
        self.authority = authority
        self.name = f"{HOST}:{free_port()}"

    @asynccontextmanager
    async def running(self, *, sends: bool = True) -> AsyncIterator[Server]:
        """A server in this process."""
        certificate, key = self.authority.issue(HOST)
        tls = Listener(HOST, free_port(), ExistingFile(certificate), ExistingFile(key))
        changes: dict[str, Any] = {
            "server_name": self.name,
            "listeners": (tls, Listener(address=HOST, port=0)),
        }
        if not sends:
            changes["federation"] = Federation(enabled=False)
        async with federating_on(self.conninfo, self.authority, HOST, changes) as server:
            yield server

    def process(self) -> AbstractAsyncContextManager[Running]:
        """A server in a process of its own."""
        return sending_process.process(self.conninfo, self.name, self.authority)


@pytest.fixture
def installation(conninfo: str, authority: Authority) -> Installation:
    return Installation(conninfo, authority)


async def a_room_with(peer: ListeningPeer, server: Server) -> tuple[Client, str]:
    alice = await server.register("alice")
    shared = await SharedRoom.made(server, alice, peer)
    await shared.join(peer.user())
    return alice, shared.room_id


async def test_what_waits_for_a_peer_is_sent_after_a_restart(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await send(alice, room_id, "before")
        await peer.until_messages(["before"])
        await peer.stop()
        texts = [f"pending {number}" for number in range(60)]
        for text in texts:
            await send(alice, room_id, text)
        await alice.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", {"messages": {peer.user(): {"D": {}}}})
        await _until_left_alone(server, peer)
    await peer.start()
    try:
        async with installation.running() as server:
            assert server.application.outbound.availability.seconds_left(peer.name), "the back-off is forgotten"
            server.application.outbound.availability.alive(peer.name)

            await peer.until_messages(texts)
            await peer.until(lambda: peer.edus("m.direct_to_device"))
    finally:
        await peer.stop()

    assert peer.messages == ["before", *texts]


async def test_what_was_committed_and_not_sent_is_sent_by_who_starts_next(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await send(alice, room_id, "before")
        await peer.until_messages(["before"])
    async with installation.running(sends=False) as server:
        there = Client(server.base_url, server.anonymous.session, access_token=alice.access_token)
        for number in range(3):
            await send(there, room_id, f"unsent {number}")
        await there.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", {"messages": {peer.user(): {"D": {}}}})
    await peer.start()
    try:
        async with installation.running():
            await peer.until_messages([f"unsent {number}" for number in range(3)])
            await peer.until(lambda: peer.edus("m.direct_to_device"))
    finally:
        await peer.stop()

    assert peer.messages == ["before", *(f"unsent {number}" for number in range(3))]


async def test_who_is_killed_is_replaced_within_seconds(installation: Installation) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(installation.running())
        peer = await stack.enter_async_context(listening(server, installation.authority))
        alice, room_id = await a_room_with(peer, server)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(installation.running(sends=False))
        await peer.start()
        stack.push_async_callback(peer.stop)
        there = Client(server.base_url, server.anonymous.session, access_token=alice.access_token)
        first = await stack.enter_async_context(installation.process())
        await send(there, room_id, "sent by the first")
        await peer.until_messages(["sent by the first"])
        await stack.enter_async_context(installation.process())
        await send(there, room_id, "before the death")
        first.kill()
        await send(there, room_id, "after the death")

        await peer.until_messages(["before the death", "after the death"], seconds=6)

    assert sorted(set(peer.messages)) == ["after the death", "before the death", "sent by the first"]
    assert peer.messages.count("after the death") == 1


async def test_whatever_was_answered_before_a_kill_arrives(installation: Installation) -> None:
    """Killed again and again in the middle of a burst, and each time another takes over."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(installation.running())
        peer = await stack.enter_async_context(listening(server, installation.authority))
        alice, room_id = await a_room_with(peer, server)
    answered: list[str] = []

    async def burst(client: Client, life: int) -> None:
        for number in range(10_000):
            text = f"{life} {number}"
            await send(client, room_id, text)
            answered.append(text)

    async with contextlib.AsyncExitStack() as stack:
        await peer.start()
        stack.push_async_callback(peer.stop)
        trust = ssl.create_default_context(cafile=installation.authority.certificate)
        for life in range(3):
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)))
            running = await stack.enter_async_context(installation.process())
            client = Client(running.base_url, session, access_token=alice.access_token)
            bursts = [asyncio.ensure_future(burst(client, 10 * life + each)) for each in range(4)]
            await asyncio.sleep(1.7 + 0.3 * life)
            running.kill()
            with pytest.raises(aiohttp.ClientError):
                await asyncio.gather(*bursts)
            await asyncio.gather(*bursts, return_exceptions=True)
        await stack.enter_async_context(installation.process())

        await peer.until_messages(answered, seconds=20)

    assert len(answered) > 30


async def test_what_a_peer_had_not_confirmed_at_a_death_is_sent_again(installation: Installation) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(installation.running())
        peer = await stack.enter_async_context(listening(server, installation.authority))
        alice, room_id = await a_room_with(peer, server)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(installation.running(sends=False))
        await peer.start()
        stack.push_async_callback(peer.stop)
        there = Client(server.base_url, server.anonymous.session, access_token=alice.access_token)
        first = await stack.enter_async_context(installation.process())
        await send(there, room_id, "before")
        await peer.until_messages(["before"])
        peer.answers.clear()
        await send(there, room_id, "unconfirmed")
        await peer.until(lambda: len(peer.transactions) >= 2)
        await asyncio.sleep(2.5)  # in which how far everybody is was noted
        first.kill()
        peer.answers.set()
        await asyncio.sleep(0.2)
        peer.taken = []
        await stack.enter_async_context(installation.process())

        await peer.until_messages(["unconfirmed"])


async def test_of_two_processes_one_sends_each_thing_once(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        async with installation.running() as other:
            there = Client(other.base_url, other.anonymous.session, access_token=alice.access_token)
            texts = [f"{number}" for number in range(40)]
            for text in texts:
                await send(alice if int(text) % 2 else there, room_id, text)
                if text == "10":
                    await asyncio.sleep(2)  # shards change hands
            await peer.until_messages(texts)
        await send(alice, room_id, "the last")
        await peer.until_messages(["the last"])

    assert sorted(peer.messages) == sorted([*texts, "the last"])


async def test_a_request_to_one_process_ends_the_wait_in_both(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        async with installation.running() as other:
            await asyncio.sleep(2)  # they share the work now
            await peer.stop()
            event_id = await send(alice, room_id, "missed")
            for each in (server, other):
                await _until_left_alone(each, peer)
            await peer.start()

            await peer.ok("GET", path_of("/v1/event/{}", event_id))  # to the first, whichever it is that sends

            await peer.until_messages(["missed"], seconds=4)
            async with asyncio.timeout(3):
                while other.application.outbound.availability.seconds_left(peer.name):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)


async def test_a_thing_that_a_peer_cannot_take_is_set_aside(installation: Installation) -> None:
    def refuse_poison(_txn_id: str, body: JsonObject) -> tuple[int, JsonObject]:
        is_poisoned = any(pdu["content"].get("body") == "poison" for pdu in body["pdus"])
        is_poisoned |= any(edu["content"].get("type") == "m.poison" for edu in body.get("edus", []))
        return (400, {"errcode": "M_BAD_JSON", "error": "it hurts"}) if is_poisoned else (200, {"pdus": {}})

    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await peer.stop()
        for text in ("one", "poison", "two"):
            await send(alice, room_id, text)
        for event_type in ("m.fine", "m.poison", "m.good"):
            messages: JsonObject = {"messages": {peer.user(): {"D": {}}}}
            await alice.ok("PUT", f"/v3/sendToDevice/{event_type}/{unique('txn')}", messages)
        peer.respond = refuse_poison
        await peer.start()
        server.application.outbound.availability.alive(peer.name)

        await peer.until_messages(["one", "two"])
        await peer.until(lambda: len(peer.edus("m.direct_to_device")) >= 2)
        await send(alice, room_id, "three")
        await peer.until_messages(["three"])

        async with server.application.database.read() as tx:
            (status,) = await destinations.list_status(tx, 10)
        assert (status.server, status.set_aside, status.messages) == (peer.name, 2, 0)
    assert [text for text in peer.messages if text != "poison"] == ["one", "two", "three"]
    assert [edu["type"] for edu in peer.edus("m.direct_to_device")] == ["m.fine", "m.good"]


async def test_a_peer_that_takes_nothing_at_all_loses_nothing(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        peer.respond = lambda _txn_id, _body: (400, {"errcode": "M_UNRECOGNIZED", "error": "what?"})
        await send(alice, room_id, "one")
        await peer.until(lambda: len(peer.transactions) >= 2)
        peer.respond = lambda _txn_id, _body: (200, {"pdus": {}})
        await _until_left_alone(server, peer)
        server.application.outbound.availability.alive(peer.name)

        await peer.until_messages(["one"])


async def test_a_transaction_that_is_sent_again_has_the_same_id(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        peer.respond = lambda _txn_id, _body: (503, {})
        await send(alice, room_id, "again")
        await peer.until(lambda: peer.transactions)
        peer.respond = lambda _txn_id, _body: (200, {"pdus": {}})
        await _until_left_alone(server, peer)
        server.application.outbound.availability.alive(peer.name)

        await peer.until_messages(["again"])

    first, second = peer.transactions[:2]
    assert first[0] == second[0]


async def test_a_single_event_that_is_refused_is_not_sent_for_ever(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        refused = await send(alice, room_id, "refused")
        peer.respond = lambda _txn_id, _body: (200, {"pdus": {refused: {"error": "I do not like it"}}})
        await peer.until_messages(["refused"])
        await send(alice, room_id, "next")
        await peer.until_messages(["next"])
        await asyncio.sleep(1.5)

    assert peer.messages == ["refused", "next"]


async def test_an_event_that_is_damaged_here_blocks_nothing(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await peer.stop()
        await send(alice, room_id, "one")
        event_id = await send(alice, room_id, "damaged")
        await send(alice, room_id, "two")
        async with server.application.database.transaction() as tx:
            await tx.execute("update events set json = '\\xff00' where event_id = %s", (event_id,))
        await _until_left_alone(server, peer)
        await peer.start()
        server.application.outbound.availability.alive(peer.name)

        await peer.until_messages(["one", "two"])


async def test_nothing_is_left_behind_once_a_peer_has_everything(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await peer.stop()
        await send(alice, room_id, "one")
        await alice.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", {"messages": {peer.user(): {"D": {}}}})
        await asyncio.sleep(1.5)
        async with server.application.database.read() as tx:
            (status,) = await destinations.list_status(tx, 10)
        assert status.failing is not None
        assert (status.position is not None, status.messages) == (True, 1)
        await peer.start()
        server.application.outbound.availability.alive(peer.name)
        await peer.until_messages(["one"])
        await asyncio.sleep(2.5)

        async with server.application.database.read() as tx:
            assert await destinations.list_status(tx, 10) == []
            assert await outbox.awaiting_messages(tx) == []


async def test_a_burst_that_is_too_large_to_wait_is_read_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_WAITING", 5)
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        texts = [f"{number}" for number in range(100)]
        await asyncio.gather(*(send(alice, room_id, text) for text in texts))

        await peer.until_messages(texts)

    assert sorted(peer.messages) == sorted(texts)


async def test_a_peer_that_is_too_slow_is_read_to_from_the_log(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MAX_QUEUED", 7)
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        peer.answers.clear()
        texts = [f"{number}" for number in range(60)]
        for text in texts:
            await send(alice, room_id, text)
        peer.answers.set()

        await peer.until_messages(texts)

    assert peer.messages == texts


async def test_an_operator_sees_who_is_away_and_has_them_tried_again(installation: Installation) -> None:
    async with installation.running() as server, listening(server, installation.authority) as peer:
        alice, room_id = await a_room_with(peer, server)
        await peer.stop()
        await send(alice, room_id, "one")
        await alice.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", {"messages": {peer.user(): {"D": {}}}})
        await _until_left_alone(server, peer)
        await asyncio.sleep(1.2)
        lines: list[str] = []
        await federation_commands.status(server.application.database, lines.append)
        (line,) = lines
        assert line.startswith(f"{peer.name}: fails since ")
        assert "behind by" in line
        assert "1 to-device messages wait" in line

        await peer.start()
        assert await federation_commands.retry(server.application.database, None) == [peer.name]

        # A command says it by PostgreSQL: where that is not the bus, processes look now and then.
        is_heard = isinstance(server.application.bus, PostgresBus)
        await peer.until_messages(["one"], seconds=3 if is_heard else 3 + POLL_SECONDS)
        await asyncio.sleep(2.2)
        lines.clear()
        await federation_commands.status(server.application.database, lines.append)
        assert lines == ["Every server has everything."]
        with pytest.raises(NotFound):
            await federation_commands.retry(server.application.database, peer.name)


async def _until_left_alone(server: Server, peer: ListeningPeer) -> None:
    async with asyncio.timeout(10):
        while not server.application.outbound.availability.seconds_left(peer.name):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.02)
