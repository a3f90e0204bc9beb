"""Sending messages: 1, 8 and 64 senders in one room, and 64 senders in a room each."""

from collections.abc import Sequence

from benchmarks.figures import Figure
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_MANY = 64


async def run_one(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """One message after the other."""
    return [await _send_in_one_room(server, sizes, 1)]


async def run_eight(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Eight users, each sends its next message when the last one is answered."""
    return [await _send_in_one_room(server, sizes, 8)]


async def run_many(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """64 users, likewise."""
    return [await _send_in_one_room(server, sizes, _MANY)]


async def run_rooms(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """64 users, each in a room of its own."""
    users = await server.add_users(_MANY)
    rooms: dict[str, str] = {}

    async def create(user: User) -> None:
        rooms[user.token] = await user.create_room()

    await at_once(8, users, create)
    places = [(user, rooms[user.token]) for user in users]
    return [await _send(server, sizes, "send, 64 senders, 64 rooms", places, sizes.sends_in_64_rooms)]


async def _send_in_one_room(server: Server, sizes: Sizes, senders: int) -> Figure:
    users = await server.add_users(senders)
    room_id = await room_with(users[0], users[1:])
    name = "send, 1 sender" if senders == 1 else f"send, {senders} senders"
    return await _send(server, sizes, name, [(user, room_id) for user in users], sizes.sends[senders])


async def _send(server: Server, sizes: Sizes, name: str, places: Sequence[tuple[User, str]], messages: int) -> Figure:
    """Every sender has one message under way at a time."""

    async def send(place: tuple[User, str]) -> None:
        user, room_id = place
        await user.send(room_id)

    async def send_all(place: tuple[User, str]) -> None:
        for _ in range(max(1, messages // len(places))):
            await timed(place)

    meter = Meter(server)
    timed = meter.timed(send)
    for _ in range(max(1, sizes.warm_up // len(places))):
        await at_once(len(places), places, send)
    await quiet(server)
    async with meter.running():
        await at_once(len(places), places, send_all)
    return meter.load(name)
