"""Who waits for a place, who gets it, and who has to go."""

import asyncio
from typing import Any

import pytest

from federation.outbound.turns import CutOff, Places, Turn, Turns


def places(**changes: Any) -> Turns:
    few: dict[str, Any] = {"prompt": 4, "prompt_seconds": None, "slow": 4, "per_host": 3, "unproven": 3}
    return Turns(Places(**few | changes))


async def taken(turns: Turns, *hosts: str) -> list[Turn]:
    return [await asyncio.wait_for(turns.take(host), 1) for host in hosts]


async def asked(turns: Turns, *hosts: str) -> list["asyncio.Task[Turn]"]:
    """Those who wait, each before the next."""
    tasks = []
    for host in hosts:
        tasks.append(asyncio.create_task(turns.take(host)))
        await asyncio.sleep(0)
    return tasks


async def settled(tasks: list["asyncio.Task[Turn]"]) -> list[bool]:
    for _ in range(3):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_there_is_room_for_so_many_and_for_so_many_of_one_host() -> None:
    turns = places()
    a, *_ = await taken(turns, "a", "a", "a")
    waiting = await asked(turns, "a", "b", "c")
    assert await settled(waiting) == [False, True, False]

    a.end()
    a.end()
    assert await settled(waiting) == [False, True, True], "the host to which less is under way comes first"
    (await waiting[1]).end()
    assert await settled(waiting) == [True] * 3


async def test_a_host_that_is_slow_stands_behind_the_others() -> None:
    turns = places(prompt=2, prompt_seconds=0.05)
    await taken(turns, "slow", "fast")
    await asyncio.sleep(0.1)
    held = await taken(turns, "x", "x")
    waiting = await asked(turns, "slow", "slow", "new", "other")

    held[0].end()
    assert await settled(waiting) == [False, False, True, False]
    held[1].end()
    assert await settled(waiting) == [False, False, True, True]


async def test_a_host_has_few_turns_until_it_has_answered_in_time() -> None:
    turns = places(prompt_seconds=0.1, unproven=1)
    (first,) = await taken(turns, "a")
    waiting = await asked(turns, "a", "a", "a")
    assert await settled(waiting) == [False] * 3

    first.end()  # without an answer
    assert await settled(waiting) == [True, False, False]
    second = await waiting[0]
    second.is_answered = True
    second.end()
    assert await settled(waiting) == [True] * 3
    await asyncio.sleep(0.2)  # both have become slow
    assert await settled(await asked(turns, "a", "a")) == [True, False]


async def test_places_become_free_however_slow_hosts_are() -> None:
    turns = places(prompt=2, prompt_seconds=0.05, slow=100)
    async with asyncio.timeout(2):
        for number in range(20):
            await turns.take(f"silent{number}")


async def test_the_oldest_of_the_slowest_host_ends_where_too_many_are_slow() -> None:
    turns = places(prompt=4, prompt_seconds=0.02, slow=3)
    held = await taken(turns, "one", "bad", "bad", "bad")

    async def use(turn: Turn) -> None:
        async with turn.until(asyncio.get_running_loop().time() + 0.5):
            await asyncio.sleep(3600)

    results = await asyncio.gather(*map(use, held), return_exceptions=True)

    assert [type(result) for result in results] == [TimeoutError, CutOff, TimeoutError, TimeoutError]
    with pytest.raises(CutOff):
        await use(held[1])


async def test_who_gives_up_leaves_nothing_behind() -> None:
    turns = places(prompt=1, per_host=1)
    (first,) = await taken(turns, "a")
    waiting = await asked(turns, "a", "b", "b")
    for task in waiting[:2]:
        task.cancel()
    assert await settled(waiting) == [True, True, False]

    first.end()
    waiting[2].cancel()  # as it comes
    assert await settled(waiting) == [True] * 3
    await taken(turns, "c")
    assert list(turns._hosts) == ["c"]
