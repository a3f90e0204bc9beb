"""Bytes on disk, tables and indexes: messages over many rooms, and state changes in one."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.figures import Figure, Quantity
from benchmarks.matrix import User, at_once, some_text
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_MEMBERS = 50
_AT_ONCE = 64
_LARGEST = 12
"""Tables and indexes that are reported by name."""


async def run_messages(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Texts of 20 to 140 characters, by several members of each room in turn."""
    users = await server.add_users(_AT_ONCE)
    rooms: dict[int, str] = {}

    async def create(number: int) -> None:
        owner = users[number % len(users)]
        rooms[number] = await owner.create_room()
        for step in range(1, 4):
            await users[(number + step) % len(users)].join(rooms[number])

    await at_once(8, range(sizes.disk_rooms), create)

    async def send(number: int) -> None:
        place = number % sizes.disk_rooms
        speaker = number // sizes.disk_rooms % 4
        await users[(place + speaker) % len(users)].send(rooms[place])

    return await _fill(server, sizes.disk_messages, send, "message")


async def run_state(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Half of them the room's topic, a quarter members' own member events, a quarter each a key of its own."""
    users = await server.add_users(_MEMBERS)
    room_id = await users[0].create_room()
    await at_once(4, users[1:], lambda user: user.join(room_id))

    async def change(number: int) -> None:
        if number % 4 == 1:
            user: User = users[1 + number // 4 % (_MEMBERS - 1)]
            content = {"membership": "join", "displayname": f"{some_text()[:20]} {number}"}
            await user.set_state(room_id, "m.room.member", content, user.user_id)
        elif number % 4 == 3:
            await users[0].set_state(room_id, "org.example.item", {"text": some_text()}, f"item {number}")
        else:
            await users[0].set_state(room_id, "m.room.topic", {"topic": f"{some_text()} {number}"})

    return await _fill(server, sizes.disk_state_changes, change, "state change")


async def _fill(server: Server, count: int, work: Callable[[int], Awaitable[None]], what: str) -> Sequence[Figure]:
    cluster, database = server.cluster, server.database
    await quiet(server)
    before, whole_before = cluster.relation_bytes(database), cluster.database_bytes(database)
    meter = Meter(server)
    async with meter.running():
        await at_once(_AT_ONCE, range(count), meter.timed(work))
    await quiet(server)
    after, whole = cluster.relation_bytes(database), cluster.database_bytes(database) - whole_before
    grown = Counter({name: size - before.get(name, 0) for name, size in after.items()})
    note = f"{count:,} of them"
    return [
        meter.load(f"{what}s for the disk, {_AT_ONCE} at once"),
        Quantity(name=f"disk, per {what}", value=grown.total() / count, unit="B", note=f"tables and indexes; {note}"),
        Quantity(name=f"disk, whole database, per {what}", value=whole / count, unit="B", note=note),
        *(
            Quantity(name=f"disk, {name}, per {what}", value=size / count, unit="B")
            for name, size in grown.most_common(_LARGEST)
        ),
    ]
