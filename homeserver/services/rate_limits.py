"""Budgets of requests: how often one account or address may do something (Client-Server API, "Rate limiting").

Each budget is a token bucket, kept as one number per key: the time at which the bucket will be full again (the
"virtual scheduling" form of GCRA). A key whose time has passed has a full bucket and needs no memory.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from federation.protocol.errors import LimitExceeded

MAX_KEYS = 100_000
"""Keys remembered over all budgets; beyond that the oldest are forgotten, which gives them a full bucket."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` requests at once, and `per_second` more as time passes."""

    per_second: float
    burst: int


class RateLimits:
    """The budgets of this process."""

    def __init__(
        self, limits: Mapping[str, Limit], *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = dict(limits)
        self._enabled = enabled
        self._clock = clock
        self._full_at: dict[tuple[str, str], float] = {}

    def spend(self, name: str, key: str, *, cost: int = 1) -> None:
        """Take `cost` from the budget `name` of `key`; raises LimitExceeded, and takes nothing, when there is less."""
        if not self._enabled:
            return
        limit = self._limits[name]
        now = self._clock()
        full_at = max(self._full_at.get((name, key), now), now) + cost / limit.per_second
        _check(full_at, now, limit)
        # Inserted anew, so that the dictionary's order is that of last use.
        self._full_at.pop((name, key), None)
        self._full_at[name, key] = full_at
        if len(self._full_at) > MAX_KEYS:
            self._forget(now)

    def check(self, name: str, key: str) -> None:
        """Raise LimitExceeded when one could not be spent; spends nothing."""
        if self._enabled:
            limit = self._limits[name]
            now = self._clock()
            _check(max(self._full_at.get((name, key), now), now) + 1 / limit.per_second, now, limit)

    def clear(self, name: str, key: str) -> None:
        """Give a full budget again."""
        self._full_at.pop((name, key), None)

    @property
    def remembered(self) -> int:
        """How many budgets are in memory."""
        return len(self._full_at)

    def by_name(self) -> Mapping[str, Callable[[object, str], None]]:
        """What spends one from each budget, for the gates of an API's routes."""
        return {name: self._spender(name) for name in self._limits}

    def _spender(self, name: str) -> Callable[[object, str], None]:
        def spend(_call: object, key: str) -> None:
            self.spend(name, key)

        return spend

    def _forget(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        for key in list(self._full_at)[: max(0, len(self._full_at) - MAX_KEYS // 2)]:
            del self._full_at[key]


def _check(full_at: float, now: float, limit: Limit) -> None:
    too_early = full_at - now - limit.burst / limit.per_second
    if too_early > 1e-9:
        raise LimitExceeded(max(1, round(too_early * 1000)))
