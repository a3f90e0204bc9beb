"""Which servers are known not to answer, so that nobody waits for them.

A server that fails is left alone for a short time, which doubles with each failure after that, up to an hour. Any sign
of life ends it, a request from that server included. `shared_availability.py` keeps this for other processes and for
after a restart.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from federation.protocol.errors import PeerUnreachable
from federation.protocol.types import ServerName
from storage.figures import Figures

FIRST_SECONDS = 5.0
MAX_SECONDS = 3600.0
MAX_REMEMBERED = 20_000


class BackOff(Struct, frozen=True):
    """For how long a server is left alone, and why."""

    until: float
    """Of the clock that does not jump."""
    failures: int
    """One after the other, until now."""
    since_ts: int
    reason: str


class Availability:
    """What this process knows of other servers."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._back_offs: OrderedDict[ServerName, BackOff] = OrderedDict()
        self.observers: list[Callable[[ServerName], None]] = []
        """Called with a server that is no longer left alone."""
        self.on_news: Callable[[ServerName], None] | None = None
        """Called with a server of which this process found out something that is to be shared: not that it failed once
        and nobody waits for it, which is so of any name that somebody made up.
        """

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        now = self._now()
        return {"federation_back_offs": sum(each.until > now for each in self._back_offs.values())}

    def find(self, destination: ServerName) -> BackOff | None:
        """What is known of a server that failed."""
        return self._back_offs.get(destination)

    def seconds_left(self, destination: ServerName) -> float:
        """For how long the server is left alone; 0 for one that is not."""
        back_off = self._back_offs.get(destination)
        return 0.0 if back_off is None else max(back_off.until - self._now(), 0.0)

    def check(self, destination: ServerName) -> None:
        """Raise PeerUnreachable while the server is left alone."""
        seconds = self.seconds_left(destination)
        if seconds:
            raise PeerUnreachable(destination, f"left alone for {seconds:.0f} seconds more")

    def failed(self, destination: ServerName, reason: str = "") -> None:
        """It gave no answer. What fails while it is left alone was under way before, and counts as the same failure."""
        known = self._back_offs.get(destination)
        if known is None or known.until <= self._now():
            self.leave_alone(destination, 1 if known is None else known.failures + 1, reason)

    def leave_alone(self, destination: ServerName, failures: int, reason: str) -> None:
        """Ask nothing of it for a while, as after so many failures."""
        known = self._back_offs.get(destination)
        seconds = seconds_after(failures) * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        since_ts = time.time_ns() // 1_000_000 if known is None else known.since_ts
        self._put(destination, BackOff(self._now() + seconds, failures, since_ts, reason))
        if self.on_news is not None and failures > 1:
            self.on_news(destination)

    def note_awaited(self, destination: ServerName) -> None:
        """There is something to send to a server that failed: its first failure is news, too."""
        known = self._back_offs.get(destination)
        if known is not None and known.failures == 1 and self.on_news is not None:
            self.on_news(destination)

    def alive(self, destination: ServerName) -> None:
        """It answered, or sent something."""
        if self._back_offs.pop(destination, None) is not None:
            if self.on_news is not None:
                self.on_news(destination)
            self._tell(destination)

    def learn(self, destination: ServerName, back_off: BackOff | None) -> None:
        """Another process, or an operator, knows better."""
        if back_off is not None:
            self._put(destination, back_off)
        else:
            self._back_offs.pop(destination, None)
            self._tell(destination)

    def _put(self, destination: ServerName, back_off: BackOff) -> None:
        self._back_offs[destination] = back_off
        self._back_offs.move_to_end(destination)
        if len(self._back_offs) > MAX_REMEMBERED:
            self._back_offs.popitem(last=False)

    def _tell(self, destination: ServerName) -> None:
        for observe in self.observers:
            observe(destination)


def seconds_after(failures: int) -> float:
    """For how long a server is left alone after so many failures, give or take a fifth."""
    return min(FIRST_SECONDS * 2.0 ** min(failures - 1, 30), MAX_SECONDS)
