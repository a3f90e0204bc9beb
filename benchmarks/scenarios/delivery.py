"""One message to many waiting syncs: everybody in a room has a long poll open when somebody sends."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import processes
from benchmarks.figures import Figure, Load, Quantiles, Quantity
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_POLL_MS = 60_000
_MOST_POLLS = 5


class _Poller:
    """A client that syncs again whenever a sync was answered."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._token = ""

    async def begin(self) -> None:
        """The first sync, which tells what has been."""
        self._token = (await self._user.sync())["next_batch"]

    async def wait_for(self, room_id: str, sent: "asyncio.Future[str]") -> float:
        """Poll until the message is there; when that was."""
        for _ in range(_MOST_POLLS):
            answer = await self._user.sync(timeout=_POLL_MS, since=self._token)
            now = time.perf_counter()
            self._token = answer["next_batch"]
            if await sent in _event_ids(answer, room_id):
                return now
        raise AssertionError("a sync that waited was answered without the message")


def _event_ids(answer: Any, room_id: str) -> list[str]:  # noqa: ANN401  # JSON
    room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return [event["event_id"] for event in room.get("timeline", {}).get("events", [])]


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """The cost of a delivered message: what sending costs more while all of them wait, divided by their number."""
    sender, *users = await server.add_users(1 + sizes.pollers)
    room_id = await room_with(sender, users)
    alone = await _send_to_nobody(server, sizes, sender, room_id)
    pollers = [_Poller(user) for user in users]
    await at_once(8, pollers, lambda poller: poller.begin())
    await quiet(server)
    memory_before = processes.resident_megabytes(server.pid)
    memory_waiting = 0.0
    meter, seconds = Meter(server), 0.0
    for number in range(sizes.deliveries):
        async with meter.running():
            sent: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(poller.wait_for(room_id, sent)) for poller in pollers]
                await quiet(server)
                if number == 0:
                    memory_waiting = processes.resident_megabytes(server.pid)
                begin = time.perf_counter()
                sent.set_result(await sender.send(room_id))
            meter.waits += [task.result() - begin for task in waiting]
            seconds += max(task.result() for task in waiting) - begin
    per_connection = 1000 * (memory_waiting - memory_before) / sizes.pollers
    return [
        alone,
        _extra_cost(meter, alone, sizes, seconds),
        Quantity(name="memory per waiting sync", value=per_connection, unit="kB"),
    ]


async def _send_to_nobody(server: Server, sizes: Sizes, sender: User, room_id: str) -> Load:
    for _ in range(sizes.warm_up):
        await sender.send(room_id)
    await quiet(server)
    meter = Meter(server)
    timed = meter.timed(sender.send)
    async with meter.running():
        for _ in range(max(20, 4 * sizes.deliveries)):
            await timed(room_id)
    return meter.load(f"send, {1 + sizes.pollers} members, nobody waits")


def _extra_cost(meter: Meter, alone: Load, sizes: Sizes, seconds: float) -> Load:
    messages, delivered = sizes.deliveries, len(meter.waits)
    note = "" if sizes.pollers == 200 else f"{sizes.pollers} pollers, fewer than in the budget"
    return Load(
        name="deliver to one of 200 waiting syncs",
        operations=delivered,
        server_ms=(1000 * meter.server_seconds - messages * alone.server_ms) / delivered,
        postgres_ms=(1000 * meter.postgres_seconds - messages * alone.postgres_ms) / delivered,
        per_second=delivered / seconds,
        latency=Quantiles.of(meter.waits),
        note=note,
    )
