"""Unread counts in syncs: what evaluating every push rule for every member would give ("Receiving notifications")."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from federation.protocol.types import UserID
from homeserver.services.push_conditions import Situation
from homeserver.services.push_rules import Ruleset
from storage import badges
from tests.client import Client, Server, quote, unique
from tests.homeserver.relating import edit, react, relates_to
from tests.homeserver.rooms import a_room, join, leave
from tests.homeserver.syncs import counts, ignore, joined, read, say_with, set_state, sync, token
from tests.rooms import send, send_event

BY_THREAD = {"room": {"timeline": {"unread_thread_notifications": True}}}


async def in_thread(client: Client, room_id: str, root: str, **content: Any) -> str:
    """Send a message into a thread."""
    relation = {"rel_type": "m.thread", "event_id": root}
    return await say_with(client, room_id, "reply", {"m.relates_to": relation, **content})


def threads(answer: Any, room_id: str) -> dict[str, tuple[int, int]]:
    """Unread counts by thread."""
    found = joined(answer, room_id).get("unread_thread_notifications", {})
    return {root: (each["notification_count"], each["highlight_count"]) for root, each in found.items()}


async def test_the_count_comes_with_the_event(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    for number in range(1, 4):
        await send(alice, room_id, "hello")
        answer = await sync(bob, since)
        since = answer["next_batch"]
        assert counts(answer, room_id) == (number, 0)
    await send(bob, room_id, "hi")
    assert counts(await sync(bob, since), room_id) == (0, 0)
    assert counts(await sync(bob), room_id) == (0, 0)


async def test_who_joins_has_read_what_was_before(server: Server, alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "before")
    await in_thread(alice, room_id, root)
    await join(bob, room_id)

    first = await sync(bob, filter=BY_THREAD)
    assert (counts(first, room_id), threads(first, room_id)) == ((0, 0), {})
    await in_thread(alice, room_id, root)
    await send(alice, room_id, "after")
    second = await sync(bob, first["next_batch"], filter=BY_THREAD)
    assert (counts(second, room_id), threads(second, room_id)) == ((1, 0), {root: (1, 0)})
    assert counts(await sync(bob), room_id) == (2, 0)
    await leave(bob, room_id)
    await in_thread(alice, room_id, root)
    await join(bob, room_id)
    third = await sync(bob, filter=BY_THREAD)
    assert (counts(third, room_id), threads(third, room_id)) == ((0, 0), {})


async def test_a_threads_receipt_reads_the_thread_alone(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(alice, room_id, "root")
    other = await send(alice, room_id, "other root")
    mention = {"m.mentions": {"user_ids": [bob.user_id]}}
    reply = await in_thread(alice, room_id, root, **mention)
    await in_thread(alice, room_id, other)
    last = await send(alice, room_id, "main")

    async def now() -> Any:
        answer = await sync(bob, filter=BY_THREAD)
        return counts(answer, room_id), threads(answer, room_id)

    assert await now() == ((3, 0), {root: (1, 1), other: (1, 0)})
    await read(bob, room_id, last, thread="main")
    assert await now() == ((0, 0), {root: (1, 1), other: (1, 0)})
    await read(bob, room_id, reply, "m.read.private", thread=root)
    assert await now() == ((0, 0), {other: (1, 0)})
    later = await in_thread(alice, room_id, root)
    assert await now() == ((0, 0), {root: (1, 0), other: (1, 0)})
    await read(bob, room_id, later)
    assert await now() == ((0, 0), {})
    assert counts(await sync(bob), room_id) == (0, 0)


async def test_what_relates_to_a_reply_counts_in_its_thread(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(alice, room_id, "root")
    reply = await in_thread(alice, room_id, root)
    vote = await send(alice, room_id, "vote", **relates_to("m.reference", reply))
    await edit(alice, room_id, reply, "look", **{"m.mentions": {"user_ids": [bob.user_id]}})
    of_root = await send(alice, room_id, "to the root", **relates_to("m.reference", root))

    async def now() -> Any:
        answer = await sync(bob, filter=BY_THREAD)
        return counts(answer, room_id), threads(answer, room_id)

    assert await now() == ((2, 0), {root: (3, 1)})
    await read(bob, room_id, vote, thread="main")  # as a client might that does not look so far
    assert await now() == ((1, 0), {root: (3, 1)})
    await read(bob, room_id, vote, thread=root)
    assert await now() == ((1, 0), {root: (1, 1)})
    await read(bob, room_id, of_root, thread="main")
    assert await now() == ((0, 0), {root: (1, 1)})
    await read(bob, room_id, await react(alice, room_id, vote), thread=root)
    assert await now() == ((0, 0), {})


async def test_a_profile_change_leaves_threads_unread(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(alice, room_id, "root")
    await in_thread(alice, room_id, root)

    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})

    assert threads(await sync(bob, filter=BY_THREAD), room_id) == {root: (1, 0)}


async def test_the_receipt_that_is_ahead_counts(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sent = [await send(alice, room_id, str(number)) for number in range(4)]

    await read(bob, room_id, sent[2])
    assert counts(await sync(bob), room_id) == (1, 0)
    await read(bob, room_id, sent[1], "m.read.private")
    assert counts(await sync(bob), room_id) == (1, 0)
    await read(bob, room_id, sent[3], "m.read.private")
    assert counts(await sync(bob), room_id) == (0, 0)


async def test_counts_change_though_the_filter_hides_receipts(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    since = await token(bob)
    await read(bob, room_id, event_id)

    answer = await sync(bob, since, filter={"room": {"ephemeral": {"types": []}}})

    assert counts(answer, room_id) == (0, 0)
    assert joined(answer, room_id)["ephemeral"]["events"] == []


async def test_edits_notices_and_reactions_do_not_count(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    edit = {"rel_type": "m.replace", "event_id": event_id}
    await say_with(alice, room_id, "* hi", {"m.relates_to": edit, "m.new_content": {"msgtype": "m.text", "body": "hi"}})
    await send(alice, room_id, "beep", msgtype="m.notice")
    annotation = {"rel_type": "m.annotation", "key": "+", "event_id": event_id}
    await send_event(alice, room_id, "m.reaction", {"m.relates_to": annotation})
    await set_state(alice, room_id, "m.room.topic", {"topic": "tea"})

    assert counts(await sync(bob), room_id) == (1, 0)


async def test_only_who_may_notify_the_room_does(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, bob, carol)
    await say_with(carol, room_id, "@room", {"m.mentions": {"room": True}})
    assert counts(await sync(bob), room_id) == (1, 0)
    await say_with(alice, room_id, "@room", {"m.mentions": {"room": True}})
    assert counts(await sync(bob), room_id) == (2, 1)


async def test_who_is_ignored_does_not_count(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    await ignore(bob, alice)
    await say_with(alice, room_id, "hello", {"m.mentions": {"user_ids": [bob.user_id]}})

    assert counts(await sync(bob), room_id) == (0, 0)
    answer = await sync(bob, since)
    assert joined(answer, room_id).get("timeline", {}).get("events", []) == []


# --- any events, receipts and rules


@dataclass
class Reader:
    """One member, and what they should not have read, by thread."""

    client: Client
    ignored: set[str] = field(default_factory=set)
    unread: dict[str, list[tuple[int, bool, bool]]] = field(default_factory=dict)
    """By thread: (place, notifies, highlights)."""

    def hear(self, place: int, thread: str, situation: Situation, rules: Ruleset) -> None:
        event = situation.event
        if event["sender"] == self.client.user_id:
            self.read(place, thread)
        elif event["sender"] not in self.ignored:
            notify, highlight = rules.evaluate(situation).counts
            self.unread.setdefault(thread, []).append((place, bool(notify), bool(highlight)))

    def read(self, upto: int, thread: str | None) -> None:
        for each in list(self.unread) if thread is None else [thread]:
            self.unread[each] = [entry for entry in self.unread.get(each, []) if entry[0] > upto]

    def expected(self) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
        sums = {
            thread: (sum(notify for _, notify, _ in entries), sum(highlight for _, _, highlight in entries))
            for thread, entries in self.unread.items()
        }
        main = sums.pop("main", (0, 0))
        return main, {thread: found for thread, found in sums.items() if any(found)}


RULES: list[tuple[str, str, Any]] = [
    ("content", "tea", {"pattern": "tea", "actions": ["notify", {"set_tweak": "highlight"}]}),
    ("sender", "SENDER", {"actions": []}),
    ("room", "ROOM", {"actions": []}),
    ("override", "loud", {"conditions": [], "actions": ["notify", {"set_tweak": "highlight"}]}),
    (
        "override",
        "many",
        {"conditions": [{"kind": "room_member_count", "is": ">2"}], "actions": []},
    ),
]


async def _set_rule(chance: random.Random, reader: Client, room_id: str, users: list[Client]) -> None:
    kind, name, body = chance.choice(RULES)
    name = {"SENDER": chance.choice(users).user_id, "ROOM": room_id}.get(name, name)
    path = f"/v3/pushrules/global/{kind}/{quote(name)}"
    if chance.random() < 0.4:
        await reader.delete(path)
    else:
        await reader.ok("PUT", path, body)


def _content(chance: random.Random, users: list[Client]) -> dict[str, Any]:
    content: dict[str, Any] = {"msgtype": chance.choice(["m.text", "m.text", "m.notice"]), "body": "a cup of tea?"}
    if chance.random() < 0.5:
        content["body"] = "hello"
    if chance.random() < 0.4:
        content["m.mentions"] = {"user_ids": [chance.choice(users).user_id]}
    elif chance.random() < 0.3:
        content["m.mentions"] = {"room": True}
    return content


class Story:
    """Members of a room who write, read and change their minds, at random."""

    def __init__(self, server: Server, chance: random.Random, room_id: str, users: list[Client]) -> None:
        self.server = server
        self.chance = chance
        self.room_id = room_id
        self.users = users
        self.readers = [Reader(user) for user in users]
        self.roots: list[str] = []
        self.sent: list[tuple[str, str]] = []
        """Events and their threads."""

    async def step(self) -> None:
        """Somebody does something."""
        action = self.chance.choice([*[self.send] * 8, *[self.read] * 2, self.set_topic, self.set_rule, self.ignore])
        await action(self.chance.choice(self.readers))

    async def send(self, actor: Reader) -> None:
        thread, content = "main", _content(self.chance, self.users)
        if self.chance.random() < 0.25:
            thread = self.chance.choice(self.roots)
            content["m.relates_to"] = {"rel_type": "m.thread", "event_id": thread}
        path = f"/v3/rooms/{quote(self.room_id)}/send/m.room.message/{unique('t')}"
        event_id = (await actor.client.ok("PUT", path, content))["event_id"]
        await self._told(actor, event_id, thread, {"type": "m.room.message", "content": content})

    async def set_topic(self, _actor: Reader) -> None:
        owner, content = self.readers[0], {"topic": unique("tea")}
        event_id = await set_state(owner.client, self.room_id, "m.room.topic", content)
        await self._told(owner, event_id, "main", {"type": "m.room.topic", "state_key": "", "content": content})

    async def _told(self, actor: Reader, event_id: str, thread: str, event: dict[str, Any]) -> None:
        self.sent.append((event_id, thread))
        is_owner = actor is self.readers[0]

        def may_notify(_key: str) -> bool:
            return is_owner

        event |= {"sender": actor.client.user_id, "room_id": self.room_id}
        situation = Situation(event, len(self.users), may_notify)
        for reader in self.readers:
            rules = await self.server.application.user_data.push_rules.ruleset(UserID(reader.client.user_id))
            reader.hear(len(self.sent) - 1, thread, situation, rules)

    async def read(self, actor: Reader) -> None:
        if self.sent:
            place = self.chance.randrange(max(len(self.sent) - 6, 0), len(self.sent))
            event_id, thread = self.sent[place]
            receipt_thread = thread if self.chance.random() < 0.5 else None
            kind = self.chance.choice(["m.read", "m.read.private"])
            await read(actor.client, self.room_id, event_id, kind, receipt_thread)
            actor.read(place, receipt_thread)

    async def set_rule(self, actor: Reader) -> None:
        await _set_rule(self.chance, actor.client, self.room_id, self.users)

    async def ignore(self, actor: Reader) -> None:
        other = self.chance.choice(self.users)
        actor.ignored = {other.user_id} if self.chance.random() < 0.3 and other is not actor.client else set()
        await ignore(actor.client, *[user for user in self.users if user.user_id in actor.ignored])


@pytest.mark.parametrize("seed", range(4))
async def test_counts_are_what_every_rule_of_every_member_would_give(server: Server, seed: int) -> None:
    chance = random.Random(seed)  # the same story in each run
    users = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await a_room(*users)
    story = Story(server, chance, room_id, users)
    story.roots = [await send(users[0], room_id, "root", msgtype="m.notice") for _ in range(2)]
    tokens = {reader.client.user_id: await token(reader.client) for reader in story.readers}
    for _ in range(60):
        await story.step()
        if chance.random() < 0.5:
            reader = chance.choice(story.readers)
            answer = await sync(reader.client, tokens[reader.client.user_id], filter=BY_THREAD)
            tokens[reader.client.user_id] = answer["next_batch"]
            if joined(answer, room_id):
                assert (counts(answer, room_id), threads(answer, room_id)) == reader.expected()
    for reader in story.readers:
        answer = await sync(reader.client, filter=BY_THREAD)
        main, by_thread = reader.expected()
        assert (counts(answer, room_id), threads(answer, room_id)) == (main, by_thread)
        whole = [sum(each) for each in zip(main, *by_thread.values(), strict=True)]
        assert list(counts(await sync(reader.client), room_id)) == whole


async def test_badges_are_the_sum_of_what_syncs_say(server: Server) -> None:
    """Whatever people read, in threads and outside of them, with rules of their own and without."""
    dice = random.Random(3)
    users = [await server.register("badge") for _ in range(3)]
    rooms = [await a_room(*users) for _ in range(2)]
    await users[2].ok("PUT", f"/v3/pushrules/global/room/{quote(rooms[0])}", {"actions": []})
    await users[1].ok("PUT", "/v3/pushrules/global/content/cake", {"pattern": "cake", "actions": []})
    sent: dict[str, list[tuple[str, str | None]]] = {room_id: [] for room_id in rooms}
    for _ in range(60):
        user, room_id = dice.choice(users), dice.choice(rooms)
        match dice.randrange(5):
            case 0 | 1:
                sent[room_id].append((await send(user, room_id, dice.choice(["cake", "tea"])), None))
            case 2 if sent[room_id]:
                root = dice.choice(sent[room_id])
                root_id = root[1] or root[0]
                sent[room_id].append((await in_thread(user, room_id, root_id), root_id))
            case _ if sent[room_id]:
                event_id, in_root = dice.choice(sent[room_id])
                thread = dice.choice([None, in_root or "main"])
                body = {} if thread is None else {"thread_id": thread}
                await user.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", body)
    expected = {}
    for user in users:
        answer = await sync(user)
        expected[user.user_id] = sum(counts(answer, room_id)[0] for room_id in rooms)
    nobody = await server.register("badge")
    async with server.application.database.read() as tx:
        found, position = await badges.totals(tx, [UserID(user.user_id) for user in (*users, nobody)])

    assert found == {**expected, nobody.user_id: 0}
    assert position > 0
    assert max(expected.values()) > 1
