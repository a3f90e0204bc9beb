"""How long a batch holds the log: the one thing of a server that cannot be doubled."""

import asyncio
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.figures import Figure, Quantity
from benchmarks.hearth import Hearth
from benchmarks.matrix import User, at_once
from benchmarks.measuring import quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_MANY = 64
_METRICS_SECONDS = 3.0
"""Its figures are gathered every two."""


@dataclass(frozen=True, slots=True)
class _Batches:
    count: float
    entries: float
    seconds: float

    def since(self, before: "_Batches") -> "_Batches":
        return _Batches(self.count - before.count, self.entries - before.entries, self.seconds - before.seconds)


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """From batches of one message and from large ones: what a batch takes, and what each message more."""
    if not isinstance(server, Hearth):
        return []
    server.shows_metrics = True
    await server.restart()
    users = await server.add_users(_MANY)
    rooms = {user.token: await user.create_room() for user in users}

    async def send(user: User) -> None:
        await user.send(rooms[user.token])

    found = []
    for senders, messages in ((1, sizes.sends[1]), (_MANY, sizes.sends[_MANY])):
        await at_once(senders, users[:senders], send)
        before = await _batches(server)
        items = [user for _ in range(messages // senders) for user in users[:senders]]
        await at_once(senders, items, send)
        await quiet(server)
        found.append((await _batches(server)).since(before))
    server.shows_metrics = False
    one, many = found
    alone, size = 1000 * one.seconds / one.count, many.entries / many.count
    each = (1000 * many.seconds / many.count - alone) / max(1.0, size - one.entries / one.count)
    return [
        Quantity(name="a batch of the log with one message", value=alone, unit="ms"),
        Quantity(name="entries of a batch, 64 senders", value=size, unit=""),
        Quantity(name="each message more in a batch", value=each, unit="ms"),
    ]


async def _batches(server: Server) -> _Batches:
    await asyncio.sleep(_METRICS_SECONDS)
    text = await asyncio.to_thread(_scrape, f"http://127.0.0.1:{server.port}/metrics")
    sums = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return _Batches(
        sums["hearth_log_batch_seconds_count"],
        sums["hearth_log_batch_entries_sum"],
        sums["hearth_log_batch_seconds_sum"],
    )


def _scrape(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  # this machine's
        text: str = answer.read().decode()
        return text
