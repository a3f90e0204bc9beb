"""What a server of a given size takes, by the simulation."""

import math

import pytest

from benchmarks.simulate_scale import Costs, Server, render, simulate

COSTS = Costs(send=(1, 2), deliver=(0, 0), poll=(0, 0), follow=(0, 0), send_to_server=(0, 0), receive=(0, 0))


def a_server(**given: float) -> Server:
    return Server(**{"users": 100_000, "received": 0, **given})  # type: ignore[arg-type]


def test_what_is_sent_costs_what_sending_costs() -> None:
    found = simulate(a_server(online=0.36, sends_an_hour=10), COSTS)

    assert found.messages == pytest.approx(100, rel=0.02)
    assert found.process_cores == pytest.approx(0.001 * found.messages)
    assert found.postgres_cores == pytest.approx(0.002 * found.messages)
    assert found.busiest_cores > found.process_cores + found.postgres_cores


def test_the_same_is_played_again() -> None:
    assert simulate(a_server()) == simulate(a_server())
    assert simulate(a_server()) != simulate(a_server(), seed=2)


@pytest.mark.parametrize("more", [{"users": 200_000}, {"sends_an_hour": 12}, {"received": 2}, {"room_members": 100}])
def test_more_of_anything_takes_more(more: dict[str, float]) -> None:
    less, found = simulate(a_server(received=0.5)), simulate(a_server(**{"received": 0.5, **more}))

    assert found.process_cores > less.process_cores
    assert found.postgres_cores > less.postgres_cores


def test_another_process_follows_what_all_others_append() -> None:
    one = simulate(a_server(machines=1, cores=1))
    many = simulate(a_server(machines=4, cores=8))

    assert many.process_cores - one.process_cores == pytest.approx(31 * one.messages * Costs().follow[0] / 1000)
    assert (one.connections, many.connections) == (12, 384)


def test_the_log_lets_so_much_through_and_no_more() -> None:
    costs = Costs(lock_batch_ms=2, lock_event_ms=0.1)
    quiet = simulate(a_server(users=1000, cores=2), costs, seconds=60)
    flooded = simulate(a_server(users=10_000_000, sends_an_hour=60), costs, seconds=5)

    assert quiet.append_ms < 2 * (costs.lock_batch_ms + costs.lock_event_ms)
    assert quiet.log_most == pytest.approx(1000 * 256 / (2 + 25.6))
    assert flooded.append_ms == math.inf


def test_it_is_told_as_a_table() -> None:
    server = a_server(machines=2)

    assert render(server, simulate(server, seconds=10))[0] == "100,000 users, 2 machines with 8 cores each"
