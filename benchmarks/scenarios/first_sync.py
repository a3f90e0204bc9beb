"""First sync of an account in many rooms: what a newly logged in client asks for."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.figures import Figure
from benchmarks.matrix import User, at_once
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_TIMELINE = {"limit": 10}
_FILTERS = {
    "lazy members": {"room": {"state": {"lazy_load_members": True}, "timeline": _TIMELINE}},
    "all members": {"room": {"state": {"lazy_load_members": False}, "timeline": _TIMELINE}},
}
_WARM_SYNCS = 5

_Sync = Callable[[User], Awaitable[None]]


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Cold: the first one after a restart, on a server that has answered another account's empty one before.

    Warm: other accounts in the same rooms afterwards.
    """
    *users, stranger = await server.add_users(sizes.sync_members + 1)
    await _fill_rooms(users, sizes)
    note = "" if sizes.sync_rooms == 200 else f"{sizes.sync_rooms} rooms, fewer than in the budget"
    figures: list[Figure] = []
    for name, wanted in _FILTERS.items():

        async def sync(user: User, wanted: object = wanted) -> None:
            _check(await user.sync(filter=json.dumps(wanted)), sizes)

        cold = await _measure_cold(server, sizes, users[0], stranger, sync)
        warm = await _measure_warm(server, users[1 : 1 + _WARM_SYNCS], sync)
        figures += [cold.load(f"first sync, {name}, cold", note), warm.load(f"first sync, {name}, warm", note)]
    return figures


async def _fill_rooms(users: Sequence[User], sizes: Sizes) -> None:
    """Everybody is in every room, and each has the same number of messages at its end."""

    async def fill(number: int) -> None:
        owner = users[number % len(users)]
        room_id = await owner.create_room(name=f"Room {number}")
        for user in users:
            if user is not owner:
                await user.join(room_id)
        for message in range(sizes.sync_messages):
            await users[(number + message) % len(users)].send(room_id)

    await at_once(16, range(sizes.sync_rooms), fill)


def _check(answer: Any, sizes: Sizes) -> None:  # noqa: ANN401  # JSON
    joined = answer["rooms"]["join"]
    if len(joined) != sizes.sync_rooms or any(len(room["timeline"]["events"]) != 10 for room in joined.values()):
        raise AssertionError("the sync does not hold every room with ten events")


async def _measure_cold(server: Server, sizes: Sizes, user: User, stranger: User, sync: _Sync) -> Meter:
    meter = Meter(server)
    timed = meter.timed(sync)
    for _ in range(sizes.cold_syncs):
        await server.restart()
        await stranger.sync()
        await quiet(server)
        async with meter.running():
            await timed(user)
    return meter


async def _measure_warm(server: Server, users: Sequence[User], sync: _Sync) -> Meter:
    meter = Meter(server)
    timed = meter.timed(sync)
    for user in users:
        await quiet(server)
        async with meter.running():
            await timed(user)
    return meter
