"""Trying again when others wrote to the same room first."""

import asyncio
import secrets
import time

from storage.log_entries import Conflict

PATIENCE_SECONDS = 10
"""For how long a writer tries before the client is told to try again later."""
_FIRST_PAUSE_MS = 2
_LONGEST_PAUSE_MS = 250


class Contention:
    """One writer's patience: pauses that grow, and differ from those of others who wait."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._attempt = 0

    async def give_way(self, conflict: Conflict) -> None:
        """Pause before the next attempt; raises `conflict` when there were enough."""
        if time.monotonic() > self._deadline:
            raise conflict
        longest = min(_FIRST_PAUSE_MS << min(self._attempt, 10), _LONGEST_PAUSE_MS)
        if self._attempt:  # the first time others have just been
            await asyncio.sleep(secrets.randbelow(longest * 1000) / 1_000_000)
        self._attempt += 1
