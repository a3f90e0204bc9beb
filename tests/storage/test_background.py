"""Background tasks end when they are told to."""

import asyncio

import pytest

from storage import background


async def test_a_task_ends_although_its_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.02)
    for turns in range(8):  # in some of these turns of the loop Python 3.11 loses the cancellation
        condition = asyncio.Condition()

        async def go_on_for_ever(condition: asyncio.Condition = condition) -> None:
            async with condition:
                await asyncio.wait_for(condition.wait(), 10)
            await asyncio.sleep(60)

        task = asyncio.create_task(go_on_for_ever())
        await asyncio.sleep(0.01)
        async with condition:
            condition.notify_all()
        for _ in range(turns):
            await asyncio.sleep(0)

        async with asyncio.timeout(5):
            await background.end([task])

        assert task.done()


async def test_what_it_has_to_put_in_order_at_its_end_is_done() -> None:
    is_in_order = False

    async def go_on_for_ever() -> None:
        nonlocal is_in_order
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            is_in_order = True

    task = asyncio.create_task(go_on_for_ever())
    await asyncio.sleep(0)
    await background.end([task])

    assert is_in_order


async def test_when_one_fails_the_others_end() -> None:
    other = asyncio.Event()

    async def fail() -> None:
        raise ValueError("broken")

    async def go_on_for_ever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            other.set()

    with pytest.raises(ValueError, match="broken"):
        await background.run_together(go_on_for_ever(), fail())

    assert other.is_set()
