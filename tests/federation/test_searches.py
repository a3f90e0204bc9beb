"""Searching what other servers' users said, and these users themselves."""

import asyncio

from tests.client import unique
from tests.federation.servers import Pair
from tests.federation.test_backfill import both, join
from tests.homeserver.rooms import a_room, history, redact
from tests.homeserver.test_search import edit, found
from tests.homeserver.test_user_directory import found as found_users
from tests.homeserver.test_user_directory import name, until
from tests.rooms import send, send_event


async def test_messages_of_other_servers_are_found_when_they_come_and_when_history_is_fetched(pair: Pair) -> None:
    alice, bob = await both(pair)
    word = unique("word").replace("-", "")
    room_id = await a_room(alice)
    before = [await send(alice, room_id, f"{word} {number}") for number in range(20)]
    await send_event(alice, room_id, "m.room.message", edit(before[3], f"{word} edited"))
    await redact(alice, room_id, before[4])
    await send(alice, room_id, "something else")
    await join(bob, room_id, pair.near.name)
    after = await send(alice, room_id, f"{word} after the join")
    async with asyncio.timeout(20):
        while after not in await found(pair.far, bob, word):  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.1)

    await history(bob, room_id, limit=100)

    async with asyncio.timeout(30):  # what is fetched is indexed a little later
        while before[0] not in await found(pair.far, bob, word, filter={"limit": 50}):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    expected = [after, *(event_id for event_id in before[::-1] if event_id != before[4])]
    assert await found(pair.far, bob, word, filter={"limit": 50}) == expected
    assert await found(pair.far, bob, f"{word} edited") == [before[3]]


async def test_users_of_other_servers_are_found_by_who_shares_a_room_with_them(pair: Pair) -> None:
    alice, bob = await both(pair)
    carol = await pair.far.register("carol")
    word = unique("word").replace("-", "")
    await name(alice, f"Alice {word}")
    room_id = await a_room(alice, preset="private_chat", invite=[bob.user_id])
    await join(bob, room_id, pair.near.name)

    await until(bob, word, lambda ids: ids == [alice.user_id])
    assert await found_users(carol, word) == []

    await name(alice, f"Alicia {word}")
    await until(bob, f"alicia {word}", lambda ids: ids == [alice.user_id])

    public = await a_room(alice)
    await join(bob, public, pair.near.name)
    await until(carol, word, lambda ids: ids == [alice.user_id])
