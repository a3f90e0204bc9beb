"""What one process is told, the others know: two servers on one database."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.client import Client, Server, quote, unique
from tests.servers import running


@pytest_asyncio.fixture
async def pair(conninfo: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two processes' servers."""
    async with running(conninfo) as first, running(conninfo) as second:
        yield first, second


def at(server: Server, client: Client) -> Client:
    """The same session, at another process."""
    return Client(server.base_url, client.session, client.user_id, client.device_id, client.access_token)


async def sync(client: Client, since: str | None = None, timeout_ms: int = 0) -> Any:
    query = {"timeout": str(timeout_ms)} | ({} if since is None else {"since": since})
    return await client.ok("GET", "/v3/sync", params=query)


async def test_data_receipts_rules_and_typing_reach_the_other_process(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice, bob = await first.register("alice"), await first.register("bob")
    there = at(second, alice)
    room_id = (await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    room = f"/v3/rooms/{quote(room_id)}"
    await bob.ok("POST", f"/v3/join/{quote(room_id)}", {})
    said = (await alice.ok("PUT", f"{room}/send/m.room.message/{unique()}", {"body": "x"}))["event_id"]
    since = (await sync(there))["next_batch"]

    await alice.ok("PUT", f"/v3/user/{quote(alice.user_id)}/account_data/org.example", {"a": 1})
    await alice.ok("PUT", f"/v3/pushrules/global/room/{quote(room_id)}", {"actions": []})
    await bob.ok("POST", f"{room}/receipt/m.read/{quote(said)}", {})
    await bob.ok("PUT", f"{room}/typing/{quote(bob.user_id)}", {"typing": True, "timeout": 60_000})

    wanted = {"org.example", "m.push_rules", "m.receipt", "m.typing"}
    found: set[str] = set()
    for _ in range(20):
        answer = await sync(there, since, 2000)
        since = answer["next_batch"]
        found |= {event["type"] for event in answer.get("account_data", {}).get("events", [])}
        joined = answer.get("rooms", {}).get("join", {}).get(room_id, {})
        found |= {event["type"] for event in joined.get("ephemeral", {}).get("events", [])}
        if wanted <= found:
            break
    assert wanted <= found
    assert (await there.ok("GET", "/v3/pushrules/"))["global"]["room"][0]["rule_id"] == room_id


async def test_rules_set_at_one_process_count_at_the_other(pair: tuple[Server, Server]) -> None:
    first, second = pair
    alice, bob = await first.register("alice"), await first.register("bob")
    room_id = (await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/v3/join/{quote(room_id)}", {})
    there = at(second, bob)
    since = (await sync(there))["next_batch"]
    await there.ok("PUT", f"/v3/pushrules/global/room/{quote(room_id)}", {"actions": []})
    await sync(at(first, bob), since, 2000)  # the first process has heard of it

    await alice.ok("PUT", f"/v3/rooms/{quote(room_id)}/send/m.room.message/{unique()}", {"body": "x"})

    joined = (await sync(there))["rooms"]["join"][room_id]
    assert joined["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}
