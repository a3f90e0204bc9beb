"""Our users join, leave and knock at rooms of another server: two whole servers."""

from typing import Any

import pytest

from tests.clients import Client, quote
from tests.federation.servers import Pair
from tests.protocol.builders import VERSIONS


async def create(client: Client, **options: Any) -> str:
    """A room that anybody may join."""
    room: str = (await client.ok("POST", "/v3/createRoom", {"preset": "public_chat", **options}))["room_id"]
    return room


async def join(client: Client, room: str, *via: str) -> Any:
    return await client.request("POST", f"/v3/join/{quote(room)}", {}, params=[("via", name) for name in via])


async def state_of(client: Client, room: str) -> dict[tuple[str, str], Any]:
    events = await client.ok("GET", f"/v3/rooms/{quote(room)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_user_joins_a_room_of_another_server(pair: Pair, version: str) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, room_version=version, name="Far away")

    answer = await join(bob, room, pair.near.name)

    assert answer.status == 200, answer.body
    assert await state_of(bob, room) == await state_of(alice, room)
    synced = (await bob.get("/v3/sync")).body["rooms"]["join"][room]
    assert synced["summary"]["m.joined_member_count"] == 2
    names = [event["content"]["name"] for event in synced["state"]["events"] if event["type"] == "m.room.name"]
    assert names == ["Far away"]
    await bob.ok("PUT", f"/v3/rooms/{quote(room)}/send/m.room.message/1", {"body": "hi", "msgtype": "m.text"})
