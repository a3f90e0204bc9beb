"""What the database is asked for whoever watches the server, however often they ask and however slowly it answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from storage import background

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """An answer that is asked for once at a time, and remembered for a while."""

    def __init__(self, ask: Callable[[], Awaitable[T]], *, remembered_seconds: float, patience_seconds: float) -> None:
        self.remembered_seconds = remembered_seconds
        self.patience_seconds = patience_seconds
        self._ask = ask
        self._asking: asyncio.Task[T] | None = None
        self._asked_at = 0.0

    async def get(self) -> T:
        """The answer; raises what asking raised, and TimeoutError where that takes longer than anybody waits."""
        asking = self._asking
        if asking is None or (asking.done() and time.monotonic() - self._asked_at > self.remembered_seconds):
            self._asked_at = time.monotonic()
            asking = self._asking = asyncio.get_running_loop().create_task(self._run())
        # Not cancelled when the time is up: that would wait for the database, too. Who asks next waits for the same.
        await asyncio.wait([asking], timeout=self.patience_seconds)
        if not asking.done():
            raise TimeoutError
        return asking.result()

    async def close(self) -> None:
        """Ask no more."""
        asking: list[asyncio.Task[Any]] = [] if self._asking is None else [self._asking]
        await background.end(asking)

    async def _run(self) -> T:
        return await self._ask()
