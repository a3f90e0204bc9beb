"""The chaos test: workers are killed, stopped and replaced, and their database is, while clients use any of them.

At the end each client's view is what the log holds, from its first sync on: every message that was answered is there
once, in the order of the log, and nothing was left out between tokens that were used at different workers.
`make chaos-test` runs 200 clients for five minutes; HEARTH_CHAOS_CLIENTS, HEARTH_CHAOS_SECONDS and HEARTH_CHAOS_SEED
choose others.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest

from tests.client import Client, quote
from tests.homeserver.test_workers import until, workers
from tests.rooms import create_room, join
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving, signal_all
from tests.scenarios.load import Journal, Syncer, until_answered
from tests.scenarios.stored_truth import StoredTruth
from tests.scenarios.test_kills import kill_postmaster

CLIENTS = int(os.environ.get("HEARTH_CHAOS_CLIENTS", "24"))
SECONDS = float(os.environ.get("HEARTH_CHAOS_SECONDS", "12"))
SEED = os.environ.get("HEARTH_CHAOS_SEED", "hearth")
WORKERS = 4
REPLACED = int(os.environ.get("HEARTH_CHAOS_REPLACED", "2"))
"""Workers of a server of which all are replaced: each may take ten seconds to let its clients go."""
ROOMS_OF_EACH = 2
MEMBERS = 20
"""About how many clients share a room."""
SENDERS = 12
PAUSE_SECONDS = 1.2
"""Between two messages of a sender, on average."""
REPLAYED = 20
"""Clients that go back to an old token at the end."""


@asynccontextmanager
async def anywhere(server: HearthProcess) -> AsyncIterator[Client]:
    """A client that takes a new connection for each request, which any of the workers may be given."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Client(server.base_url, session, is_held_to_specification=False)


class PatientSyncer(Syncer):
    """Waits for news as clients do."""

    syncs = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sync until told to stop."""
        while not stop.is_set():
            await self.sync(timeout_ms=self.random.choice((0, 2000, 8000)))
            self.syncs += 1


@dataclass
class Crowd:
    """Everybody, and what must hold of what they were told."""

    conninfo: Callable[[], str]
    visitor: Client
    chance: random.Random
    journal: Journal = field(default_factory=Journal)
    truth: StoredTruth = field(default_factory=StoredTruth)
    rooms: list[str] = field(default_factory=list)
    syncers: list[PatientSyncer] = field(default_factory=list)

    async def gather(self) -> None:
        """Users, each in some of the rooms, who have synced once."""
        names = [f"user{number}" for number in range(CLIENTS)]
        clients = [await self.visitor.register_as(name) for name in names]
        for _ in range(max(ROOMS_OF_EACH, CLIENTS * ROOMS_OF_EACH // MEMBERS)):
            self.rooms.append(await create_room(clients[0], preset="public_chat"))
        for number, client in enumerate(clients):
            syncer = PatientSyncer(client, self.journal, self.chance)
            own = self.rooms if number == 0 else self.chance.sample(self.rooms, ROOMS_OF_EACH)
            if number:
                for room_id in own:
                    await join(client, room_id)
            syncer.lasting = frozenset(own)
            self.syncers.append(syncer)
        for syncer in self.syncers:
            await syncer.sync()

    async def keep_sending(self, syncer: Syncer, stop: asyncio.Event) -> None:
        """Messages into the sender's rooms, and now and then one to another's device."""
        client, rooms = syncer.client, sorted(syncer.lasting)
        while not stop.is_set():
            await asyncio.sleep(self.chance.uniform(0, 2 * PAUSE_SECONDS))
            number = next(self.journal.numbers)
            path = f"/v3/rooms/{quote(self.chance.choice(rooms))}/send/m.room.message/t{number}"
            content = {"msgtype": "m.text", "body": f"message {number}", "n": number}
            answer = await until_answered(client, self.journal.counts, "PUT", path, content)
            self.journal.events[number] = answer["event_id"]
            if self.chance.random() < 0.3:
                other, number = self.chance.choice(self.syncers).client, next(self.journal.numbers)
                messages = {other.user_id: {other.device_id: {"n": number}}}
                path = f"/v3/sendToDevice/test.message/t{number}"
                await until_answered(client, self.journal.counts, "PUT", path, {"messages": messages})
                self.journal.sent_to_device.setdefault((other.user_id, other.device_id), set()).add(number)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[asyncio.Event]:
        """All of them sync, and some send, during the block, or until the event is set."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for syncer in self.syncers:
                tasks.create_task(syncer.run(stop))
            for syncer in self.syncers[:SENDERS]:
                tasks.create_task(self.keep_sending(syncer, stop))
            yield stop
            stop.set()

    async def reckon(self) -> int:
        """Hold each view to the log; how many messages there were."""
        for syncer in self.syncers:
            await syncer.catch_up()
        await self.truth.read(self.conninfo(), self.rooms)
        assert self.truth.numbers() == {number: [event_id] for number, event_id in self.journal.events.items()}
        for syncer in self.syncers:
            for room_id in syncer.lasting:
                told, stored = syncer.rooms[room_id], self.truth.events_of(room_id)
                assert told == stored[stored.index(told[0]) :], f"{syncer.client.user_id} was told otherwise"
            to = (syncer.client.user_id, syncer.client.device_id)
            assert sorted(syncer.to_device) == sorted(self.journal.sent_to_device.get(to, ()))
        for syncer in self.chance.sample(self.syncers, min(REPLAYED, len(self.syncers))):
            await syncer.replay(self.chance.choice(syncer.marks))
        return len(self.journal.events)


async def wreak(server: HearthProcess, chance: random.Random, stop: asyncio.Event, done: Counter[str]) -> None:
    """Kill, stop for some seconds, or replace workers, and sometimes kill the database, until told to stop."""
    while not stop.is_set():
        await asyncio.sleep(chance.uniform(0.5, 3))
        victims = sorted(workers(server))
        what = chance.choices(("killed", "stopped", "replaced", "database killed"), (5, 5, 1, 1))[0]
        if what == "replaced":
            os.kill(server.pid, signal.SIGHUP)
        elif what == "database killed":
            kill_postmaster(server, chance)
        elif victims:
            victim = chance.choice(victims)
            signal_all([victim], signal.SIGKILL if what == "killed" else signal.SIGSTOP)
            if what == "stopped":
                await asyncio.sleep(chance.uniform(0.5, 5))
                signal_all([victim], signal.SIGCONT)
        done[what] += 1


@pytest.mark.timeout(240 + 6 * SECONDS)
async def test_workers_come_and_go_and_each_clients_view_is_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)
    done: Counter[str] = Counter()
    async with serving(arguments=("--workers", str(WORKERS))) as server, anywhere(server) as visitor:
        crowd = Crowd(server.conninfo, visitor, chance)
        await crowd.gather()
        began = time.monotonic()
        async with crowd.at_work() as stop:
            wreaking = asyncio.create_task(wreak(server, chance, stop, done))
            await asyncio.sleep(SECONDS)
            stop.set()
            await wreaking
        await until(lambda: len(workers(server)) == WORKERS)
        messages = await crowd.reckon()
        counts = crowd.journal.counts
        server.stop()
        assert "Traceback" not in server.log, server.log[-6000:]
    with capsys.disabled():
        print(  # noqa: T201  # the figures
            f"\n{CLIENTS} clients, {WORKERS} workers, {time.monotonic() - began:.0f} s, seed {SEED!r}:"
            f" {', '.join(f'{number} {what}' for what, number in sorted(done.items()))};"
            f" {messages} messages, {sum(map(len, crowd.journal.sent_to_device.values()))} to devices,"
            f" {sum(syncer.syncs for syncer in crowd.syncers)} syncs; {counts.answered} requests answered,"
            f" {counts.repeated} repeated, {counts.refused} refused with 503; every view equals the log",
            end="",
        )


@pytest.mark.timeout(240)
async def test_all_workers_are_replaced_without_a_failed_request_or_a_missed_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        serving(arguments=("--workers", str(REPLACED))) as server,
        anywhere(server) as visitor,
        a_visitor(server) as faithful,
    ):
        crowd = Crowd(server.conninfo, visitor, random.Random(SEED))
        await crowd.gather()
        for syncer in crowd.syncers[::2]:  # these keep their connections, as browsers do
            syncer.client = replace(syncer.client, session=faithful.session)
        before = workers(server)
        began = time.monotonic()
        async with crowd.at_work():
            await asyncio.sleep(1)
            os.kill(server.pid, signal.SIGHUP)
            await until(lambda: "all workers are replaced" in server.log, 120)
            await asyncio.sleep(1)
        seconds = time.monotonic() - began
        counts = crowd.journal.counts

        assert (counts.repeated, counts.refused) == (0, 0)
        assert not before & workers(server)
        messages = await crowd.reckon()
    with capsys.disabled():
        print(  # noqa: T201  # the figures
            f"\n{REPLACED} workers were replaced within {seconds:.0f} s under {CLIENTS} clients: {counts.answered}"
            f" requests were answered, none failed; {messages} messages, every view equals the log",
            end="",
        )
