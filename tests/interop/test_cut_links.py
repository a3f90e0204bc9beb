"""Links between three servers are cut and restored at random while people on all of them talk and change the room.

With all links restored, everybody has the same events and the same state. HEARTH_PARTITION_ROUNDS and
HEARTH_PARTITION_SEED choose more of it (`make partition-test`); after each round everything is compared.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Sequence

import pytest

from benchmarks.hearth import Hearth
from benchmarks.server import Server
from tests.client import quote
from tests.interop.border import Border, retry_all
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room

ROUNDS = int(os.environ.get("HEARTH_PARTITION_ROUNDS", "1"))
SEED = os.environ.get("HEARTH_PARTITION_SEED", "hearth")
CUTS = 4
"""In each round."""
PATIENCE_SECONDS = 90.0
"""Longer than a gap is left alone that could not be filled at once."""

Way = tuple[Server, Server]
Picture = tuple[frozenset[str], dict[tuple[str, str], str]]
"""The events of a room, and its state."""


class Story:
    """One room, and one person of each server in it."""

    def __init__(self, border: Border, people: Sequence[Person], room_id: str) -> None:
        self.border = border
        self.people = people
        self.room_id = room_id
        self.random = random.Random(SEED)
        self.servers = [border.server_of(person) for person in people]
        self.sent: set[str] = set()
        self.kinds: dict[str, str] = {}
        """The types of all events that anybody was shown."""
        self._numbers = itertools.count(1)

    async def play(self) -> None:
        """Cut some links again and again; then restore them all, and everybody agrees."""
        for _ in range(CUTS):
            self.border.links.set_cut(self._some_ways())
            async with asyncio.TaskGroup() as tasks:
                for person in self.people:
                    tasks.create_task(self._act(person, self.random.choices("mmmtnk", k=self.random.randint(1, 6))))
                tasks.create_task(asyncio.sleep(self.random.uniform(0.3, 1.5)))
        self.border.links.set_cut(set())
        await self._agree()

    def _some_ways(self) -> set[Way]:
        """Of some pairs both ways, of others one."""
        ways: set[Way] = set()
        for one, other in itertools.combinations(self.servers, 2):
            cut = self.random.choice(["both", "both", "there", "back", "none"])
            ways |= {(one, other)} if cut in ("both", "there") else set()
            ways |= {(other, one)} if cut in ("both", "back") else set()
        return ways

    async def _act(self, person: Person, acts: Sequence[str]) -> None:
        for act in acts:
            number = next(self._numbers)
            text = f"{number} of {person.user_id}"
            if act == "m":
                event_id = await person.says(self.room_id, text)
            elif act == "k":
                event_id = await person.set_state(self.room_id, "org.example.thing", {"n": number}, str(number % 3))
            else:
                field = {"t": "topic", "n": "name"}[act]
                event_id = await person.set_state(self.room_id, f"m.room.{field}", {field: text})
            self.sent.add(event_id)

    async def _agree(self) -> None:
        for server in self.servers:
            if isinstance(server, Hearth):
                await asyncio.to_thread(retry_all, server)
        # What each server says last tells the others that it is there, and what they have missed.
        for person in self.people:
            self.sent.add(await person.says(self.room_id, f"{person.user_id} is back"))
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            pictures = [await self._picture(person) for person in self.people]
            has_all = self.sent <= pictures[0][0]
            if has_all and all(picture == pictures[0] for picture in pictures[1:]):
                return
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail("\n".join(self._differences(pictures)))
            await asyncio.sleep(0.5)

    async def _picture(self, person: Person) -> Picture:
        events = await person.history(self.room_id)
        self.kinds.update((event["event_id"], event["type"]) for event in events)
        history = [event["event_id"] for event in events]
        assert len(history) == len(set(history)), f"{person.user_id} is shown events twice"
        state = await person.ok("GET", f"/rooms/{quote(self.room_id)}/state")
        by_key = {(event["type"], event["state_key"]): event["event_id"] for event in state}
        return frozenset(history), by_key

    def _differences(self, pictures: Sequence[Picture]) -> list[str]:
        whole = self.sent.union(*(events for events, _ in pictures))
        lines = []
        for person, (events, state) in zip(self.people, pictures, strict=True):
            lacking = [f"{event_id} {self.kinds.get(event_id)}" for event_id in sorted(whole - events)]
            lines.append(f"{person.user_id} lacks {len(lacking)} of {len(whole)}: {lacking}")
            other = {key: value for key, value in state.items() if pictures[0][1].get(key) != value}
            lines.append(f"{person.user_id} has other state than {self.people[0].user_id}: {other}")
        return lines


@pytest.mark.timeout(120 + 90 * ROUNDS)
async def test_servers_agree_whatever_links_were_cut_meanwhile(border: Border, alice: Person, bob: Person) -> None:
    carol = await border.somebody_third()
    room_id = await a_shared_room(alice, bob, power_level_content_override={"state_default": 0, "events": {}})
    await carol.join(room_id, via=[bob])
    for person in (alice, bob, carol):
        await person.sees_member(room_id, carol)
    story = Story(border, (alice, bob, carol), room_id)
    try:
        for _ in range(ROUNDS):
            await story.play()
    finally:
        border.links.set_cut(set())
