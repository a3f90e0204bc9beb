"""Which servers are known not to answer, so that nobody waits for them.

A server that fails is left alone for a short time, which doubles with each failure after that, up to an hour. Any sign
of life ends it, a request from that server included.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from federation.protocol.errors import PeerUnreachable
from federation.protocol.types import ServerName

FIRST_SECONDS = 5.0
MAX_SECONDS = 3600.0
MAX_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class _BackOff:
    seconds: float
    until: float


class Availability:
    """What this process has seen of other servers."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._back_offs: OrderedDict[ServerName, _BackOff] = OrderedDict()
        self.observers: list[Callable[[ServerName], None]] = []
        """Called with a server that is no longer left alone."""

    def seconds_left(self, destination: ServerName) -> float:
        """For how long the server is left alone; 0 for one that is not."""
        back_off = self._back_offs.get(destination)
        return 0.0 if back_off is None else max(back_off.until - self._now(), 0.0)

    def check(self, destination: ServerName) -> None:
        """Raise PeerUnreachable while the server is left alone."""
        back_off = self._back_offs.get(destination)
        if back_off is not None and back_off.until > self._now():
            raise PeerUnreachable(destination, f"left alone for {back_off.until - self._now():.0f} seconds more")

    def failed(self, destination: ServerName) -> None:
        """It gave no answer. What fails while it is left alone was under way before, and counts as the same failure."""
        now, known = self._now(), self._back_offs.get(destination)
        if known is not None and known.until > now:
            return
        seconds = FIRST_SECONDS if known is None else min(known.seconds * 2, MAX_SECONDS)
        self._back_offs[destination] = _BackOff(seconds, now + seconds * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
        self._back_offs.move_to_end(destination)
        if len(self._back_offs) > MAX_REMEMBERED:
            self._back_offs.popitem(last=False)

    def alive(self, destination: ServerName) -> None:
        """It answered, or sent something."""
        if self._back_offs.pop(destination, None) is not None:
            for observe in self.observers:
                observe(destination)
