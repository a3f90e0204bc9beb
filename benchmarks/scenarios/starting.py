"""Starting on a database that is ready, and doing nothing."""

import asyncio
from collections.abc import Sequence
from statistics import median

from benchmarks import processes
from benchmarks.figures import Figure, Quantity
from benchmarks.server import Server
from benchmarks.sizes import Sizes


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """The median of some starts; memory a second after the last."""
    starts = [await server.restart() for _ in range(sizes.starts)]
    await asyncio.sleep(1)
    return [
        Quantity(name="start, server CPU", value=median(each.cpu_seconds for each in starts), unit="CPU s"),
        Quantity(
            name="start, PostgreSQL CPU", value=median(each.postgres_cpu_seconds for each in starts), unit="CPU s"
        ),
        Quantity(name="start until it answers", value=median(each.seconds for each in starts), unit="s"),
        Quantity(name="memory, idle", value=processes.resident_megabytes(server.pid), unit="MB"),
    ]
