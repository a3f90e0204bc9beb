"""Whether cost grows with a room: send, state change and join in rooms of few and of very many members."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Load, Quantity
from benchmarks.matrix import User, at_once, room_with, some_text
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_SMALL = 10
_JUDGED = 20_000
_JOINS_AT_ONCE = 64


@dataclass(slots=True)
class _Place:
    """A room of a certain size, and what operations in it have cost."""

    owner: User
    room_id: str
    members: Sequence[User]
    sends: Meter
    state_changes: Meter
    joins: Meter

    @property
    def size(self) -> int:
        """How many had joined when it was made."""
        return len(self.members)


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Rounds, each over all rooms in turn, so that whatever else happens on the machine meets all of them alike."""
    places = [await _make(server, count) for count in sizes.growth_members]
    for _ in range(sizes.growth_rounds):
        for place in places:
            await _send(server, sizes, place)
        for place in places:
            await _change_state(server, sizes, place)
        for place in places:
            await _join(server, sizes, place)
    figures: list[Figure] = []
    for name, meters in (
        ("send", [place.sends for place in places]),
        ("state change", [place.state_changes for place in places]),
        ("join", [place.joins for place in places]),
    ):
        loads = [meter.load(f"{name}, {place.size:,} members") for meter, place in zip(meters, places, strict=True)]
        figures += [*loads, _growth(name, loads, places)]
    return figures


async def _make(server: Server, count: int) -> _Place:
    members = await server.add_users(count)
    room_id = await room_with(members[0], members[1:], joins_at_once=_JOINS_AT_ONCE if count > 100 else 4)
    return _Place(members[0], room_id, members, Meter(server), Meter(server), Meter(server))


def _growth(name: str, loads: Sequence[Load], places: Sequence[_Place]) -> Figure:
    costs = [load.server_ms + load.postgres_ms for load in loads]
    note = f"server and PostgreSQL, {places[0].size} to {places[-1].size:,} members"
    if places[-1].size < _JUDGED:
        note += ", fewer than in the budget"
    return Quantity(name=f"growth of {name}", value=costs[-1] / costs[0], unit="times", note=note)


async def _send(server: Server, sizes: Sizes, place: _Place) -> None:
    sender = place.members[-1]
    for _ in range(3):
        await sender.send(place.room_id)
    await quiet(server)
    timed = place.sends.timed(sender.send)
    async with place.sends.running():
        for _ in range(sizes.growth_operations):
            await timed(place.room_id)


async def _change_state(server: Server, sizes: Sizes, place: _Place) -> None:
    async def change(topic: str) -> None:
        await place.owner.set_state(place.room_id, "m.room.topic", {"topic": topic})

    for _ in range(3):
        await change(some_text())
    await quiet(server)
    timed = place.state_changes.timed(change)
    async with place.state_changes.running():
        for _ in range(sizes.growth_operations):
            await timed(some_text())


async def _join(server: Server, sizes: Sizes, place: _Place) -> None:
    """In a small room, ten join, and the next ten join another one of its size; so it stays small."""
    joiners = await server.add_users(sizes.growth_operations)
    await at_once(4, joiners, User.arrive)
    room_ids = [place.room_id]
    if place.size <= _SMALL:
        room_ids = [
            await room_with(place.owner, place.members[1:], joins_at_once=4) for _ in range((len(joiners) + 9) // 10)
        ]
    await quiet(server)

    async def join(number: int) -> None:
        await joiners[number].join(room_ids[number // 10 % len(room_ids)])

    timed = place.joins.timed(join)
    async with place.joins.running():
        await at_once(1, range(len(joiners)), timed)
