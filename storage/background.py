"""Background tasks: how they are ended."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

AGAIN_SECONDS = 5.0
"""How long a cancelled task may take to put its things in order before it is cancelled again."""


async def end(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancel tasks until all of them have ended; nobody hears of their exceptions.

    Once is not always enough: `asyncio.wait_for` of Python 3.11, by which the pool waits for a connection, loses a
    cancellation that comes when what it waited for has just come, and a task that runs for ever would run on.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        ended, running = await asyncio.wait(running, timeout=AGAIN_SECONDS)
        for task in ended:
            if not task.cancelled():
                task.exception()  # else asyncio complains that nobody asked for it


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run what goes on for ever side by side; when one fails, or this is cancelled, all of it is ended."""
    tasks = [asyncio.get_running_loop().create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end(tasks)
