"""A sync answers the same from the memory of a running process and from the database by a fresh one."""

import os
from collections.abc import Sequence
from typing import Any

import pytest

from tests.client import Client, Server
from tests.homeserver.stories import Story
from tests.homeserver.syncs import sync
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
