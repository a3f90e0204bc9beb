"""A server that means no good tries all that another server can send: nothing of it gets in, nobody else is harmed.

The server under attack is a process of its own, beside an honest third server (`hostile/world.py`). What is tried is
every fault that an event may have (`hostile/faults.py`) on every way on which events come. `make hostile-test` tries
that in all room versions, and more of what chance makes; `-s` shows the figures.
"""

import os
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.federation.hostile import ephemeral, flooding, mutations, pulling, pushing, residing, transports
from tests.federation.hostile.pushing import Way
from tests.federation.hostile.world import PATIENCE_SECONDS, World, a_world
from tests.processor import slowness
from tests.protocol.builders import VERSIONS

ROUNDS = int(os.environ.get("HEARTH_HOSTILE_ROUNDS", "0"))
"""More than none is the long form."""
SEED = int(os.environ.get("HEARTH_HOSTILE_SEED", "1"))
TRIED_VERSIONS = VERSIONS if ROUNDS else ("1", "11")

MEMORY_MEGABYTES = 400.0 if ROUNDS else 250.0
"""By so much the server's memory may grow, at its peak, beyond what it had before; answers of 48 MB are among it."""
CPU_SECONDS_PER_CASE = 0.05
"""Of the server, on average; floods are many times that."""
CPU_SECONDS_PER_FLOOD = 15.0

pytestmark = pytest.mark.timeout(1800 if ROUNDS else 180)


@pytest_asyncio.fixture(scope="module")
async def world(maintenance_conninfo: str) -> AsyncIterator[World]:
    async with a_world(maintenance_conninfo) as world:
        await world.stage("11")
        world.begin()
        yield world
        sys.stdout.write(f"\n{world.summary()}\n")


async def attack(world: World, version: str, ways: Sequence[Way]) -> None:
    """Try these ways; nothing may be wrong after any of them."""
    stage = await world.stage(version)
    for way in ways:
        await stage.check(await way(stage))
    check(world)


def check(world: World) -> None:
    """Nothing was wrong until now, nobody had to wait, and the server spent no more than it may."""
    assert not world.wrong, "\n".join(world.wrong)
    assert not world.errors(), world.errors()
    assert world.slowest < PATIENCE_SECONDS
    assert world.grown_megabytes() < MEMORY_MEGABYTES, world.summary()
    cpu_seconds = CPU_SECONDS_PER_CASE * world.tried.total() + CPU_SECONDS_PER_FLOOD * len(world.costs)
    assert world.cpu_seconds() < (5 + cpu_seconds) * slowness(), world.summary()


@pytest.mark.parametrize("version", TRIED_VERSIONS)
async def test_nothing_that_is_pushed_gets_in(world: World, version: str) -> None:
    await attack(world, version, [*pushing.WAYS, *ephemeral.WAYS])


@pytest.mark.parametrize("version", TRIED_VERSIONS)
async def test_nothing_that_is_fetched_gets_in(world: World, version: str) -> None:
    await attack(world, version, pulling.WAYS)


@pytest.mark.parametrize("version", TRIED_VERSIONS)
async def test_nothing_of_a_room_of_its_own_gets_in(world: World, version: str) -> None:
    await attack(world, version, residing.WAYS)


@pytest.mark.parametrize("version", TRIED_VERSIONS)
async def test_nothing_that_chance_makes_is_taken_for_something_else(world: World, version: str) -> None:
    await attack(world, version, [mutations.at_random(SEED + int(version), ROUNDS or 3)])


async def test_answers_that_are_none_harm_nobody(world: World) -> None:
    await attack(world, "11", transports.ways(to_the_end=bool(ROUNDS)))


@pytest.mark.parametrize("version", ["1", "11", "12"] if ROUNDS else ["11"])
async def test_what_is_much_costs_its_sender(world: World, version: str) -> None:
    await attack(world, version, flooding.ways(is_long=bool(ROUNDS)))
