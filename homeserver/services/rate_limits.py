"""Budgets of requests: how often one account or address may do something (Client-Server API, "Rate limiting").

Each budget is a token bucket, kept as one number per key: the time at which the bucket will be full again (the
"virtual scheduling" form of GCRA).
"""

import time
from collections.abc import Callable, Mapping

from msgspec import Struct

from federation.protocol.errors import LimitExceeded
from federation.web import network_of
from homeserver.services.budget_table import BudgetTable
from storage.figures import Figures

BODY_BYTES = 8 * 1024
"""Of a body of JSON, which cost as much as a request."""


class Limit(Struct, frozen=True):
    """`burst` requests at once, and `per_second` more as time passes."""

    per_second: float
    burst: int


class RateLimits:
    """The budgets of this server's processes, as far as they share a table."""

    def __init__(
        self,
        limits: Mapping[str, Limit],
        *,
        enabled: bool = True,
        table: BudgetTable | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = dict(limits)
        self._enabled = enabled
        self._clock = clock  # the same in all processes of a machine
        self._table = table or BudgetTable()
        self._refusals = dict.fromkeys(self._limits, 0)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"rate_limited_total": self._refusals}

    def spend(self, name: str, key: str, *, cost: int = 1) -> None:
        """Take `cost`, or all if the budget can hold no more, from the budget `name` of `key`.

        Raises LimitExceeded, and takes nothing, when there is less.
        """
        if not self._enabled:
            return
        limit = self._limits[name]
        key = f"{name} {budget_key(key)}"
        now = self._clock()
        full_at = max(self._table.get(key), now) + min(cost, limit.burst) / limit.per_second
        self._check(name, full_at, now)
        self._table.put(key, full_at)

    def check(self, name: str, key: str) -> None:
        """Raise LimitExceeded when one could not be spent; spends nothing."""
        if self._enabled:
            limit = self._limits[name]
            now = self._clock()
            self._check(name, max(self._table.get(f"{name} {budget_key(key)}"), now) + 1 / limit.per_second, now)

    def _check(self, name: str, full_at: float, now: float) -> None:
        limit = self._limits[name]
        too_early = full_at - now - limit.burst / limit.per_second
        if too_early > 1e-9:
            self._refusals[name] += 1
            raise LimitExceeded(max(1, round(too_early * 1000)))

    def spend_on_body(self, key: str, size: int) -> None:
        """Take what it costs to read a large body from the requests of `key`.

        Never all that there can be: else who sends other requests meanwhile could not send the largest.
        """
        if size > BODY_BYTES:
            burst = self._limits["requests"].burst
            self.spend("requests", key, cost=min(size // BODY_BYTES, burst - burst // 4))

    def by_name(self) -> Mapping[str, Callable[[object, str], None]]:
        """What spends one from each budget, for the gates of an API's routes."""
        return {name: self._spender(name) for name in self._limits}

    def _spender(self, name: str) -> Callable[[object, str], None]:
        def spend(_call: object, key: str) -> None:
            self.spend(name, key)

        return spend


def budget_key(key: str) -> str:
    """Whose budget it is: a user's, an address's, or that of a whole IPv6 network, which is what one customer has."""
    return network_of(key) if ":" in key and not key.startswith("@") else key
