"""Two processes serve one database: who changed something through one of them is answered rightly by the other."""

import asyncio
import dataclasses
from collections.abc import Awaitable
from typing import Any

import pytest

from federation.rooms import building
from tests.client import Client, Server, quote
from tests.rooms import create_room, join, send
from tests.servers import running

pytestmark = pytest.mark.one_process("each of its two servers is one")


async def unheard(other: Server, change: Awaitable[Any], request: Awaitable[Any]) -> Any:
    """The answer to a request of which this process begins before it has heard of the change."""
    async with other.application.tail.reading:
        await change
        asked = asyncio.ensure_future(request)
        await asyncio.sleep(0.2)
    return await asked


async def known_to_both(client: Client, at_other: Client, room_id: str) -> None:
    """Have either process keep what it knows of the room and its member in memory."""
    for each in (client, at_other):
        await send(each, room_id, "x")


@pytest.mark.parametrize("first", ["leave", "join"])
async def test_a_membership_that_was_changed_back_a_moment_ago_is_changed_again(conninfo: str, first: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        room_id = await create_room(alice, preset="public_chat")
        await join(bob, room_id)
        elsewhere = dataclasses.replace(bob, base_url=other.anonymous.base_url)
        await known_to_both(bob, elsewhere, room_id)
        if first == "join":
            await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})
            await elsewhere.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})
        second = "join" if first == "leave" else "leave"
        path = f"/v3/rooms/{quote(room_id)}/"
        await unheard(other, bob.ok("POST", path + first, {}), elsewhere.ok("POST", path + second, {}))

        events = (await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/members"))["chunk"]
        assert {each["state_key"]: each["content"]["membership"] for each in events}[bob.user_id] == second


async def test_state_that_was_set_back_a_moment_ago_is_set_again(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register("alice")
        room_id = await create_room(alice)
        elsewhere = dataclasses.replace(alice, base_url=other.anonymous.base_url)
        path = f"/v3/rooms/{quote(room_id)}/state/m.room.topic/"
        await alice.ok("PUT", path, {"topic": "a"})
        await elsewhere.ok("PUT", path, {"topic": "a"})
        await unheard(other, alice.ok("PUT", path, {"topic": "b"}), elsewhere.ok("PUT", path, {"topic": "a"}))

        assert (await alice.ok("GET", path))["topic"] == "a"


async def test_who_has_just_joined_may_speak_at_once_everywhere(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        room_id = await create_room(alice, preset="public_chat")
        elsewhere = dataclasses.replace(bob, base_url=other.anonymous.base_url)
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/1"
        refused = await elsewhere.put(path, {"body": "too early"})
        assert refused.status == 403
        await unheard(other, join(bob, room_id), elsewhere.ok("PUT", path, {"body": "hello"}))


async def test_the_same_state_twice_at_once_is_one_event(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register("alice")
        room_id = await create_room(alice)
        elsewhere = dataclasses.replace(alice, base_url=other.anonymous.base_url)
        await known_to_both(alice, elsewhere, room_id)
        path = f"/v3/rooms/{quote(room_id)}/state/m.room.topic/"
        async with await one.application.database.connect() as connection, connection.transaction():
            await connection.execute("select from log_head for update")
            both = [asyncio.ensure_future(each.ok("PUT", path, {"topic": "a"})) for each in (alice, elsewhere)]
            await asyncio.sleep(0.3)
        first, second = await asyncio.gather(*both)

        assert first == second


async def test_the_same_state_that_is_heard_of_just_before_it_is_written_is_one_event(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register("alice")
        room_id = await create_room(alice)
        elsewhere = dataclasses.replace(alice, base_url=other.anonymous.base_url)
        await known_to_both(alice, elsewhere, room_id)
        settle = other.application.event_counter.settle
        firsts: list[Any] = []
        path = f"/v3/rooms/{quote(room_id)}/state/m.room.topic/"

        async def hear_first() -> None:
            """Between what is found in the state, and what is written."""
            if not firsts:
                firsts.append(await alice.ok("PUT", path, {"topic": "a"}))
                await other.application.tail.catch_up()
            await settle()

        monkeypatch.setattr(other.application.event_counter, "settle", hear_first)
        second = await elsewhere.ok("PUT", path, {"topic": "a"})

        assert firsts == [second]


@pytest.mark.parametrize("membership", ["join", "leave"])
async def test_the_same_membership_twice_at_once_is_one_event(conninfo: str, membership: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        room_id = await create_room(alice, preset="public_chat")
        if membership == "leave":
            await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/join", {})
        elsewhere = dataclasses.replace(bob, base_url=other.anonymous.base_url)
        await known_to_both(alice, dataclasses.replace(alice, base_url=other.anonymous.base_url), room_id)
        async with await one.application.database.connect() as connection, connection.transaction():
            await connection.execute("select from log_head for update")
            path = f"/v3/rooms/{quote(room_id)}/{membership}"
            both = [asyncio.ensure_future(each.ok("POST", path, {})) for each in (bob, elsewhere)]
            await asyncio.sleep(0.5)
        await asyncio.gather(*both)

        events = (await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/messages?dir=b&limit=20"))["chunk"]
        found = [event for event in events if event.get("state_key") == bob.user_id]
        assert [event["content"]["membership"] for event in found].count(membership) == 1


async def test_the_same_text_in_the_same_millisecond_is_two_messages(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register("alice")
        room_id = await create_room(alice)
        elsewhere = dataclasses.replace(alice, base_url=other.anonymous.base_url)
        await known_to_both(alice, elsewhere, room_id)
        for server in (one, other):
            await server.application.log.catch_up()
        monkeypatch.setattr(building, "_now_ms", lambda: 1_700_000_000_000)
        async with await one.application.database.connect() as connection, connection.transaction():
            await connection.execute("select from log_head for update")
            both = [asyncio.ensure_future(send(each, room_id, "the same")) for each in (alice, elsewhere)]
            await asyncio.sleep(0.5)
        first, second = await asyncio.gather(*both)

        assert first != second
