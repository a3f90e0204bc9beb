"""Pushes of what other servers send: invites from outside, messages, and no history."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.client import Client, quote
from tests.federation.servers import Pair
from tests.homeserver.rooms import act, page
from tests.push_gateway import Gateway, a_gateway, set_pusher
from tests.rooms import create_room, send


@pytest_asyncio.fixture
async def gateway(pair: Pair) -> AsyncIterator[Gateway]:
    """One that both servers trust."""
    async with a_gateway(pair.authority) as gateway:
        yield gateway


async def join_by(client: Client, room_id: str, server_name: str) -> None:
    """Join a room of another server."""
    await client.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"via": server_name})


async def test_an_invite_from_elsewhere_is_told_and_so_are_messages(pair: Pair, gateway: Gateway) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    pushkey = await set_pusher(bob, gateway)
    room_id = await create_room(alice, name="Far away")
    await send(alice, room_id, "before he came")
    await act(alice, "invite", room_id, bob)

    told = await gateway.next(pushkey)
    assert (told["room_id"], told["type"], told["sender"]) == (room_id, "m.room.member", alice.user_id)
    assert (told["room_name"], told["user_is_target"], told["content"]["membership"]) == ("Far away", True, "invite")
    await join_by(bob, room_id, pair.near.name)
    event_id = await send(alice, room_id, "welcome")
    assert await gateway.until_event(pushkey, event_id) == [event_id]


async def test_history_that_is_fetched_is_not_told(pair: Pair, gateway: Gateway) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    pushkey = await set_pusher(bob, gateway)
    room_id = await create_room(alice, preset="public_chat")
    old = [await send(alice, room_id, str(number)) for number in range(5)]
    await join_by(bob, room_id, pair.near.name)
    found = (await page(bob, room_id, limit=50))["chunk"]
    assert {each["event_id"] for each in found} >= set(old)

    last = await send(alice, room_id, "new")
    assert await gateway.until_event(pushkey, last) == [last]
