"""The run's figures as a table for people and as JSON for comparison with later runs."""

import dataclasses
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import budgets
from benchmarks.figures import Figure, Load
from benchmarks.server import interpreter_version

RESULTS = Path(__file__).resolve().parent / "results"

_HEAD = f"{'':44} {'server ms':>10} {'PG ms':>8} {'ops/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'n':>7}"


@dataclass(slots=True)
class Results:
    """What one server showed."""

    server: str
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    """By scenario."""
    failures: dict[str, str] = field(default_factory=dict)

    def all(self) -> list[Figure]:
        """The figures of all scenarios."""
        return [figure for figures in self.figures.values() for figure in figures]


def render_figures(figures: Sequence[Figure]) -> Iterator[str]:
    """Lines below `head`."""
    for figure in figures:
        note = f"   ({figure.note})" if figure.note else ""
        if isinstance(figure, Load):
            wait = figure.latency
            yield (
                f"{figure.name:44} {figure.server_ms:10.3f} {figure.postgres_ms:8.3f} {figure.per_second:8.1f}"
                f" {wait.p50:8.2f} {wait.p95:8.2f} {wait.p99:8.2f} {figure.operations:7}{note}"
            )
        else:
            yield f"{figure.name:44} {figure.value:10.3f} {figure.unit}{note}"


def head(title: str) -> str:
    """The heading of a table: CPU milliseconds per operation, throughput, waiting times, number of operations."""
    return f"\n{title}\n{_HEAD}"


def render_comparison(results: Sequence[Results]) -> Iterator[str]:
    """Both servers beside each other, where both have a figure."""
    if len(results) < 2:
        return
    first, second = results[0], results[1]
    theirs = {figure.name: figure for figure in second.all()}
    yield f"\n{'side by side':44} {first.server:>20} {second.server:>22} {'factor':>8}"
    for ours in first.all():
        other = theirs.get(ours.name)
        if isinstance(ours, Load) and isinstance(other, Load):
            ratio = (other.server_ms + other.postgres_ms) / max(1e-9, ours.server_ms + ours.postgres_ms)
            note = f"   ({second.server}: {other.note})" if other.note != ours.note else ""
            yield f"{ours.name:44} {_cost(ours):>20} {_cost(other):>22} {ratio:8.1f}{note}"
        elif other is not None and not isinstance(ours, Load) and not isinstance(other, Load):
            ratio = other.value / ours.value if ours.value else 0
            amounts = f"{_amount(ours.value, ours.unit):>20} {_amount(other.value, other.unit):>22}"
            yield f"{ours.name:44} {amounts} {ratio:8.1f}"


def _cost(load: Load) -> str:
    return f"{load.server_ms:.3g} + {load.postgres_ms:.3g} ms"


def _amount(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}"


def render_verdicts(results: Sequence[Results]) -> Iterator[str]:
    """Hearth's budgets, met or not; also when they are multiplied by how much this machine slows Synapse down."""
    verdicts = _verdicts(results)
    if verdicts:
        yield f"\n{'budgets (server + PostgreSQL, CPU per operation)':50} {'measured':>22} {'budget':>18}"
    for verdict in verdicts:
        outcome = "met" if verdict.is_met else "NOT MET"
        if verdict.slowdown is not None:
            scaled = "met" if verdict.is_met_when_slowed else "NOT MET"
            outcome += f"; on a machine {verdict.slowdown:.2f} times as slow: {scaled}"
        yield f"{verdict.name:50} {verdict.measured:>22} {verdict.budget:>18}  {outcome}"


def render_factors(results: Sequence[Results], *, is_quick: bool) -> Iterator[str]:
    """How many times less than Synapse Hearth takes, and how many it is to be."""
    by_server = {result.server: result.all() for result in results}
    found = list(budgets.compare(by_server.get("hearth", []), by_server.get("synapse", []), is_quick=is_quick))
    if found:
        yield f"\n{'times less than Synapse, in this run':50} {'measured':>22} {'at least':>18}"
    for verdict in found:
        outcome = "met" if verdict.is_met else "NOT MET"
        yield f"{verdict.name:50} {verdict.measured:>22} {verdict.budget:>18}  {outcome}"


def _verdicts(results: Sequence[Results]) -> list[budgets.Verdict]:
    by_server = {result.server: result.all() for result in results}
    return list(budgets.judge(by_server.get("hearth", []), by_server.get("synapse", [])))


def write_json(results: Sequence[Results], file: Path | None) -> Path:
    """Write everything that was measured; returns the file."""
    now = time.gmtime()
    if file is None:
        file = RESULTS / f"{time.strftime('%Y-%m-%dT%H%M%SZ', now)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        "python": interpreter_version(),
        "system": platform.platform(),
        "servers": {result.server: _as_json(result) for result in results},
        "budgets": [dataclasses.asdict(verdict) for verdict in _verdicts(results)],
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def _as_json(result: Results) -> Mapping[str, object]:
    return {
        "figures": {name: [dataclasses.asdict(each) for each in figures] for name, figures in result.figures.items()},
        "failures": result.failures,
    }
