"""Places for work of which only so much may be done at once, and who waits for one."""

import asyncio
from collections.abc import Iterable
from types import TracebackType

from storage.figures import Figures


class Places:
    """So many of them: whoever is within `async with` has one."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.taken = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(limit)

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.taken += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.taken -= 1
        self._free.release()


def figures_of(places: Iterable[Places]) -> Figures:
    """For `homeserver.metrics`; those of one name are added up."""
    taken: dict[str, float] = {}
    waiting: dict[str, float] = {}
    limits: dict[str, float] = {}
    for each in places:
        taken[each.name] = taken.get(each.name, 0) + each.taken
        waiting[each.name] = waiting.get(each.name, 0) + each.waiting
        limits[each.name] = limits.get(each.name, 0) + each.limit
    return {"places_taken": taken, "places_waiting": waiting, "places_limit": limits}
