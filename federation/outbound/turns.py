"""Whose turn it is to have a request under way: who answers slowly takes no place from who answers at once.

A request begins in one of so many places, and leaves it after some seconds however slow its host is: it goes on as a
slow one. So a place becomes free in time whatever hosts do, and a host has few of them before it has answered one in
time. Whoever waits for a place comes in the order of how little is under way to the host, slow requests first of all: a
host that is silent stands behind every other. When there are too many slow requests, the oldest ends of the host that
has most of them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec import Struct

from storage.figures import Figures


class Places(Struct, frozen=True, kw_only=True):
    """How many requests may be under way."""

    prompt: int
    prompt_seconds: float | None
    """After which a request is a slow one; None if it never is."""
    slow: int
    per_host: int
    """Of both."""
    unproven: int
    """Prompt ones of a host that has not answered another in time of late."""
    kept: int = 4
    """Connections to a host that are kept for the next request, each with up to 300 KB for TLS; others end with their
    answer."""


MAX_PROVEN = 10_000


class CutOff(Exception):
    """The request has to end: it takes long, and others take longer than there is room for."""


class Turn:
    """A request under way. `end` gives its place back."""

    def __init__(self, host: str, beside: int, end: Callable[["Turn"], None]) -> None:
        self.host = host
        self.beside = beside
        """How many requests to the host were under way when it began."""
        self.is_slow = False
        self.is_cut_off = False
        self.is_answered = False
        """For who uses it to say."""
        self._end = end
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def until(self, deadline: float | None) -> AsyncIterator[None]:
        """Raises TimeoutError at this time of the loop, if any; CutOff when the turn is cut off before."""
        if self.is_cut_off:
            raise CutOff
        try:
            async with asyncio.timeout_at(deadline) as self._limit:
                yield
        except TimeoutError:
            if self.is_cut_off:
                raise CutOff from None
            raise
        finally:
            self._limit = None

    def cut_off(self) -> None:
        """Have what goes on under `until` end, and what comes."""
        self.is_cut_off = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        """It is over; also said more than once."""
        self._end(self)


class _Host:
    """What is under way to a host, and who waits."""

    __slots__ = ("slow", "turns", "waiting")

    def __init__(self) -> None:
        self.turns: dict[Turn, asyncio.TimerHandle | None] = {}
        self.slow = 0
        self.waiting: deque[asyncio.Future[Turn]] = deque()

    @property
    def burden(self) -> tuple[int, int]:
        """The host with the least comes first."""
        return self.slow, len(self.turns)


class Turns:
    """All requests under way."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._hosts: dict[str, _Host] = {}
        self._awaited: dict[str, _Host] = {}
        """Those for which somebody waits, in the order in which they began to."""
        self._proven: dict[str, None] = {}
        self._prompt = 0
        self._slow = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        waiting = sum(len(host.waiting) for host in self._awaited.values())
        return {
            "places_taken": {"outbound_requests": self._prompt, "slow_outbound_requests": self._slow},
            "places_waiting": {"outbound_requests": waiting},
            "places_limit": {
                "outbound_requests": self._places.prompt,
                "slow_outbound_requests": self._places.slow,
            },
        }

    async def take(self, name: str) -> Turn:
        """A turn for a request to this host, once there is one."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        if self._prompt < self._places.prompt and self._may_begin(name, host):
            return self._begin(name, host)
        waiting: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        host.waiting.append(waiting)
        self._awaited[name] = host
        try:
            return await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled():  # it came just now
                waiting.result().end()
            else:
                host.waiting.remove(waiting)
                self._tidy(name, host)
            raise

    def _may_begin(self, name: str, host: _Host) -> bool:
        return len(host.turns) < self._places.per_host and (
            name in self._proven or len(host.turns) - host.slow < self._places.unproven
        )

    def _begin(self, name: str, host: _Host) -> Turn:
        turn = Turn(name, len(host.turns), self._end)
        seconds = self._places.prompt_seconds
        host.turns[turn] = (
            None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._note_slow, turn)
        )
        self._prompt += 1
        return turn

    def _note_slow(self, turn: Turn) -> None:
        host = self._hosts[turn.host]
        self._proven.pop(turn.host, None)
        turn.is_slow = True
        self._prompt -= 1
        self._slow += 1
        host.slow += 1
        if self._slow > self._places.slow:
            worst = max(self._hosts.values(), key=lambda each: each.slow)
            oldest = next((each for each in worst.turns if each.is_slow and not each.is_cut_off), None)
            if oldest is not None:
                oldest.cut_off()
        self._hand_out()

    def _end(self, turn: Turn) -> None:
        host = self._hosts.get(turn.host)
        if host is None or turn not in host.turns:
            return
        timer = host.turns.pop(turn)
        if timer is not None:
            timer.cancel()
        if turn.is_slow:
            self._slow -= 1
            host.slow -= 1
        else:
            self._prompt -= 1
            if turn.is_answered:
                self._note_proven(turn.host)
        self._tidy(turn.host, host)
        self._hand_out()

    def _note_proven(self, name: str) -> None:
        self._proven.pop(name, None)
        self._proven[name] = None
        if len(self._proven) > MAX_PROVEN:
            del self._proven[next(iter(self._proven))]

    def _hand_out(self) -> None:
        """Give the places that are free to those who wait."""
        while self._awaited and self._prompt < self._places.prompt:
            ready = [name for name, host in self._awaited.items() if self._may_begin(name, host)]
            if not ready:
                return
            name = min(ready, key=lambda each: self._awaited[each].burden)
            host = self._awaited[name]
            waiting = next((each for each in host.waiting if not each.done()), None)
            if waiting is None:  # all have gone, and are about to say so
                del self._awaited[name]
                continue
            host.waiting.remove(waiting)
            waiting.set_result(self._begin(name, host))
            self._tidy(name, host)

    def _tidy(self, name: str, host: _Host) -> None:
        """Forget a host that needs no more."""
        if not host.waiting:
            self._awaited.pop(name, None)
            if not host.turns:
                self._hosts.pop(name, None)
