"""What the parts of the server count for whoever watches it: plain numbers, which cost next to nothing.

A part's `figures()` has them by name; `homeserver/metrics.py` reads it every few seconds and tells Prometheus.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for how long something takes."""
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Bounds for how many things come together."""


class Tally:
    """How often something was how large: a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How often it was at most as large as each bound and larger than the one before; the last: larger than all."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """It was so large once more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Lookups:
    """How often a cache was asked, and how often it knew."""

    __slots__ = ("hits", "misses", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = 0
        self.misses = 0

    def note(self, *, is_hit: bool) -> None:
        """It was asked."""
        if is_hit:
            self.hits += 1
        else:
            self.misses += 1

    def figures(self, entries: int) -> "Figures":
        """Of the cache, which has so many entries."""
        return {
            "cache_entries": {self.name: entries},
            "cache_hits_total": {self.name: self.hits},
            "cache_misses_total": {self.name: self.misses},
        }


Figure = float | Tally
Figures = Mapping[str, Figure | Mapping[str, Figure]]
"""By name, and those that have a label by its value besides."""
Reading = Callable[[], Figures]


class Counting(Protocol):
    """A part of the server that counts."""

    @property
    def figures(self) -> Reading:
        """What it counts, as it is now."""
