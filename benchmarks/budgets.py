"""Hearth's budgets: CPU milliseconds per operation on two cores, and a few limits in other units.

The budgets were set beside figures of Synapse from a quiet machine. Where neighbours slow this one down, a cost that
misses its budget says little, so it is also held against the budget times the factor by which Synapse is slower in the
same run than it was then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Load, Quantity

SMALLER = "than in the budget"
"""The end of the note of a figure from a smaller world than the budget is for, which is not judged."""


@dataclass(frozen=True, slots=True)
class Cost:
    """At most this much CPU time per operation, of the server and of PostgreSQL; and Synapse's when it was set."""

    server_ms: float
    postgres_ms: float | None = None
    synapse_ms: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """At most this much of something else, or at least; and what Synapse took when it was set, if a slow machine makes
    it more."""

    value: float
    synapse: float | None = None
    is_least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure held against its budget."""

    name: str
    measured: str
    budget: str
    is_met: bool
    slowdown: float | None = None
    """How much slower than when the budget was set Synapse was in the same run."""
    is_met_when_slowed: bool | None = None
    """Whether it is met when the budget is multiplied by that."""


COSTS: Mapping[str, Cost] = {
    "send, 1 sender": Cost(1.2, 0.8, (13.3, 7.4)),
    "send, 64 senders": Cost(0.42, 0.16, (8.2, 4.7)),
    "deliver to one of 200 waiting syncs": Cost(0.25, 0.03, (3.2, 1.6)),
    "incremental sync, nothing new": Cost(0.15, None, (1.6, 0)),
    "sliding sync, first 20 rooms of 200": Cost(4, 2, (30, 12)),
    "sliding sync, nothing new": Cost(0.2, None, (4.8, 0.6)),
    "local join": Cost(2, 1, (28, 19)),
    "first sync, lazy members, cold": Cost(250, 150),
    "replicate one event, sending server": Cost(1, 0.5, (17, 9)),
    "replicate one event, receiving server": Cost(1.5, 0.7, (23, 12)),
    "remote join, 500 members, joining server": Cost(150, 80, (1070, 657)),
}
LIMITS: Mapping[str, Limit] = {
    "start, server CPU": Limit(0.6, 0.93),
    "memory, idle": Limit(100),
    "memory per idle sync": Limit(30),
    "idle syncs, server CPU": Limit(2),
    "disk, per message": Limit(1200),
    "disk, per state change": Limit(1000),
    "two workers by one": Limit(1.7, is_least=True),
    "growth of send": Limit(1.5),
    "growth of state change": Limit(1.5),
    "growth of join": Limit(1.5),
    "growth of send, members without pushers": Limit(2),
}

FACTORS: Mapping[str, float] = {
    "start, server CPU": 1,
    "memory, idle": 1,
    "send, 1 sender": 10,
    "send, 64 senders": 20,
    "deliver to one of 200 waiting syncs": 15,
    "incremental sync, nothing new": 10,
    "first sync, lazy members, cold": 10,
    "local join": 10,
    "replicate one event, sending server": 10,
    "replicate one event, receiving server": 10,
    "remote join, 500 members, joining server": 10,
    "disk, per message": 3,
    "disk, per state change": 10,
}
"""How many times less than Synapse's each is to be, in the same run."""
SMALLER_WORLDS: Mapping[str, float] = {"first sync, lazy members, cold": 10}
"""Figures that Synapse's are multiplied by to stand beside Hearth's: it has a tenth of the rooms."""


def compare(figures: Sequence[Figure], synapse: Sequence[Figure], *, is_quick: bool) -> Iterator[Verdict]:
    """A verdict for every figure that both have, and that is to be so many times less."""
    beside = {figure.name: figure for figure in synapse}
    for figure in figures:
        other, wanted = beside.get(figure.name), FACTORS.get(figure.name)
        if other is None or wanted is None or (is_quick and figure.name in SMALLER_WORLDS):
            continue
        factor = SMALLER_WORLDS.get(figure.name, 1) * amount(other) / max(1e-9, amount(figure))
        yield Verdict(figure.name, f"{factor:.1f} times", f"{wanted:g} times", factor >= wanted)


def amount(figure: Figure) -> float:
    """One number: of a cost, that of server and PostgreSQL together."""
    return figure.server_ms + figure.postgres_ms if isinstance(figure, Load) else figure.value


def judge(figures: Sequence[Figure], synapse: Sequence[Figure] = ()) -> Iterator[Verdict]:
    """A verdict for every figure of Hearth's that has a budget and was measured in the world that it is for."""
    beside = {figure.name: figure for figure in synapse}
    for figure in figures:
        if figure.note.endswith(SMALLER):
            continue
        if isinstance(figure, Load) and (cost := COSTS.get(figure.name)) is not None:
            then = None if cost.synapse_ms is None else cost.synapse_ms[0]
            yield _judge_cost(figure, cost, _slowdown(then, beside.get(figure.name)))
        elif isinstance(figure, Quantity) and (limit := LIMITS.get(figure.name)) is not None:
            yield _judge_quantity(figure, limit, _slowdown(limit.synapse, beside.get(figure.name)))


def _slowdown(then: float | None, now: Figure | None) -> float | None:
    """At least 1: a machine that is faster changes no budget."""
    if then is None or now is None:
        return None
    return max(1.0, (now.server_ms if isinstance(now, Load) else now.value) / then)


def _judge_quantity(figure: Quantity, limit: Limit, slowdown: float | None) -> Verdict:
    return Verdict(
        figure.name,
        f"{figure.value:.4g} {figure.unit}",
        f"{'at least ' if limit.is_least else ''}{limit.value:g} {figure.unit}",
        figure.value >= limit.value if limit.is_least else figure.value <= limit.value,
        slowdown,
        None if slowdown is None else figure.value <= slowdown * limit.value,
    )


def _judge_cost(figure: Load, cost: Cost, slowdown: float | None) -> Verdict:
    budget = f"{cost.server_ms:g} ms" if cost.postgres_ms is None else f"{cost.server_ms:g} + {cost.postgres_ms:g} ms"
    return Verdict(
        figure.name,
        f"{figure.server_ms:.3g} + {figure.postgres_ms:.3g} ms",
        budget,
        _is_within(figure, cost, 1.0),
        slowdown,
        None if slowdown is None else _is_within(figure, cost, slowdown),
    )


def _is_within(figure: Load, cost: Cost, factor: float) -> bool:
    if cost.postgres_ms is None:
        return figure.server_ms + figure.postgres_ms <= factor * cost.server_ms
    return figure.server_ms <= factor * cost.server_ms and figure.postgres_ms <= factor * cost.postgres_ms
