"""Whatever happens, and whatever a client of sliding sync looks at, it holds what a first answer would give: no event
is lost, none comes twice, whichever process it asks and whatever answers are lost on the way.
"""

import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.client import Client, Server, quote, unique
from tests.homeserver.rooms import history
from tests.homeserver.sliding import Sliding
from tests.homeserver.sliding_model import Model, assert_equal
from tests.homeserver.stories import Story
from tests.homeserver.syncs import own
from tests.servers import running

pytestmark = pytest.mark.one_process("each of its two servers is one")

ROUNDS = 12
SEEDS = range(1, 1 + int(os.environ.get("HEARTH_SLIDING_SEEDS", "1")))

STATES: list[list[list[str]]] = [
    [],
    [["m.room.name", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]],
    [["m.room.topic", ""], ["org.example.state", "*"]],
    [["*", "*"]],
    [["*", "*"], ["m.room.member", "$LAZY"]],
    [["m.room.member", "*"]],
]
FILTERS: list[dict[str, Any]] = [
    *[{}] * 4,
    {"is_dm": True},
    {"is_dm": False},
    {"is_encrypted": False},
    {"is_invited": False},
    {"not_room_types": ["m.space"]},
    {"tags": ["u.1"]},
    {"not_tags": ["u.0", "u.2"]},
]


class LivelyStory(Story):
    """A story in which people type, too, and rooms become direct chats."""

    received: list[str]

    def actions(self) -> list[Callable[[Client, str], Awaitable[Any]]]:
        """All but ignoring others, which changes what is shown of the past."""
        known = [action for action in super().actions() if action not in (self.ignore, self.to_device)]
        return [*known, self.type, self.direct, self.avatar, *[self.message_first_user] * 2]

    async def type(self, user: Client, room_id: str) -> None:
        """Begin or end to type."""
        body = self.random.choice([{"typing": True, "timeout": 120_000}, {"typing": False}])
        await user.put(f"/v3/rooms/{quote(room_id)}/typing/{quote(user.user_id)}", body)

    async def direct(self, user: Client, room_id: str) -> None:
        """A room becomes the only direct chat."""
        other = self.random.choice(self.users).user_id
        await user.put(own(user, "account_data/m.direct"), {other: [room_id]} if self.random.random() < 0.7 else {})

    async def avatar(self, user: Client, room_id: str) -> None:
        """A room gets an avatar, or has none."""
        content = {"url": f"mxc://hearth.test/{unique('a')}"} if self.random.random() < 0.7 else {}
        await user.put(f"/v3/rooms/{quote(room_id)}/state/m.room.avatar/", content)

    async def message_first_user(self, user: Client, _room_id: str) -> None:
        """The second user, who is watched, gets a message on all devices."""
        text = unique()
        watched = self.users[1].user_id
        body = {"messages": {watched: {"*": {"text": text}}}}
        answer = await user.put(f"/v3/sendToDevice/org.example/{unique('t')}", body)
        assert answer.status == 200
        self.received.append(text)


class Watcher:
    """A client that looks at this and that, and loses answers."""

    def __init__(self, seed: int, client: Client, urls: Sequence[str], *, is_accepted: bool) -> None:
        self.random = random.Random(seed)
        self.urls = urls
        self.model = Model(client.user_id)
        self.sliding = Sliding(client, {"conn_id": "watch"}, is_accepted=is_accepted)
        self.subscribable: list[str] = []
        self.look_elsewhere()

    def look_elsewhere(self) -> None:
        """Change lists and subscriptions."""
        limits = (1, 1, 2, 5, 20)
        lists = {}
        for name in ("a", "b")[: self.random.choice((1, 1, 2))]:
            last = self.random.choice((0, 1, 2, 20, 20))
            given: dict[str, Any] = self._config(self.random.choice(limits))
            given |= {"range": [0, last]} if self.sliding.is_accepted else {"ranges": [[0, last]]}
            filters = dict(self.random.choice(FILTERS))
            if "is_invited" in filters and not self.sliding.is_accepted:
                filters = {"is_invite": filters["is_invited"]}
            lists[name] = given | {"filters": filters}
        subscribed = self.random.sample(self.subscribable, min(len(self.subscribable), self.random.choice((0, 1, 2))))
        enabled: dict[str, Any] = {"enabled": True}
        names = ["account_data", "receipts", "typing"]
        self.extensions = {name: enabled for name in names if self.random.random() < 0.8}
        self.sliding.body = {
            "conn_id": "watch",
            "lists": lists,
            "room_subscriptions": {room_id: self._config(self.random.choice(limits)) for room_id in subscribed},
        }

    def _config(self, limit: int) -> dict[str, Any]:
        pairs = self.random.choice(STATES)
        required: Any = pairs
        if self.sliding.is_accepted:
            include = [
                {
                    name: text.replace("$ME", self.model.user_id)
                    for name, text in zip(("type", "state_key"), pair, strict=True)
                    if text != "*"
                }
                for pair in pairs
                if pair[1] != "$LAZY"
            ]
            required = {"include": include, "lazy_members": ["m.room.member", "$LAZY"] in pairs}
        return {"timeline_limit": limit, "required_state": required}

    async def ask(self) -> Any:
        """One answer, of one of the processes; some are lost, and asked for again."""
        self.sliding.client.base_url = self.random.choice(self.urls)
        to_device: dict[str, Any] = {"enabled": True, "limit": self.random.choice((1, 100))}
        if self.model.to_device_since is not None:
            to_device["since"] = self.model.to_device_since
        extensions = {**self.extensions, "to_device": to_device, "e2ee": {"enabled": True}}
        while self.random.random() < 0.3:
            lost = await self.sliding.ask(extensions=extensions)
            assert lost.status == 200, lost.body
            self.sliding.client.base_url = self.random.choice(self.urls)
        answer = await self.sliding.next(extensions=extensions)
        self.model.apply(answer)
        return answer

    async def settle(self) -> None:
        """Ask until nothing comes."""
        for _ in range(50):
            answer = await self.ask()
            if not answer["rooms"] and not answer["extensions"]["to_device"]["events"]:
                return
        raise AssertionError("there is always something new")

    async def check(self) -> None:
        """Hold what it has to a first answer, and its timelines to the rooms' histories."""
        fresh = Model(self.model.user_id)
        first = Sliding(
            self.sliding.client, {**self.sliding.body, "conn_id": "fresh"}, is_accepted=self.sliding.is_accepted
        )
        fresh.apply(await first.next())
        assert_equal(self.model, fresh, self.extensions)
        for room_id in fresh.rooms:
            held = self.model.rooms[room_id].timeline
            if self.model.rooms[room_id].membership == "join" and held:
                events = await history(self.sliding.client, room_id, dir="b", limit=100)
                past = [event["event_id"] for event in events[: len(held)]][::-1]
                assert past == held, (room_id, past, held, events)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_accepted", [False, True])
async def test_who_follows_holds_what_a_first_answer_gives(conninfo: str, seed: int, is_accepted: bool) -> None:
    async with running(conninfo, presence=False) as one, running(conninfo, presence=False) as other:
        await follow([one, other], seed, is_accepted=is_accepted)


async def follow(servers: Sequence[Server], seed: int, *, is_accepted: bool) -> None:
    """Tell a story through all these processes, and watch it through all of them."""
    users = [await servers[0].register(name) for name in ("alice", "bob", "carol", "dave")]
    rooms = []
    for number in range(6):
        body = {"preset": "public_chat" if number % 3 else "private_chat", **({"name": "room"} if number % 2 else {})}
        rooms.append((await users[0].ok("POST", "/v3/createRoom", body))["room_id"])
    urls = [server.base_url for server in servers]
    story = LivelyStory(seed, users, rooms)
    story.received = []
    watching = Client(urls[0], users[1].session, users[1].user_id, users[1].device_id, users[1].access_token)
    watching.is_held_to_specification = False
    watcher = Watcher(seed, watching, urls, is_accepted=is_accepted)
    for _ in range(ROUNDS):
        for _ in range(story.random.choice((1, 3, 10, 25))):
            url = story.random.choice(urls)
            for user in users:
                user.base_url = url
            await story.step()
            if story.random.random() < 0.1:
                await watcher.ask()
        if watcher.random.random() < 0.5:
            watcher.subscribable = rooms
            watcher.look_elsewhere()
        for server in servers:  # what one was told a moment ago, the other may not have heard of
            await server.application.tail.catch_up()
        await watcher.settle()
        await watcher.check()
    assert [content["text"] for content in watcher.model.to_device] == story.received
