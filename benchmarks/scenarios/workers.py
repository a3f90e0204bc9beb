"""What another worker brings: the same load on one worker and on two."""

import time
from collections.abc import Sequence

from benchmarks.figures import Figure, Load, Quantity
from benchmarks.hearth import Hearth
from benchmarks.matrix import User, at_once
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_SENDERS = 256
"""Enough for both to be busy: who has to wait for the other is woken more often, and that costs, too."""
_ROUNDS = 3
"""One worker and two in turn, so that both have the same of the machine's moods."""


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """256 users send, each in a room of their own.

    As many messages as a machine carries that has a core for each worker, and PostgreSQL on the same cores: the CPU
    time of all of these for a message says so, whatever the load's own process takes. What arrived in a second is
    noted beside it, with that process on the same two cores.
    """
    if not isinstance(server, Hearth):
        return []
    users = await server.add_users(_SENDERS)
    rooms = {user.token: await user.create_room() for user in users}

    async def send(user: User) -> None:
        await user.send(rooms[user.token])

    meters = {1: Meter(server), 2: Meter(server)}
    own = {1: 0.0, 2: 0.0}
    messages = max(1, 2 * sizes.sends_in_64_rooms // _SENDERS // _ROUNDS)
    try:
        for _ in range(_ROUNDS):
            for workers, meter in meters.items():
                server.workers = workers
                await server.restart()
                timed = meter.timed(send)
                for _ in range(max(5, sizes.warm_up // _SENDERS)):
                    await at_once(_SENDERS, users, send)
                await quiet(server)
                before = time.process_time()
                async with meter.running():
                    await at_once(_SENDERS, [user for _ in range(messages) for user in users], timed)
                own[workers] += time.process_time() - before
    finally:
        server.workers = 0  # the next scenario runs on one process again
    loads = {
        workers: meter.load(
            f"send, 256 rooms, {workers} worker{'s' if workers > 1 else ''}",
            note=f"the load's own process: {1000 * own[workers] / len(meter.waits):.3f} ms",
        )
        for workers, meter in meters.items()
    }
    carried = {workers: workers * 1000 / _cost(load) for workers, load in loads.items()}
    return [
        *loads.values(),
        *(
            Quantity(name=f"messages carried by {workers} on as many cores", value=value, unit="a second")
            for workers, value in carried.items()
        ),
        Quantity(name="two workers by one", value=carried[2] / carried[1], unit="times"),
    ]


def _cost(load: Load) -> float:
    return load.server_ms + load.postgres_ms
