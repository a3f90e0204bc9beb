"""A Matrix user as the load knows one: a token, and the few requests that scenarios make."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from benchmarks.http_client import HttpClient

_transactions = itertools.count(1)
_words = random.Random(1)
_T = TypeVar("_T")

LETTERS = "abcdefghijklmnopqrstuvwxyz      "


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in."""

    http: HttpClient
    user_id: str
    token: str

    async def request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON of any shape
        """A request of the Client-Server API, below /_matrix/client."""
        return await self.http.request(method, f"/_matrix/client{path}", body, self.token)

    async def arrive(self) -> None:
        """Have the server know this login, as it does that of every client that has been about for a moment."""
        await self.request("GET", "/v3/account/whoami")

    async def create_room(self, **fields: object) -> str:
        """A new public room's ID."""
        answer = await self.request("POST", "/v3/createRoom", {"preset": "public_chat", **fields})
        return str(answer["room_id"])

    async def join(self, room_id: str) -> None:
        """Join a public room."""
        await self.request("POST", f"/v3/join/{quote(room_id, safe='')}", {})

    async def send(self, room_id: str) -> str:
        """Send a text message of 20 to 140 characters."""
        content = {"msgtype": "m.text", "body": some_text()}
        path = f"/v3/rooms/{quote(room_id, safe='')}/send/m.room.message/b{next(_transactions)}"
        return str((await self.request("PUT", path, content))["event_id"])

    async def set_state(self, room_id: str, event_type: str, content: object, state_key: str = "") -> None:
        """Change the room's state."""
        path = f"/v3/rooms/{quote(room_id, safe='')}/state/{event_type}/{quote(state_key, safe='')}"
        await self.request("PUT", path, content)

    async def sync(self, **query: str | int) -> Any:  # noqa: ANN401  # as request
        """One /sync; presence stays out of the measurements."""
        return await self.request("GET", f"/v3/sync?{urlencode({'set_presence': 'offline', 'timeout': 0, **query})}")

    async def messages(self, room_id: str, **query: str | int) -> Any:  # noqa: ANN401  # as request
        """One page of a room's history."""
        return await self.request("GET", f"/v3/rooms/{quote(room_id, safe='')}/messages?{urlencode(query)}")


def some_text() -> str:
    """Letters and spaces, 20 to 140, the same ones in every run."""
    return "".join(_words.choices(LETTERS, k=_words.randint(20, 140)))


async def at_once(workers: int, items: Iterable[_T], work: Callable[[_T], Awaitable[object]]) -> None:
    """Do `work` for every item, `workers` of them at a time; the first failure ends it."""
    iterator = iter(items)

    async def worker() -> None:
        for item in iterator:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())


async def room_with(owner: User, members: Iterable[User], *, joins_at_once: int = 16) -> str:
    """A public room that all of them have joined."""
    room_id = await owner.create_room()
    await at_once(joins_at_once, members, lambda member: member.join(room_id))
    return room_id
