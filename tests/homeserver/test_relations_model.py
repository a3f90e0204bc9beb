"""What is bundled and listed equals what a naive look at all that a reader may see gives, after random activity."""

import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.client import Client, quote
from tests.homeserver.relating import bundle_of, children, ignore, relates_to, threads
from tests.homeserver.rooms import a_room, history, set_visibility
from tests.homeserver.syncs import joined, sync
from tests.rooms import send

STEPS = 80
SEEDS = range(7, 7 + int(os.environ.get("HEARTH_RELATION_SEEDS", "2")))
KINDS = ["m.thread", "m.thread", "m.replace", "m.replace", "m.reference", "m.annotation", "org.example.other"]


class Story:
    """Users who say things about what was said, at random, in a room that they come to and leave."""

    def __init__(self, seed: int, users: list[Client], room_id: str) -> None:
        self.random = random.Random(seed)  # the same story in each run
        self.users = users
        self.room_id = room_id
        self.sent: list[str] = []
        self.sent_as: dict[str, tuple[Client, str]] = {}
        """By whom, and of which type, each was sent that is no state."""
        self.ignored: dict[str, list[Client]] = {}
        self.bundles = 0
        """How many were compared."""

    async def step(self) -> None:
        """Something happens; what is not allowed does not."""
        actions: list[Callable[[Client], Awaitable[Any]]] = [
            *[self.talk] * 3,
            *[self.relate] * 12,
            *[self.redact] * 2,
            self.join,
            *[self.leave] * 3,
            self.show,
            self.ignore,
        ]
        await self.random.choice(actions)(self.random.choice(self.users))

    async def _put(self, user: Client, path: str, content: Any) -> None:
        answer = await user.put(f"/v3/rooms/{quote(self.room_id)}/{path}", content)
        if answer.status == 200:
            self.sent.append(answer.body["event_id"])
            if path.startswith("send/"):
                self.sent_as[self.sent[-1]] = user, path.split("/")[1]

    async def talk(self, user: Client) -> None:
        await self._put(
            user, f"send/m.room.message/{len(self.sent)}-{user.user_id}", {"body": "x", "msgtype": "m.text"}
        )

    async def relate(self, user: Client) -> None:
        chance = self.random
        parent = chance.choice([chance.choice(self.sent[-25:]), *self.sent[-3:], *self.sent[:2]])
        content: dict[str, Any] = {"body": "x", "msgtype": "m.text", "n": str(chance.random())}
        content |= relates_to(chance.choice(KINDS), parent, key="k")
        if chance.random() < 0.7:
            content["m.new_content"] = {"body": "y"}
        event_type = chance.choice(["m.room.message", "m.room.message", "m.room.encrypted", "org.example.x"])
        if parent in self.sent_as and chance.random() < 0.7:
            user, event_type = self.sent_as[parent]
        if chance.random() < 0.1:
            await self._put(user, f"state/{event_type}/", content)
        else:
            await self._put(user, f"send/{event_type}/{chance.random()}", content)

    async def redact(self, user: Client) -> None:
        target = self.random.choice(self.sent[-30:])
        await user.put(f"/v3/rooms/{quote(self.room_id)}/redact/{quote(target)}/{self.random.random()}")

    async def join(self, user: Client) -> None:
        await user.post(f"/v3/join/{quote(self.room_id)}")

    async def leave(self, user: Client) -> None:
        if user is not self.users[0]:
            await user.post(f"/v3/rooms/{quote(self.room_id)}/leave")
            if self.random.random() < 0.7:
                await self.relate(self.users[0])
                await self.relate(self.users[0])
                await self.join(user)

    async def show(self, _user: Client) -> None:
        await set_visibility(self.users[0], self.room_id, self.random.choice(["shared", "joined", "invited"]))

    async def ignore(self, user: Client) -> None:
        self.ignored[user.user_id] = self.random.sample([u for u in self.users if u is not user], k=1)

    # --- what there is to tell

    async def check(self, reader: Client) -> None:
        """Compare all ways in which a reader is told of relations with what they see of the room."""
        await ignore(reader)
        everything = (await history(reader, self.room_id, limit=100))[::-1]
        ignored = {user.user_id for user in self.ignored.get(reader.user_id, [])}
        await ignore(reader, *self.ignored.get(reader.user_id, []))
        naive = Naive(everything, reader.user_id, ignored)
        told = await history(reader, self.room_id, limit=50)
        self.bundles += sum(bool(bundle_of(event)) for event in told)
        assert {event["event_id"]: plain(event) for event in told} == {
            event["event_id"]: naive.bundle(event) for event in told
        }
        assert [root["event_id"] for root in await threads(reader, self.room_id, limit=3)] == naive.threads()
        mine = [root["event_id"] for root in await threads(reader, self.room_id, limit=3, include="participated")]
        assert mine == [root for root in naive.threads() if naive.thread(root)["participated"]]
        for event in self.random.sample(everything, k=min(len(everything), 8)):
            event_id = event["event_id"]
            for recurse in (False, True):
                given = {"limit": 2, "dir": "f", "recurse": "true" if recurse else "false"}
                assert await children(reader, self.room_id, event_id, **given) == naive.children(event_id, recurse)
        cut = joined(await sync(reader, filter={"room": {"timeline": {"limit": 20}}}), self.room_id)
        for event in cut.get("timeline", {}).get("events", []):
            assert plain(event) == naive.bundle(event)


def plain(event: Any) -> Any:
    """A bundle with no more than what a naive one says."""
    found = bundle_of(event)
    made: dict[str, Any] = {}
    if "m.replace" in found:
        made["replace"] = found["m.replace"]["event_id"]
    if "m.thread" in found:
        latest = found["m.thread"]["latest_event"]
        made["thread"] = {
            "latest": latest["event_id"],
            "count": found["m.thread"]["count"],
            "participated": found["m.thread"]["current_user_participated"],
            "bundle": plain(latest),
        }
    if "m.reference" in found:
        made["reference"] = [each["event_id"] for each in found["m.reference"]["chunk"]]
    return made


class Naive:
    """Looks at all that a reader sees, each time."""

    def __init__(self, events: list[Any], reader: str, ignored: set[str]) -> None:
        self.events = events
        self.reader = reader
        self.ignored = ignored
        self.by_id = {event["event_id"]: event for event in events}

    @staticmethod
    def relation(event: Any) -> Any:
        """What an event says that it relates to; a redacted one says nothing."""
        return event["content"].get("m.relates_to", {})

    def related(self, event_id: str, rel_type: str) -> list[Any]:
        """What counts for the reader among what relates to an event in one way."""
        return [event for event in self.relating(event_id, rel_type) if event["sender"] not in self.ignored]

    def relating(self, event_id: str, rel_type: str) -> list[Any]:
        """All that relates to an event in one way. No state belongs to a thread."""
        return [
            event
            for event in self.events
            if self.relation(event).get("event_id") == event_id
            and self.relation(event)["rel_type"] == rel_type
            and not (rel_type == "m.thread" and "state_key" in event)
        ]

    def bundle(self, event: Any) -> Any:
        """What is to be bundled with an event."""
        event_id, relation = event["event_id"], self.relation(event)
        made: dict[str, Any] = {}
        if "state_key" in event:
            return made
        edits = [
            edit
            for edit in self.related(event_id, "m.replace")
            if edit["sender"] == event["sender"]
            and edit["type"] == event["type"]
            and "state_key" not in edit
            and (edit["type"] == "m.room.encrypted" or "m.new_content" in edit["content"])
        ]
        if edits and relation.get("rel_type") != "m.replace" and "redacted_because" not in event["unsigned"]:
            made["replace"] = max(edits, key=lambda edit: (edit["origin_server_ts"], edit["event_id"]))["event_id"]
        if self.related(event_id, "m.thread") and not relation:
            made["thread"] = self.thread(event_id)
        if references := self.related(event_id, "m.reference"):
            made["reference"] = [each["event_id"] for each in references]
        return made

    def thread(self, root: str) -> Any:
        """A thread."""
        replies = self.related(root, "m.thread")
        senders = {event["sender"] for event in (self.by_id[root], *self.relating(root, "m.thread"))}
        return {
            "latest": replies[-1]["event_id"],
            "count": len(replies),
            "participated": self.reader in senders,
            "bundle": self.bundle(replies[-1]),
        }

    def threads(self) -> list[str]:
        """The roots of threads, the last active first."""
        order = {event["event_id"]: number for number, event in enumerate(self.events)}
        roots = [event["event_id"] for event in self.events if "thread" in self.bundle(event)]
        return sorted(roots, key=lambda root: order[self.thread(root)["latest"]], reverse=True)

    def children(self, event_id: str, recurse: bool) -> list[str]:
        """What relates to an event, in the order of the room."""
        found = {event_id: 0}
        for event in self.events:
            relation = self.relation(event)
            depth = found.get(relation.get("event_id"))
            if relation.get("rel_type") == "m.thread" and "state_key" in event:
                continue
            if depth is not None and depth < (3 if recurse else 1):
                found[event["event_id"]] = depth + 1
        del found[event_id]
        return [
            each for each in found if self.by_id[each]["sender"] not in self.ignored or "state_key" in self.by_id[each]
        ]


@pytest.mark.parametrize("seed", SEEDS)
async def test_relations_are_told_as_a_naive_look_would(alice: Client, bob: Client, seed: int) -> None:
    carol = await alice.register("carol")
    room_id = await a_room(alice, bob, carol)
    story = Story(seed, [alice, bob, carol], room_id)
    story.sent.append(await send(alice, room_id, "first"))

    for number in range(STEPS):
        await story.step()
        if number % 40 == 39:
            for reader in story.users:
                await story.check(reader)
    assert story.bundles > 5
