"""The kill test: SIGKILL to the server or to its PostgreSQL at random moments under load, again and again.

After each round, when everybody has come to rest: no answered write is lost and none is there twice, tokens that were
handed out before go on without a gap and without repeating anything, and graph and state are as the model computes them
from the events alone. `make kill-test` runs 30 rounds; HEARTH_KILL_ROUNDS and HEARTH_KILL_SEED choose others.
"""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from homeserver import signing_keys
from tests.client import Answer, Client, quote
from tests.scenarios.hearth_process import HearthProcess, a_directory, a_visitor, serving, signal_all
from tests.scenarios.load import Counts, Journal, Stage, Syncer, User, repeat
from tests.scenarios.stored_truth import StoredTruth

ROUNDS = int(os.environ.get("HEARTH_KILL_ROUNDS", "4"))
SEED = os.environ.get("HEARTH_KILL_SEED", "hearth")
USERS = 4
ROUNDS_PER_STAGE = 4
MARKS = 3
"""Old tokens that each device tries again after each round."""

Kill = Callable[[HearthProcess, random.Random], None]


def kill_server(server: HearthProcess, _chance: random.Random) -> None:
    """The server; its PostgreSQL is shut down by its guard."""
    server.kill()


def kill_postmaster(server: HearthProcess, _chance: random.Random) -> None:
    """PostgreSQL's first process: the server starts another."""
    postmaster = server.postmaster()
    signal_all([] if postmaster is None else [postmaster], signal.SIGKILL)


def kill_backend(server: HearthProcess, chance: random.Random) -> None:
    """One of PostgreSQL's other processes: it ends all connections and recovers."""
    backends = server.backends()
    signal_all([chance.choice(backends)] if backends else [], signal.SIGKILL)


def cut_connections(server: HearthProcess, chance: random.Random) -> None:
    """Some connections are ended, the others live on."""
    backends = server.backends(of_clients=True)
    signal_all(chance.sample(backends, (len(backends) + 1) // 2), signal.SIGTERM)


def kill_all(server: HearthProcess, _chance: random.Random) -> None:
    """The server and all of PostgreSQL, as when the machine dies."""
    postmaster = server.postmaster()
    pids = [*([] if postmaster is None else [postmaster]), *server.backends()]
    server.kill()
    signal_all(pids, signal.SIGKILL)


KILLS: list[Kill] = [kill_server, kill_postmaster, cut_connections, kill_all, kill_backend]

KILLS_OF_SERVER: set[Kill | None] = {kill_server, kill_all}
"""After any other the same process goes on."""


class Story:
    """The server, its users, and what must hold of them."""

    def __init__(self, server: HearthProcess, visitor: Client) -> None:
        self.server = server
        self.visitor = visitor
        self.random = random.Random(SEED)
        self.journal = Journal()
        self.truth = StoredTruth()
        self.users: list[User] = []
        self.syncers: list[Syncer] = []
        self.stages: list[Stage] = []

    def conninfo(self) -> str:
        """Of the database."""
        return self.server.conninfo()

    async def begin(self) -> None:
        """Users, each with a device that writes and syncs; the first has another that only syncs."""
        for number in range(USERS):
            client = await self.visitor.register_as(f"user{number}")
            self.users.append(User(client, self.journal, self.random))
            self.syncers.append(Syncer(client, self.journal, self.random))
            await self.users[-1].publish()
        self.syncers.append(Syncer(await self.users[0].client.login(), self.journal, self.random))

    async def set_stage(self) -> None:
        """New rooms that everybody joins, of different versions."""
        host = self.users[0]
        made = []
        for version in ("12", "10", "12"):
            body = {"preset": "public_chat", "room_version": version}
            if version == "12":
                body["power_level_content_override"] = {"state_default": 0}  # type: ignore[assignment]  # JSON
            else:
                body["power_level_content_override"] = {"state_default": 0, "users": {host.client.user_id: 100}}  # type: ignore[assignment]  # JSON
            made.append((await host.ask("POST", "/v3/createRoom", body))["room_id"])
        stage = Stage(made[:2], made[2])
        self.stages.append(stage)
        self.journal.memberships[stage.turnstile, host.client.user_id] = "join"
        for user in self.users:
            user.stage = stage
            for room_id in stage.rooms:
                await user.ask("POST", f"/v3/rooms/{room_id}/join", {})
        for syncer in self.syncers:
            await syncer.catch_up()
            syncer.lasting = frozenset(room for each in self.stages for room in each.rooms)

    async def play(self, kill: Kill, *, may_repeat: bool = True) -> str:
        """One round: load, a kill in the middle, recovery, rest, and the reckoning; what there is to tell of it."""
        self.journal.counts = Counts()
        again = self.random.choice(KILLS) if may_repeat and self.random.random() < 0.3 else None
        stop = asyncio.Event()
        moment = self.random.uniform(0.2, 1.2)
        async with asyncio.TaskGroup() as tasks:
            for user in self.users:
                for step in user.activities(self.users):
                    tasks.create_task(repeat(step, stop, self.random))
            for syncer in self.syncers:
                tasks.create_task(syncer.run(stop))
            await asyncio.sleep(moment)
            for user in self.users:
                tasks.create_task(user.send_many(self.users))
            await asyncio.sleep(self.random.uniform(0, 0.06))
            kill(self.server, self.random)
            if not self.server.is_running:
                self.server.start()
            if again is not None:  # while it recovers
                await asyncio.sleep(self.random.uniform(0.05, 2))
                again(self.server, self.random)
            await asyncio.sleep(0.1)
            seconds = await self.server.wait_until_ready(lives=3 if {kill, again} & KILLS_OF_SERVER else 1)
            await asyncio.sleep(self.random.uniform(0.2, 0.5))
            stop.set()
        counts = replace(self.journal.counts)
        events = await self.reckon()
        killed = kill.__name__ if again is None else f"{kill.__name__}, then {again.__name__}"
        return (
            f"{killed} after {moment:.2f} s, back {seconds:.1f} s later; {counts.answered} requests answered,"
            f" {counts.repeated} repeated, {counts.refused} refused with 503; {events} events as answered"
        )

    async def reckon(self) -> int:
        """Nothing is lost, doubled or inconsistent; how many events there are."""
        for syncer in self.syncers:
            await syncer.catch_up()
        room_ids = [room for stage in self.stages for room in (*stage.rooms, stage.turnstile)]
        await self.truth.read(self.conninfo(), room_ids)
        stored = self.truth.numbers()
        assert {number: [event_id] for number, event_id in self.journal.events.items()} == stored
        for (room_id, user_id), membership in self.journal.memberships.items():
            assert self.truth.membership(room_id, user_id) == membership
        for user in self.users:
            await self._check_user_data(user)
        for syncer in self.syncers:
            await self._check_ledger(syncer)
        return sum(len(self.truth.events_of(room_id)) for room_id in room_ids)

    async def _check_user_data(self, user: User) -> None:
        number = self.journal.account_data.get((user.client.user_id, "test.counter"))
        if number is not None:
            path = f"/v3/user/{user.client.user_id}/account_data/test.counter"
            assert await user.ask("GET", path) == {"n": number}

    async def _check_ledger(self, syncer: Syncer) -> None:
        """Every event once and in order, every to-device message once, and old tokens tell the same again."""
        for room_id in syncer.lasting:
            told = syncer.rooms[room_id]
            stored = self.truth.events_of(room_id)
            assert told == stored[stored.index(told[0]) :], f"{syncer.client.user_id} was told otherwise of {room_id}"
        to = (syncer.client.user_id, syncer.client.device_id)
        assert len(set(syncer.to_device)) == len(syncer.to_device)
        assert sorted(syncer.to_device) == sorted(self.journal.sent_to_device.get(to, ()))
        assert syncer.account_data.get("test.counter") == self.journal.account_data.get((to[0], "test.counter"))
        syncer.marks[:-1] = self.random.sample(syncer.marks[:-1], min(len(syncer.marks) - 1, 40))
        for mark in self.random.sample(syncer.marks, min(len(syncer.marks), MARKS)):
            await syncer.replay(mark)


@dataclass(slots=True)
class Roaming(Client):
    """A client behind a balancer: each request goes to any of the servers."""

    addresses: tuple[str, ...] = ()

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """As always, to one of them."""
        self.base_url = random.choice(self.addresses)
        return await Client.request(self, method, path, body, **options)

    @classmethod
    def of(cls, client: Client, addresses: tuple[str, ...]) -> "Roaming":
        """The same login."""
        known = {each.name: getattr(client, each.name) for each in fields(client)}
        return cls(**known, addresses=addresses)


class StoryOfTwo(Story):
    """Two servers on one database, of which one is killed while the other goes on."""

    def __init__(self, servers: list[HearthProcess], visitor: Client, conninfo: str) -> None:
        super().__init__(servers[0], visitor)
        self.servers = servers
        self._conninfo = conninfo

    def conninfo(self) -> str:
        """Of the database, which belongs to neither."""
        return self._conninfo

    async def begin(self) -> None:
        """As with one server, and then everybody goes to both."""
        await super().begin()
        addresses = tuple(server.base_url for server in self.servers)
        for user in self.users:
            user.client = Roaming.of(user.client, addresses)
        for syncer in self.syncers:
            syncer.client = Roaming.of(syncer.client, addresses)

    async def play(self, kill: Kill, *, may_repeat: bool = False) -> str:
        """One round, with one of them as the victim."""
        self.server = self.random.choice(self.servers)
        return await super().play(kill, may_repeat=may_repeat)


async def tell(story: Story, kills: list[Kill], rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Play the rounds, and say how each went."""
    began = time.monotonic()
    await story.begin()
    for number in range(rounds):
        if number % ROUNDS_PER_STAGE == 0:
            await story.set_stage()
        kill = kills[number % len(kills)]
        try:
            told = await story.play(kill)
        except BaseException:
            with capsys.disabled():
                print(f"\nround {number + 1} ({kill.__name__}) failed; the server said:\n{story.server.log[-6000:]}")  # noqa: T201  # what else would tell
            raise
        with capsys.disabled():
            print(f"\nround {number + 1} of {rounds}: {told} ({time.monotonic() - began:.0f} s)", end="")  # noqa: T201  # progress


@pytest.mark.timeout(120 + 60 * ROUNDS)
async def test_nothing_that_was_answered_is_lost_or_doubled_by_kills(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as server, a_visitor(server) as visitor:
        await tell(Story(server, visitor), KILLS, ROUNDS, capsys)
        server.stop()
        assert "Traceback" not in server.log, server.log[-6000:]


@pytest.mark.timeout(120 + 60 * ROUNDS)
async def test_one_of_two_servers_is_killed_and_clients_go_on_with_the_other(
    capsys: pytest.CaptureFixture[str], conninfo: str
) -> None:
    parts = conninfo_to_dict(conninfo)
    url = f"postgresql://{parts['user']}@{quote(str(parts['host']))}:{parts['port']}/{parts['dbname']}"
    shared = a_directory()
    signing_keys.create(shared / "signing.key")
    settings = f"database: {{url: '{url}'}}\nsigning_key_file: {shared}/signing.key\n"
    try:
        async with serving(settings) as one, serving(settings) as other, a_visitor(one) as visitor:
            await tell(StoryOfTwo([one, other], visitor, conninfo), [kill_server], (ROUNDS + 1) // 2, capsys)
            for server in (one, other):
                server.stop()
                assert "Traceback" not in server.log, server.log[-6000:]
    finally:
        shutil.rmtree(shared)
