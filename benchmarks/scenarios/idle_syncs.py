"""Many clients that wait for nothing: one process holds a long poll for each of them."""

import asyncio
import time
from collections.abc import Sequence

from benchmarks import processes
from benchmarks.figures import Figure, Quantity
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_IN_A_ROOM = 50
_AT_ONCE = 64
_WAIT_MS = 115_000
"""Less than the client waits for an answer (`http_client.py`)."""
_BEGIN_SECONDS = 45.0
"""All of them must wait by then."""


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Memory and CPU of waiting: what a process that was just started grows by until all of them wait, and what it
    and PostgreSQL then do while nothing happens."""
    users = await server.add_users(sizes.idle_syncs)
    for start in range(0, len(users), _IN_A_ROOM):
        owner, *others = users[start : start + _IN_A_ROOM]
        await room_with(owner, others)
    await server.restart()
    await users[0].arrive()
    await quiet(server)
    tokens: dict[str, str] = {}

    async def begin(user: User) -> None:
        tokens[user.user_id] = (await user.sync())["next_batch"]

    memory_before = processes.resident_megabytes(server.pid)
    await at_once(_AT_ONCE, users, begin)
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(_wait(user, tokens[user.user_id])) for user in users]
        await asyncio.sleep(1)
        await quiet(server)
        if time.monotonic() - started > _BEGIN_SECONDS:
            raise AssertionError("it took too long until all syncs waited")
        memory = processes.resident_megabytes(server.pid) - memory_before
        before = processes.cpu_seconds(server.pid), processes.cpu_seconds(server.cluster.pid)
        begun = time.monotonic()
        await asyncio.sleep(sizes.idle_seconds)
        seconds = time.monotonic() - begun
        after = processes.cpu_seconds(server.pid), processes.cpu_seconds(server.cluster.pid)
        if any(task.done() for task in waiting):
            raise AssertionError("a sync was answered although nothing had happened")
        for task in waiting:
            task.cancel()
    note = "" if len(users) == 10_000 else f"{len(users)} syncs, fewer than in the budget"
    return [
        Quantity(name="memory per idle sync", value=1000 * memory / len(users), unit="kB", note=note),
        Quantity(
            name="idle syncs, server CPU", value=100 * (after[0] - before[0]) / seconds, unit="% of a core", note=note
        ),
        Quantity(
            name="idle syncs, PostgreSQL CPU",
            value=100 * (after[1] - before[1]) / seconds,
            unit="% of a core",
            note=note,
        ),
    ]


async def _wait(user: User, token: str) -> None:
    await user.sync(since=token, timeout=_WAIT_MS)
