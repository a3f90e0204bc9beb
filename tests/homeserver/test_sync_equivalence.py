"""A sync answers the same from the memory of a running process and from the database by a fresh one."""

import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.client import Client, Server, quote, unique
from tests.homeserver.syncs import own, sync
from tests.servers import running

STEPS = 90
SEEDS = range(14, 14 + int(os.environ.get("HEARTH_SYNC_SEEDS", "3")))

FILTERS: list[dict[str, Any]] = [
    {},
    {"filter": {"room": {"timeline": {"limit": 2, "unread_thread_notifications": True}}}},
    {"use_state_after": "true", "filter": {"room": {"timeline": {"limit": 3}}}},
    {"filter": {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}},
    {"full_state": "true"},
    {"filter": {"room": {"timeline": {"types": ["m.room.message"], "limit": 1}, "ephemeral": {"types": []}}}},
]


class Story:
    """Users who do this and that, at random, in a few rooms."""

    def __init__(self, seed: int, users: list[Client], rooms: list[str]) -> None:
        self.random = random.Random(seed)  # the same story in each run
        self.users = users
        self.rooms = rooms
        self.sent: dict[str, list[str]] = {room_id: [] for room_id in rooms}

    async def step(self) -> None:
        """Something happens; what is not allowed does not."""
        actions: list[Callable[[Client, str], Awaitable[Any]]] = [
            *[self.talk] * 6,
            *[self.set_state] * 3,
            *[self.join] * 5,
            *[self.member] * 3,
            *[self.receipt] * 3,
            self.thread,
            self.redact,
            self.data,
            self.tag,
            self.rename,
            self.to_device,
            self.keys,
            self.ignore,
        ]
        await self.random.choice(actions)(self.random.choice(self.users), self.random.choice(self.rooms))

    async def talk(self, user: Client, room_id: str) -> None:
        content: dict[str, Any] = {"msgtype": "m.text", "body": "hello"}
        if self.random.random() < 0.3:
            content["m.mentions"] = {"user_ids": [self.random.choice(self.users).user_id]}
        await self._send(user, room_id, content)

    async def thread(self, user: Client, room_id: str) -> None:
        if self.sent[room_id]:
            root = self.random.choice(self.sent[room_id])
            content = {"msgtype": "m.text", "body": "reply", "m.relates_to": {"rel_type": "m.thread", "event_id": root}}
            await self._send(user, room_id, content)

    async def _send(self, user: Client, room_id: str, content: Any) -> None:
        answer = await user.put(f"/v3/rooms/{quote(room_id)}/send/m.room.message/{unique('t')}", content)
        if answer.status == 200:
            self.sent[room_id].append(answer.body["event_id"])

    async def set_state(self, user: Client, room_id: str) -> None:
        event_type = self.random.choice(["m.room.name", "m.room.topic", "org.example.state"])
        content = {"name": unique("name"), "topic": unique("topic")}
        await user.put(f"/v3/rooms/{quote(room_id)}/state/{event_type}/", content)

    async def join(self, user: Client, room_id: str) -> None:
        await user.post(f"/v3/join/{quote(room_id)}")

    async def member(self, user: Client, room_id: str) -> None:
        action = self.random.choice(["leave", "invite", "invite", "kick", "ban", "unban", "forget"])
        target = self.random.choice(self.users)
        body = {} if action in ("leave", "forget") else {"user_id": target.user_id}
        actor = self.users[0] if action not in ("leave", "forget") else user
        if actor.user_id == self.users[0].user_id and action == "leave":
            return  # somebody has to be left who may do things
        await actor.post(f"/v3/rooms/{quote(room_id)}/{action}", body)

    async def receipt(self, user: Client, room_id: str) -> None:
        if self.sent[room_id]:
            event_id = self.random.choice(self.sent[room_id][-5:])
            kind = self.random.choice(["m.read", "m.read.private"])
            body = self.random.choice([{}, {}, {"thread_id": "main"}])
            await user.post(f"/v3/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}", body)

    async def redact(self, user: Client, room_id: str) -> None:
        if self.sent[room_id]:
            event_id = self.random.choice(self.sent[room_id])
            await user.put(f"/v3/rooms/{quote(room_id)}/redact/{quote(event_id)}/{unique('t')}")

    async def data(self, user: Client, room_id: str) -> None:
        path = self.random.choice(["account_data/org.example", f"rooms/{quote(room_id)}/account_data/org.example"])
        await user.put(own(user, path), {"value": unique()})

    async def tag(self, user: Client, room_id: str) -> None:
        await user.put(own(user, f"rooms/{quote(room_id)}/tags/u.{self.random.randrange(3)}"), {"order": 0.5})

    async def rename(self, user: Client, _room_id: str) -> None:
        await user.put(f"/v3/profile/{quote(user.user_id)}/displayname", {"displayname": unique("Name")})

    async def to_device(self, user: Client, _room_id: str) -> None:
        target = self.random.choice(self.users)
        body = {"messages": {target.user_id: {"*": {"text": unique()}}}}
        await user.put(f"/v3/sendToDevice/org.example/{unique('t')}", body)

    async def keys(self, user: Client, _room_id: str) -> None:
        await user.put(f"/v3/devices/{user.device_id}", {"display_name": unique("device")})

    async def ignore(self, user: Client, _room_id: str) -> None:
        ignored: dict[str, Any] = {} if self.random.random() < 0.5 else {self.random.choice(self.users).user_id: {}}
        await user.put(own(user, "account_data/m.ignored_user_list"), {"ignored_users": ignored})


def comparable(answer: Any) -> Any:
    """What has to be equal: without ages and tokens, and without order where it means nothing."""
    answer.pop("next_batch")
    for section in answer.get("rooms", {}).values():
        for room in section.values():
            for name in ("state", "state_after", "account_data"):
                room.get(name, {}).get("events", []).sort(key=by_name)
            for event in [*room.get("state", {}).get("events", []), *room.get("state_after", {}).get("events", [])]:
                event.pop("unsigned")  # what state replaced is told in timelines; elsewhere it may be
    answer.get("account_data", {}).get("events", []).sort(key=repr)
    return without_age(answer)


def without_age(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_age(each) for key, each in value.items() if key != "age"}
    return [without_age(each) for each in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two answers differ, for who reads a failure."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{path}/{index}")]
    return [] if one == other else [f"{path}: {one!r} or {other!r}"]


def by_name(event: Any) -> tuple[str, str]:
    return event["type"], event.get("state_key", "")


def at(server: Server, user: Client) -> Client:
    """The same session, by way of another process."""
    return Client(server.base_url, server.anonymous.session, user.user_id, user.device_id, user.access_token)


async def a_story(servers: Sequence[Server], seed: int) -> list[tuple[Client, str]]:
    """A history that is written through all these processes, and tokens that its users got on the way."""
    users = [await servers[0].register(name) for name in ("alice", "bob", "carol", "dave")]
    rooms = []
    for preset in ("public_chat", "public_chat", "private_chat"):
        body = {"preset": preset, "name": "a room"} if preset == "private_chat" else {"preset": preset}
        rooms.append((await users[0].ok("POST", "/v3/createRoom", body))["room_id"])
    story = Story(seed, users, rooms)
    tokens: list[tuple[Client, str]] = []
    for number in range(STEPS):
        server = story.random.choice(servers)
        story.users = [at(server, user) for user in users]
        await story.step()
        if number % 6 == 0:
            user = story.random.choice(story.users)
            tokens.append((user, (await sync(user))["next_batch"]))
    return tokens


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_fresh_process_answers_as_those_that_saw_it_all(conninfo: str, seed: int) -> None:
    async with running(conninfo, presence=False) as one, running(conninfo, presence=False) as other:
        tokens = await a_story([one, other], seed)
        async with running(conninfo, presence=False) as fresh:
            for number, (user, since) in enumerate(tokens):
                for options in (FILTERS[0], FILTERS[1 + number % 5]):
                    answers = [comparable(await sync(at(each, user), since, **options)) for each in (fresh, one, other)]
                    for from_memory in answers[1:]:
                        assert differences(from_memory, answers[0]) == [], (number, since, options)
