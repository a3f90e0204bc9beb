"""Budgets of requests: how often one account or address may do something (Client-Server API, "Rate limiting").

Each budget is a token bucket, kept as one number per key: the time at which the bucket will be full again (the
"virtual scheduling" form of GCRA). A key whose time has passed has a full bucket and needs no memory.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

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
        """Take `cost`, or all if the budget can hold no more, from the budget `name` of `key`.

        Raises LimitExceeded, and takes nothing, when there is less.
        """
        if not self._enabled:
            return
        limit = self._limits[name]
        key = budget_key(key)
        now = self._clock()
        full_at = max(self._full_at.get((name, key), now), now) + min(cost, limit.burst) / limit.per_second
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
            key = budget_key(key)
            now = self._clock()
            _check(max(self._full_at.get((name, key), now), now) + 1 / limit.per_second, now, limit)

    def clear(self, name: str, key: str) -> None:
        """Give a full budget again."""
        self._full_at.pop((name, budget_key(key)), None)

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


def budget_key(key: str) -> str:
    """Whose budget it is: a user's, an address's, or that of a whole IPv6 network, which is what one customer has."""
    return _network(key) if ":" in key and not key.startswith("@") else key


@lru_cache(maxsize=4096)
def _network(text: str) -> str:
    try:
        address = IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, 64), strict=False))


def _check(full_at: float, now: float, limit: Limit) -> None:
    too_early = full_at - now - limit.burst / limit.per_second
    if too_early > 1e-9:
        raise LimitExceeded(max(1, round(too_early * 1000)))
