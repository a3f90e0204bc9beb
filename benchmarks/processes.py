"""CPU time and memory of a tree of processes, from outside. Linux only."""

import contextlib
import time

import psutil

MEGABYTE = 1_000_000


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants so far, also of those that have ended.

    Exact to the nanosecond for what runs, to the clock tick for the sum of what each of them has waited for.
    """
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            times = process.cpu_times()
            total += time.clock_gettime(_cpu_clock(process.pid)) + times.children_user + times.children_system
    return total


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / MEGABYTE


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _cpu_clock(pid: int) -> int:
    # What clock_getcpuclockid(3) computes: all threads of another process, also those that have ended.
    return (~pid << 3) | 2
