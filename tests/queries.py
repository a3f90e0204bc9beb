"""What a request asks the database."""

import asyncio


def is_answering() -> bool:
    """Whether the code runs in the task of a request, and not in one that works by the clock or follows the log."""
    task = asyncio.current_task()
    return task is not None and getattr(task.get_coro(), "__qualname__", "").startswith("RequestHandler.")
