"""How much load each scenario makes: enough for a steady figure, and a run within a quarter of an hour."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Hearth's by default."""

    sends: Mapping[int, int] = field(default_factory=lambda: {1: 1000, 8: 4000, 64: 12_000})
    """Messages by number of senders."""
    sends_in_64_rooms: int = 12_000
    warm_up: int = 100
    """Operations of the same kind before those that count."""
    pollers: int = 200
    deliveries: int = 60
    """Messages that each of the pollers gets."""
    idle_syncs: int = 10_000
    idle_seconds: int = 60
    sync_rooms: int = 200
    sync_members: int = 50
    sync_messages: int = 12
    cold_syncs: int = 3
    empty_syncs: int = 4000
    sliding_rooms: int = 200
    sliding_members: int = 21
    """Of each of these rooms."""
    joins: int = 400
    page_messages: int = 2000
    page_readers: int = 5
    growth_members: tuple[int, ...] = (10, 1000, 20_000)
    growth_rounds: int = 6
    growth_operations: int = 50
    """Of each kind, in each room, a round."""
    push_members: int = 1000
    push_rounds: int = 4
    push_messages: int = 100
    """In each room, a round."""
    replicated: int = 2000
    replicated_slowly: int = 100
    remote_members: Mapping[int, int] = field(default_factory=lambda: {10: 10, 500: 3, 5000: 1})
    """How many rooms of so many members are joined by way of the other server."""
    disk_messages: int = 100_000
    disk_rooms: int = 100
    disk_state_changes: int = 20_000
    starts: int = 3

    def scaled(self, factor: float) -> "Sizes":
        """More or fewer operations, in rooms of the same size."""

        def times(count: int) -> int:
            return max(1, round(count * factor))

        return dataclasses.replace(
            self,
            sends={senders: max(senders, times(count)) for senders, count in self.sends.items()},
            sends_in_64_rooms=max(64, times(self.sends_in_64_rooms)),
            deliveries=times(self.deliveries),
            empty_syncs=times(self.empty_syncs),
            joins=times(self.joins),
            page_readers=times(self.page_readers),
            growth_rounds=times(self.growth_rounds),
            push_rounds=times(self.push_rounds),
            replicated=max(64, times(self.replicated)),
            replicated_slowly=times(self.replicated_slowly),
        )


HEARTH = Sizes()

SYNAPSE = Sizes(
    sends={1: 200, 8: 480, 64: 1280},
    sends_in_64_rooms=1280,
    warm_up=30,
    deliveries=10,
    idle_syncs=500,
    sync_rooms=20,
    cold_syncs=2,
    empty_syncs=400,
    sliding_members=4,
    joins=40,
    page_messages=1000,
    page_readers=1,
    growth_members=(10, 300),
    growth_rounds=2,
    growth_operations=15,
    replicated=480,
    replicated_slowly=50,
    remote_members={10: 5, 500: 1},
    disk_messages=2000,
    disk_rooms=20,
    disk_state_changes=500,
    starts=2,
)
"""Scaled down where Synapse would take longer than the run may; figures are per operation all the same."""

HEARTH_QUICK = Sizes(
    sends={1: 300, 8: 1000, 64: 2560},
    sends_in_64_rooms=2560,
    warm_up=50,
    deliveries=15,
    idle_syncs=1000,
    idle_seconds=5,
    sync_rooms=50,
    cold_syncs=1,
    empty_syncs=1000,
    sliding_members=6,
    joins=100,
    page_messages=1000,
    page_readers=2,
    growth_members=(10, 1000),
    growth_rounds=3,
    growth_operations=20,
    replicated=480,
    replicated_slowly=50,
    remote_members={10: 5, 500: 2},
    disk_messages=10_000,
    disk_rooms=20,
    disk_state_changes=2000,
    starts=1,
)

SYNAPSE_QUICK = Sizes(
    sends={1: 60, 8: 160, 64: 320},
    sends_in_64_rooms=320,
    warm_up=10,
    pollers=50,
    deliveries=5,
    idle_syncs=100,
    idle_seconds=5,
    sync_rooms=5,
    cold_syncs=1,
    empty_syncs=100,
    sliding_rooms=30,
    sliding_members=3,
    joins=20,
    page_messages=200,
    page_readers=1,
    growth_members=(10, 100),
    growth_rounds=2,
    growth_operations=8,
    replicated=160,
    replicated_slowly=25,
    remote_members={10: 5, 100: 1},
    disk_messages=400,
    disk_rooms=5,
    disk_state_changes=150,
    starts=1,
)
