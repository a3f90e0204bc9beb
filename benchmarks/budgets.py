"""Hearth's budgets: CPU milliseconds per operation on two cores, and a few limits in other units."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Load, Quantity


@dataclass(frozen=True, slots=True)
class Cost:
    """At most this much CPU time per operation."""

    server_ms: float
    postgres_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure held against its budget."""

    name: str
    measured: str
    budget: str
    is_met: bool


COSTS: Mapping[str, Cost] = {
    "send, 1 sender": Cost(1.2, 0.8),
    "send, 64 senders": Cost(0.42, 0.16),
    "deliver to one of 200 waiting syncs": Cost(0.25, 0.03),
    "incremental sync, nothing new": Cost(0.15),
    "local join": Cost(2, 1),
    "first sync, lazy members, cold": Cost(250, 150),
}
LIMITS: Mapping[str, float] = {
    "start, server CPU": 0.6,
    "memory, idle": 100,
    "disk, per message": 1200,
    "disk, per state change": 1000,
    "growth of send": 1.5,
    "growth of state change": 1.5,
    "growth of join": 1.5,
}


SMALLER = "than in the budget"
"""The end of the note of a figure from a smaller world than the budget is for, which is not judged."""


def judge(figures: Sequence[Figure]) -> Iterator[Verdict]:
    """A verdict for every figure that has a budget and was measured in the world that it is for."""
    for figure in figures:
        if figure.note.endswith(SMALLER):
            continue
        if isinstance(figure, Load) and (cost := COSTS.get(figure.name)) is not None:
            yield _judge_cost(figure, cost)
        elif isinstance(figure, Quantity) and (limit := LIMITS.get(figure.name)) is not None:
            measured = f"{figure.value:.4g} {figure.unit}"
            yield Verdict(figure.name, measured, f"{limit:g} {figure.unit}", figure.value <= limit)


def _judge_cost(figure: Load, cost: Cost) -> Verdict:
    if cost.postgres_ms is None:
        budget, is_met = f"{cost.server_ms:g} ms", figure.server_ms + figure.postgres_ms <= cost.server_ms
    else:
        budget = f"{cost.server_ms:g} + {cost.postgres_ms:g} ms"
        is_met = figure.server_ms <= cost.server_ms and figure.postgres_ms <= cost.postgres_ms
    return Verdict(figure.name, f"{figure.server_ms:.3g} + {figure.postgres_ms:.3g} ms", budget, is_met)
