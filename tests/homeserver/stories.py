"""Users who do this and that in a few rooms, at random: what tests hold the answers of syncs to."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

from tests.client import Client, quote, unique
from tests.homeserver.syncs import own


class Story:
    """Users who do this and that, at random, in a few rooms."""

    def __init__(self, seed: int, users: list[Client], rooms: list[str]) -> None:
        self.random = random.Random(seed)  # the same story in each run
        self.users = users
        self.rooms = rooms
        self.sent: dict[str, list[str]] = {room_id: [] for room_id in rooms}

    async def step(self) -> None:
        """Something happens; what is not allowed does not."""
        await self.random.choice(self.actions())(self.random.choice(self.users), self.random.choice(self.rooms))

    def actions(self) -> list[Callable[[Client, str], Awaitable[Any]]]:
        """What may happen, as often as it stands here."""
        return [
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
