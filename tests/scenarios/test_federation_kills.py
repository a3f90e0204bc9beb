"""Two servers in one room, of which either is killed at random moments while people on both talk.

Nothing that was answered is lost, and everybody's client is told of every message exactly once. HEARTH_KILL_ROUNDS and
HEARTH_KILL_SEED choose how often and when (`make kill-test`).
"""

import asyncio
import collections
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.server import Server
from tests.client import quote
from tests.interop.border import Border, a_border, retry_all
from tests.interop.people import Person

ROUNDS = int(os.environ.get("HEARTH_KILL_ROUNDS", "2"))
SEED = os.environ.get("HEARTH_KILL_SEED", "hearth")
PATIENCE_SECONDS = 60.0


@pytest_asyncio.fixture
async def border(maintenance_conninfo: str) -> AsyncIterator[Border]:
    """Servers that nobody else minds the death of."""
    async with a_border(maintenance_conninfo) as border:
        yield border


class Listener:
    """A client that goes on where it was, whatever happens to its server, and fills the gaps that it is told of."""

    def __init__(self, person: Person, room_id: str) -> None:
        self.person = person
        self.room_id = room_id
        self.timeline: list[dict[str, Any]] = []
        self._since = ""

    async def hear(self, timeout: int) -> None:
        """One sync, taken as a whole or not at all."""
        query = {"timeout": str(timeout)} | ({"since": self._since} if self._since else {})
        body = await self.person.ok("GET", "/sync", params=query)
        timeline = body.get("rooms", {}).get("join", {}).get(self.room_id, {}).get("timeline", {})
        gap = await self._gap(timeline["prev_batch"]) if timeline.get("limited") else []
        self.timeline += [*gap, *timeline.get("events", [])]
        self._since = body["next_batch"]

    async def _gap(self, end: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        query = {"dir": "b", "limit": "100", "from": end} | ({"to": self._since} if self._since else {})
        while True:
            page = await self.person.ok("GET", f"/rooms/{quote(self.room_id)}/messages", params=query)
            events += page["chunk"]
            if "end" not in page:
                return events[::-1]
            query["from"] = page["end"]

    def told(self) -> dict[str, list[str]]:
        """The event IDs of each text, in order."""
        told: dict[str, list[str]] = {}
        for event in self.timeline:
            if event["type"] == "m.room.message":
                told.setdefault(event["content"]["body"], []).append(event["event_id"])
        return told


class Story:
    """One room, people of both servers in it, and what they were answered."""

    def __init__(self, border: Border, people: tuple[Person, ...], room_id: str) -> None:
        self.border = border
        self.people = people
        self.room_id = room_id
        self.listeners = [Listener(person, room_id) for person in people]
        self.random = random.Random(SEED)
        self.answered: dict[str, str] = {}
        """Event IDs by text."""
        self._numbers = itertools.count(1)

    async def play(self, victims: list[Server]) -> None:
        """Load, deaths in the middle of it, and the reckoning."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for person in self.people:
                for _ in range(3):
                    tasks.create_task(self._talk(person, stop))
            for listener in self.listeners:
                tasks.create_task(self._listen(listener, stop))
            await asyncio.sleep(self.random.uniform(0.3, 1.5))
            for victim in victims:
                victim.kill()
                await asyncio.sleep(self.random.uniform(0, 0.3))
            for victim in victims:
                await victim.start()
            await asyncio.sleep(self.random.uniform(0.2, 0.6))
            stop.set()
        for person in self.people:
            await asyncio.to_thread(retry_all, self.border.server_of(person))
        await self._reckon()

    async def _talk(self, person: Person, stop: asyncio.Event) -> None:
        """Say one thing after the other; each again and again until it is answered."""
        while not stop.is_set():
            number = next(self._numbers)
            text = f"{number} of {person.user_id}"
            path = f"/v3/rooms/{quote(self.room_id)}/send/m.room.message/kill-{number}"
            while text not in self.answered:
                try:
                    status, body = await person.client.request("PUT", path, {"msgtype": "m.text", "body": text})
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.1)
                    continue
                assert status in (200, 503), body
                if status == 200:
                    self.answered[text] = body["event_id"]
            await asyncio.sleep(self.random.uniform(0, 0.1))

    async def _listen(self, listener: Listener, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await listener.hear(200)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _reckon(self) -> None:
        expected = {text: [event_id] for text, event_id in self.answered.items()}
        for listener in self.listeners:
            user_id = listener.person.user_id
            deadline = time.monotonic() + PATIENCE_SECONDS
            while missing := self.answered.keys() - listener.told().keys():
                assert time.monotonic() < deadline, f"{user_id} was not told of {sorted(missing)}"
                await listener.hear(1000)
            assert listener.told() == expected, f"{user_id} was told otherwise"
            history = collections.Counter(await listener.person.texts(self.room_id))
            assert history == collections.Counter(list(self.answered)), f"{user_id} reads otherwise"


@pytest.mark.timeout(120 + 60 * ROUNDS)
async def test_whichever_end_is_killed_every_message_is_told_once(border: Border) -> None:
    one, other = await border.hearth("one"), await border.hearth("other", "127.0.0.2")
    alice, anna = await border.person(one, "alice"), await border.person(one, "anna")
    bob, ben = await border.person(other, "bob"), await border.person(other, "ben")
    room_id = await alice.create_room()
    people = (alice, anna, bob, ben)
    for person in people[1:]:
        await person.join(room_id, via=[alice])
    for person in people:
        await person.sees_member(room_id, ben)
    story = Story(border, people, room_id)

    for number in range(ROUNDS):
        await story.play([[one], [other], [one, other]][number % 3])

    for server in (one, other):
        assert "Traceback" not in server.log_file.read_text(encoding="utf-8")
