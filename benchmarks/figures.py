"""What a scenario reports: the cost of an operation, or one number."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """How long clients waited for an answer, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quantiles":
        """From every request's time; there is at least one."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        p50, p95, p99 = (1000 * ordered[round(last * part)] for part in (0.5, 0.95, 0.99))
        return cls(p50=p50, p95=p95, p99=p99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one kind of operation cost, per operation."""

    name: str
    operations: int
    server_ms: float
    """CPU time of the server's processes."""
    postgres_ms: float
    """CPU time of all processes of its PostgreSQL cluster."""
    per_second: float
    latency: Quantiles
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number."""

    name: str
    value: float
    unit: str
    note: str = ""


Figure = Load | Quantity
