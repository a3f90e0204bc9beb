"""Bounds of CPU time that mean the same on a slow machine and on a busy one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = 300_000
USUAL_SECONDS = 0.013
"""What so many steps of Python take on the machine that bounds are made for."""


def slowness() -> float:
    """How many times longer than usual Python takes here and now; 1 where it takes less."""
    started, total = time.thread_time(), 0
    for number in range(STEPS):
        total += number
    return max(1.0, (time.thread_time() - started) / USUAL_SECONDS)


@contextmanager
def cpu_within(seconds: float) -> Iterator[None]:
    """The block takes no more CPU time than this, where Python takes as long as usual."""
    before = slowness()
    started = time.process_time()
    yield
    taken = time.process_time() - started
    assert taken < seconds * max(before, slowness())
