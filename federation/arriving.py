"""Bodies of requests that are on their way, or not verified yet: how much memory they take together.

Nobody knows who sends a body before it is whole, since the signature is of it. Beyond a bound the one that has been on
its way for longest is given up: those of who sends slowly on purpose, and not of who sends now.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from federation.protocol.errors import LimitExceeded

MAX_BYTES = 256 * 1024 * 1024
"""Of all of them, in this process."""
SMALL_BYTES = 64 * 1024
"""A body that is announced to be no larger does not count: connections are few enough for that."""
PAUSE_MS = 10_000


def is_small(announced_bytes: int | None) -> bool:
    """Whether a body that is announced to have so many bytes need not be counted."""
    return announced_bytes is not None and announced_bytes <= SMALL_BYTES


class Body:
    """What has come of one body; `add` is told of each piece."""

    __slots__ = ("_bodies", "is_given_up", "limit", "size")

    def __init__(self, bodies: "Bodies") -> None:
        self._bodies = bodies
        self.size = 0
        self.is_given_up = False
        self.limit: asyncio.Timeout | None = None

    def add(self, size: int) -> None:
        """So many bytes more."""
        self.size += size
        if not self.is_given_up:
            self._bodies.make_room(size)

    def give_up(self) -> None:
        """End what waits for it."""
        self.is_given_up = True
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time())


class Bodies:
    """All that are on their way."""

    def __init__(self) -> None:
        self._size = 0
        self._bodies: dict[Body, None] = {}
        """The oldest first, without those that are given up."""

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Body]:
        """One more, for as long as the block lasts; raises LimitExceeded in it where the body is given up."""
        body = Body(self)
        self._bodies[body] = None
        try:
            async with asyncio.timeout(None) as body.limit:
                yield body
        except TimeoutError:
            if body.is_given_up:
                raise LimitExceeded(PAUSE_MS) from None
            raise
        finally:
            body.limit = None
            self._forget(body)

    def make_room(self, size: int) -> None:
        """So many bytes have come: give up the oldest bodies while there is too much."""
        self._size += size
        while self._size > MAX_BYTES:
            oldest = next(iter(self._bodies))
            self._forget(oldest)
            oldest.give_up()

    def _forget(self, body: Body) -> None:
        if body in self._bodies:
            del self._bodies[body]
            self._size -= body.size


BODIES = Bodies()
