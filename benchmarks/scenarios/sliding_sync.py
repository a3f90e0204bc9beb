"""Sliding sync as Element X asks: the first rooms of an account in many, and then nothing new."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from benchmarks.figures import Figure
from benchmarks.matrix import User, at_once
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_PATH = "/unstable/org.matrix.simplified_msc3575/sync"
_WINDOW = 20
_STATE = [
    *(["m.room.name", ""], ["m.room.encryption", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]),
    *(["m.room.topic", ""], ["m.room.avatar", ""], ["m.room.canonical_alias", ""], ["m.room.power_levels", ""]),
    *(["m.room.join_rules", ""], ["m.room.tombstone", ""], ["m.room.create", ""]),
    *(["m.room.history_visibility", ""], ["m.space.child", "*"], ["m.space.parent", "*"]),
]
_BODY = {
    "conn_id": "room-list",
    "lists": {"all_rooms": {"ranges": [[0, _WINDOW - 1]], "timeline_limit": 1, "required_state": _STATE}},
    "extensions": {name: {"enabled": True} for name in ("account_data", "receipts", "typing")},
}
_BATCH = 100
_PATIENCE = 12


class _Reader:
    """A client with one connection."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._pos = ""

    async def first(self, _number: int = 0) -> None:
        """The first answer."""
        answer = await self._ask({})
        if len(answer["rooms"]) != _WINDOW or answer["lists"]["all_rooms"]["count"] <= _WINDOW:
            raise AssertionError("the answer does not hold the first of more rooms")

    async def next(self, _number: int = 0) -> None:
        """An answer that holds nothing."""
        if (await self._ask({"pos": self._pos}))["rooms"]:
            raise AssertionError("something was new")

    async def _ask(self, place: dict[str, str]) -> Any:  # noqa: ANN401  # JSON
        query = urlencode({"set_presence": "offline", "timeout": 0, **place})
        answer = await self._user.request("POST", f"{_PATH}?{query}", _BODY)
        self._pos = answer["pos"]
        return answer


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """First answers, one after the other, of users who have not synced before, on a server that others sync from; then
    empty ones."""
    users = await server.add_users(sizes.sliding_members + 1)
    *users, stranger = users
    await _fill_rooms(users, sizes)
    for _ in range(_PATIENCE):  # followers of the log have all those joins to go through
        await quiet(server)
    for number in range(sizes.warm_up):
        await _Reader(users[number % (len(users) // 2)]).first()
    first = Meter(server)
    newcomers = users[len(users) // 2 :]
    for user in newcomers:
        await user.arrive()
    await quiet(server)
    async with first.running(settles=False):  # what else goes on in the background is not the answer's
        for user in newcomers:
            await first.timed(_Reader(user).first)(0)
    elsewhere = await stranger.create_room()
    reader = _Reader(users[0])
    await reader.first()
    for _ in range(3):
        await reader.next()
    empty = Meter(server)
    timed = empty.timed(reader.next)
    for _ in range(max(1, sizes.empty_syncs // _BATCH)):
        await stranger.send(elsewhere)
        await reader.next()
        await quiet(server)
        async with empty.running(settles=False):
            for number in range(_BATCH):
                await timed(number)
    return [first.load("sliding sync, first 20 rooms of 200"), empty.load("sliding sync, nothing new")]


async def _fill_rooms(users: Sequence[User], sizes: Sizes) -> None:
    """Everybody is in every room, and each has a few messages at its end."""

    async def fill(number: int) -> None:
        owner = users[number % len(users)]
        room_id = await owner.create_room(name=f"Room {number}", topic="What this room is for")
        for user in users:
            if user is not owner:
                await user.join(room_id)
        for message in range(3):
            await users[(number + message) % len(users)].send(room_id)

    await at_once(16, range(sizes.sliding_rooms), fill)
