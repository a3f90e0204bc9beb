"""Who joins a room of another server reads what was before: fetched when they page back to it."""

from typing import Any

import pytest

from tests.clients import Client, quote
from tests.federation.servers import Pair
from tests.homeserver.rooms import a_room, history, say, set_state

HISTORY = 60


async def join(client: Client, room_id: str, via: str) -> None:
    answer = await client.request("POST", f"/v3/join/{quote(room_id)}", {}, params=[("via", via)])
    assert answer.status == 200, answer.body


async def both(pair: Pair) -> tuple[Client, Client]:
    """A user of each server."""
    return await pair.near.register("alice"), await pair.far.register("bob")


def ids(events: list[Any]) -> list[str]:
    return [event["event_id"] for event in events]


@pytest.mark.parametrize("version", ["1", "3", "11", "12"])
async def test_every_event_from_before_the_join_is_read_once_and_in_order(pair: Pair, version: str) -> None:
    alice, bob = await both(pair)
    room_id = await a_room(alice, room_version=version)
    for number in range(HISTORY):
        await say(alice, room_id, f"{number}")
        if number % 10 == 5:
            await set_state(alice, room_id, "m.room.topic", {"topic": f"{number}"})
    await join(bob, room_id, pair.near.name)

    pages = await history(bob, room_id, limit=7)
    again = await history(bob, room_id, limit=25)

    assert ids(pages) == ids(again)
    assert ids(pages) == ids(await history(alice, room_id, limit=100))
    forwards = await history(bob, room_id, dir="f", limit=9)
    assert ids(forwards) == ids(pages)[::-1]
    topics = [event for event in forwards if event["type"] == "m.room.topic"]
    assert [event["unsigned"].get("prev_content") for event in topics] == [
        None,
        *({"topic": f"{number}"} for number in range(5, HISTORY - 10, 10)),
    ]
