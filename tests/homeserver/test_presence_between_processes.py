"""Presence is the same in every process: two servers on one database."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from federation.protocol.types import UserID
from storage.ephemeral import IDLE_AFTER_MS, OFFLINE_AFTER_MS, now_ms
from tests.client import Client, Server, quote
from tests.homeserver.test_user_data_between_processes import at, pair, sync
from tests.homeserver.test_workers import until
from tests.rooms import create_room, join

pytestmark = pytest.mark.one_process("each of its two servers is one")

__all__ = ["pair"]


async def status(client: Client, user: Client) -> Any:
    return (await client.ok("GET", f"/v3/presence/{quote(user.user_id)}/status"))["presence"]


async def until_status(client: Client, user: Client, wanted: str) -> None:
    async with asyncio.timeout(10):
        while await status(client, user) != wanted:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.02)


async def test_who_syncs_at_another_process_is_not_offline(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice = await first.register("alice")
    await sync(alice)
    await sync(at(second, alice))
    await until_status(at(second, alice), alice, "online")
    later = now_ms() + OFFLINE_AFTER_MS + 1000

    board = first.application.user_data.board
    board.synced_at[UserID(alice.user_id)] = 0  # here she was long ago
    await second.application.user_data.presence.sweep(now_ms())
    await until(lambda: board.synced_at[UserID(alice.user_id)] > 0, 10)
    await first.application.user_data.presence.sweep(now_ms())

    assert await status(alice, alice) == "online"
    await first.application.user_data.presence.sweep(later)
    assert await status(alice, alice) == "offline"
    await until_status(at(second, alice), alice, "offline")


async def test_what_was_set_by_hand_stays_when_another_process_is_asked(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice = await first.register("alice")
    await sync(alice)
    await until_status(at(second, alice), alice, "online")
    await alice.ok("PUT", f"/v3/presence/{quote(alice.user_id)}/status", {"presence": "unavailable"})
    await until_status(at(second, alice), alice, "unavailable")

    await sync(at(second, alice))

    assert await status(alice, alice) == await status(at(second, alice), alice) == "unavailable"


async def test_who_acts_at_one_process_is_not_idle_at_the_other(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice = await first.register("alice")
    await sync(alice)
    await until_status(at(second, alice), alice, "online")
    board, there = first.application.user_data.board, second.application.user_data.board
    known = there.find(UserID(alice.user_id))
    assert known is not None

    acted = known
    for _ in range(11):  # half a minute each: none is news by itself
        acted = replace(acted, last_active_ts=acted.last_active_ts + 30_000)
        await first.application.user_data.exchange.announce_presence(acted, store=False)
    await until(lambda: there.idle(known.last_active_ts + IDLE_AFTER_MS + 1) == [], 10)

    assert board.find(UserID(alice.user_id)) == acted


async def test_presence_that_changed_before_a_process_knew_the_reader_is_told(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice, bob = await first.register("alice"), await first.register("bob")
    await join(bob, await create_room(alice, preset="public_chat"))
    since = (await sync(alice))["next_batch"]
    await bob.ok("PUT", f"/v3/presence/{quote(bob.user_id)}/status", {"presence": "unavailable"})
    await until_status(at(second, alice), bob, "unavailable")
    await asyncio.sleep(0.3)  # it was told there to those who see it: nobody yet

    answer = await sync(at(second, alice), since)

    told = {each["sender"]: each["content"]["presence"] for each in answer["presence"]["events"]}
    assert told[bob.user_id] == "unavailable"
    again = await sync(alice, answer["next_batch"])
    assert bob.user_id not in {each["sender"] for each in again.get("presence", {}).get("events", [])}
