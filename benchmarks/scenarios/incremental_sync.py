"""Incremental sync that has nothing to tell, while the server's stream moves on elsewhere."""

from collections.abc import Sequence

from benchmarks.figures import Figure
from benchmarks.matrix import User, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_ROOMS = 20
_BATCH = 100


class _Reader:
    """A client that polls without waiting."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._token = ""

    async def begin(self) -> None:
        """The first sync, and others until nothing is new."""
        answer = await self._user.sync()
        for _ in range(3):
            answer = await self._user.sync(since=answer["next_batch"])
        self._token = answer["next_batch"]

    async def sync(self, _number: int) -> None:
        """One more, from the last one's token."""
        answer = await self._user.sync(since=self._token)
        if answer.get("rooms", {}).get("join"):
            raise AssertionError("something was new")
        self._token = answer["next_batch"]


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Tokens move: between batches, somebody sends where the reader is not."""
    user, other = await server.add_users(2)
    for _ in range(_ROOMS):
        await user.send(await room_with(user, [other]))
    elsewhere = await other.create_room()
    reader = _Reader(user)
    await reader.begin()
    meter = Meter(server)
    timed = meter.timed(reader.sync)
    for _ in range(max(1, sizes.empty_syncs // _BATCH)):
        await other.send(elsewhere)
        await reader.sync(0)
        await quiet(server)
        async with meter.running(settles=False):
            for number in range(_BATCH):
                await timed(number)
    return [meter.load("incremental sync, nothing new")]
