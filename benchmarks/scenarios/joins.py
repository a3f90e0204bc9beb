"""Joining a public room of this server, of a few dozen members."""

from collections.abc import Sequence

from benchmarks.figures import Figure
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_MEMBERS = 20
_JOINS_A_ROOM = 40
_AT_ONCE = 8


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """One after the other, then eight at once; a new room after every 40."""
    return [
        await _join(server, sizes, 1, "local join"),
        await _join(server, sizes, _AT_ONCE, f"local join, {_AT_ONCE} at once"),
    ]


async def _join(server: Server, sizes: Sizes, at_a_time: int, name: str) -> Figure:
    members = await server.add_users(_MEMBERS)
    joiners = await server.add_users(sizes.joins + sizes.warm_up // 5)
    await at_once(4, joiners, User.arrive)
    meter = Meter(server)
    warm_up, joiners = joiners[: sizes.warm_up // 5], joiners[sizes.warm_up // 5 :]
    room_id = await room_with(members[0], [*members[1:], *warm_up])
    for first in range(0, len(joiners), _JOINS_A_ROOM):
        room_id = await room_with(members[0], members[1:])

        async def join(user: User, room_id: str = room_id) -> None:
            await user.join(room_id)

        timed = meter.timed(join)
        await quiet(server)
        async with meter.running():
            await at_once(at_a_time, joiners[first : first + _JOINS_A_ROOM], timed)
    return meter.load(name)
