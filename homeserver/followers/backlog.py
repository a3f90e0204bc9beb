"""What was there before a follower was, worked off in small parts beside everything else."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from federation.protocol.errors import Unavailable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often a process looks whether another has left something."""
SOON_SECONDS = 0.1
PAUSE = 1.0
"""As long as a part took, times this, it rests."""


class Backlog:
    """Does one part after the other for as long as `part` says that there was one, and looks again later."""

    def __init__(self, part: Callable[[], Awaitable[bool]]) -> None:
        self._part = part
        self._there = asyncio.Event()

    def look(self) -> None:
        """There may be something."""
        self._there.set()

    def look_soon(self) -> None:
        """There will be something, once a transaction that is under way has ended."""
        asyncio.get_running_loop().call_later(SOON_SECONDS, self.look)

    async def run(self) -> None:
        """Work until cancelled; what fails is logged and tried again."""
        while True:
            began, was_any = time.monotonic(), False
            self._there.clear()
            try:
                was_any = await self._part()
            except Unavailable:  # logged where it arose
                pass
            except Exception:
                logger.exception("what is left of an index could not be worked off; the next turn tries again")
            if was_any:
                await asyncio.sleep(PAUSE * (time.monotonic() - began))
                continue
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._there.wait()
            except TimeoutError:
                pass
