"""What the benchmarks say of budgets."""

import pytest

from benchmarks.budgets import compare, judge
from benchmarks.figures import Load, Quantiles, Quantity

_WAIT = Quantiles.of([0.001])


def a_load(name: str, server_ms: float, postgres_ms: float, note: str = "") -> Load:
    """The cost of an operation."""
    return Load(
        name=name,
        operations=1,
        server_ms=server_ms,
        postgres_ms=postgres_ms,
        per_second=1,
        latency=_WAIT,
        note=note,
    )


@pytest.mark.parametrize(
    ("server_ms", "postgres_ms", "is_met"), [(1.9, 0.9, True), (2.1, 0.1, False), (0.1, 1.1, False)]
)
def test_a_cost_must_keep_to_both_parts_of_its_budget(server_ms: float, postgres_ms: float, is_met: bool) -> None:
    (verdict,) = judge([a_load("local join", server_ms, postgres_ms)])

    assert verdict.is_met is is_met
    assert verdict.is_met_when_slowed is None


def test_a_machine_that_slows_synapse_down_may_slow_hearth_down_as_much() -> None:
    (verdict,) = judge([a_load("local join", 3.9, 1.9)], [a_load("local join", 56, 38)])

    assert not verdict.is_met
    assert (verdict.slowdown, verdict.is_met_when_slowed) == (2.0, True)


def test_a_faster_machine_changes_no_budget() -> None:
    (verdict,) = judge([a_load("local join", 1.9, 0.9)], [a_load("local join", 14, 9)])

    assert (verdict.slowdown, verdict.is_met_when_slowed) == (1.0, True)


def test_a_smaller_world_than_the_budgets_is_not_judged() -> None:
    small = a_load("first sync, lazy members, cold", 1, 1, note="50 rooms, fewer than in the budget")

    assert list(judge([small])) == []


def test_a_number_has_a_limit() -> None:
    (verdict,) = judge(
        [Quantity(name="disk, per message", value=1201, unit="B"), Quantity(name="?", value=1, unit="B")]
    )

    assert not verdict.is_met


@pytest.mark.parametrize(("times", "is_met"), [(1.7, True), (1.69, False)])
def test_some_numbers_have_to_be_large(times: float, is_met: bool) -> None:
    (verdict,) = judge([Quantity(name="two workers by one", value=times, unit="times")])

    assert verdict.is_met is is_met


@pytest.mark.parametrize(("synapse_ms", "is_met"), [(19, False), (20, True)])
def test_what_is_to_be_so_many_times_less_than_synapse(synapse_ms: float, is_met: bool) -> None:
    ours = [a_load("local join", 1.5, 0.5), a_load("of which nothing is asked", 9, 9)]
    theirs = [a_load("local join", synapse_ms - 1, 1), a_load("of which nothing is asked", 1, 1)]

    (verdict,) = compare(ours, theirs, is_quick=False)

    assert (verdict.name, verdict.is_met) == ("local join", is_met)


def test_a_first_sync_of_synapse_counts_for_the_tenth_of_the_rooms_that_it_has() -> None:
    name = "first sync, lazy members, cold"

    (verdict,) = compare([a_load(name, 200, 40)], [a_load(name, 300, 180)], is_quick=False)

    assert verdict.measured == "20.0 times"
    assert list(compare([a_load(name, 200, 40)], [a_load(name, 300, 180)], is_quick=True)) == []


def test_quantiles_are_of_the_times_that_were_measured() -> None:
    quantiles = Quantiles.of([number / 1000 for number in range(101)])

    assert (quantiles.p50, quantiles.p95, quantiles.p99) == (50, 95, 99)
