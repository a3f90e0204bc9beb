"""All scenarios by name, in the order in which they run."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from benchmarks.figures import Figure
from benchmarks.scenarios import (
    delivery,
    disk,
    federation,
    first_sync,
    growth,
    idle_syncs,
    incremental_sync,
    joins,
    log_lock,
    paging,
    pushes,
    send,
    sliding_sync,
    starting,
    workers,
)
from benchmarks.server import Server
from benchmarks.sizes import Sizes

Scenario = Callable[[Server, Sizes], Awaitable[Sequence[Figure]]]
"""Sets up its world on a fresh server, then measures."""

SCENARIOS: Mapping[str, Scenario] = {
    "start": starting.run,
    "send-1": send.run_one,
    "send-8": send.run_eight,
    "send-64": send.run_many,
    "send-64-rooms": send.run_rooms,
    "log-lock": log_lock.run,
    "workers": workers.run,
    "delivery": delivery.run,
    "idle-syncs": idle_syncs.run,
    "empty-sync": incremental_sync.run,
    "first-sync": first_sync.run,
    "sliding-sync": sliding_sync.run,
    "joins": joins.run,
    "paging": paging.run,
    "growth": growth.run,
    "pushes": pushes.run,
    "federation": federation.run,
    "disk-messages": disk.run_messages,
    "disk-state": disk.run_state,
}
