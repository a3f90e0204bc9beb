"""Budgets (Client-Server API, "Rate limiting"), with a clock of the test's own."""

import pytest

from federation.protocol.errors import LimitExceeded
from homeserver.services import budget_table
from homeserver.services.budget_table import BudgetTable
from homeserver.services.rate_limits import Limit, RateLimits


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spends(limits: RateLimits, key: str = "alice") -> bool:
    """Whether one more request is within the budget."""
    try:
        limits.spend("messages", key)
    except LimitExceeded:
        return False
    return True


def test_a_burst_and_then_as_time_passes() -> None:
    clock = Clock()
    limits = RateLimits({"messages": Limit(per_second=2, burst=3)}, clock=clock)

    assert [spends(limits) for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [spends(limits) for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [spends(limits) for _ in range(4)] == [True, True, True, False]


def test_the_error_says_when_to_try_again() -> None:
    clock = Clock()
    limits = RateLimits({"messages": Limit(per_second=2, burst=1)}, clock=clock)
    limits.spend("messages", "alice")

    with pytest.raises(LimitExceeded) as caught:
        limits.spend("messages", "alice")
    assert caught.value.retry_after_ms == 500
    clock.now += 0.5
    assert spends(limits)


def test_keys_have_budgets_of_their_own() -> None:
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=1)}, clock=Clock())

    assert (spends(limits, "alice"), spends(limits, "bob"), spends(limits, "alice")) == (True, True, False)


@pytest.mark.parametrize(
    ("one", "other", "is_shared"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("no:address", "no:other", False),
        ("@alice:a:80", "@alice:a:81", False),
    ],
)
def test_the_addresses_of_one_ipv6_network_share_a_budget(one: str, other: str, is_shared: bool) -> None:
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=1)}, clock=Clock())

    assert spends(limits, one)
    assert spends(limits, other) is not is_shared


def test_what_costs_more_than_the_budget_holds_takes_all_of_it() -> None:
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=3)}, clock=Clock())

    limits.spend("messages", "alice", cost=100)

    assert not spends(limits)


def test_checking_spends_nothing() -> None:
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=1)}, clock=Clock())

    for _ in range(3):
        limits.check("messages", "alice")
    assert spends(limits)
    with pytest.raises(LimitExceeded):
        limits.check("messages", "alice")


def test_switched_off_there_is_no_limit() -> None:
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=1)}, enabled=False)

    assert all(spends(limits) for _ in range(10))


def test_processes_that_share_a_table_share_the_budgets() -> None:
    memory, clock = budget_table.shared_memory(), Clock()
    one, other, stranger = (
        RateLimits({"messages": Limit(per_second=0.001, burst=4)}, table=BudgetTable(each), clock=clock)
        for each in (memory, memory, -1)
    )

    assert [spends(each) for each in (one, other, one, other, one, other)] == [True] * 4 + [False] * 2
    assert spends(stranger)


def test_memory_is_bounded_and_who_has_spent_most_is_remembered_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_table, "_SETS", 4)
    limits = RateLimits({"messages": Limit(per_second=0.001, burst=5)}, clock=Clock())
    limits.spend("messages", "mallory", cost=5)

    for number in range(1000):
        assert spends(limits, f"user{number}")

    assert not spends(limits, "mallory")


def test_the_largest_body_costs_most_of_the_requests_and_not_all() -> None:
    limits = RateLimits({"requests": Limit(per_second=0.001, burst=100)}, clock=Clock())

    limits.spend("requests", "alice")
    limits.spend_on_body("alice", 8 * 1024)
    limits.spend_on_body("alice", 100 * 1024 * 1024)

    for _ in range(24):
        limits.spend("requests", "alice")
    with pytest.raises(LimitExceeded):
        limits.spend("requests", "alice")
