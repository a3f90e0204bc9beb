"""What ends the wait of a sync, what does not, and what happens meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.client import Client, Server, quote, unique
from tests.homeserver.rooms import a_room, act
from tests.homeserver.syncs import own, read, sync, timeline, whole_state
from tests.rooms import send
from tests.servers import running

Happening = Callable[[Client, Client, str, str], Awaitable[Any]]


HAPPENINGS: dict[str, Happening] = {
    "message": lambda alice, bob, room_id, event_id: send(bob, room_id, "hello"),
    "typing": lambda alice, bob, room_id, event_id: bob.ok(
        "PUT", f"/v3/rooms/{quote(room_id)}/typing/{quote(bob.user_id)}", {"typing": True, "timeout": 30_000}
    ),
    "receipt": lambda alice, bob, room_id, event_id: read(bob, room_id, event_id),
    "own private receipt": lambda alice, bob, room_id, event_id: read(alice, room_id, event_id, "m.read.private"),
    "account data": lambda alice, bob, room_id, event_id: alice.ok("PUT", own(alice, "account_data/org.a"), {"a": 1}),
    "room account data": lambda alice, bob, room_id, event_id: alice.ok(
        "PUT", own(alice, f"rooms/{quote(room_id)}/account_data/org.a"), {"a": 1}
    ),
    "to-device": lambda alice, bob, room_id, event_id: bob.ok(
        "PUT", f"/v3/sendToDevice/org.example/{unique()}", {"messages": {alice.user_id: {"*": {"a": 1}}}}
    ),
    "device list": lambda alice, bob, room_id, event_id: bob.ok(
        "PUT", f"/v3/devices/{bob.device_id}", {"display_name": "new"}
    ),
    "presence": lambda alice, bob, room_id, event_id: bob.ok(
        "PUT", f"/v3/presence/{quote(bob.user_id)}/status", {"presence": "online", "status_msg": unique()}
    ),
    "kick": lambda alice, bob, room_id, event_id: act(bob, "kick", room_id, alice),
}


async def a_pair(alice: Client, bob: Client) -> tuple[str, str, str]:
    """A room of Bob's with Alice, an event in it, and where Alice's sync stands."""
    room_id = await a_room(bob, alice)
    event_id = await send(bob, room_id, "before")
    since = (await sync(alice))["next_batch"]
    return room_id, event_id, (await sync(alice, since, timeout=100))["next_batch"]


@pytest.mark.parametrize("name", HAPPENINGS)
async def test_a_wait_ends_with(alice: Client, bob: Client, name: str) -> None:
    room_id, event_id, since = await a_pair(alice, bob)
    waiting = asyncio.create_task(sync(alice, since, timeout=30_000))
    await asyncio.sleep(0.2)
    assert not waiting.done()

    await HAPPENINGS[name](alice, bob, room_id, event_id)

    answer = await asyncio.wait_for(waiting, 10)
    assert set(answer) & {"rooms", "account_data", "to_device", "device_lists", "presence"}


async def test_a_wait_ends_with_an_invite(alice: Client, bob: Client) -> None:
    room_id = await a_room(bob)
    since = (await sync(alice))["next_batch"]
    waiting = asyncio.create_task(sync(alice, since, timeout=30_000))
    await asyncio.sleep(0.2)

    await act(bob, "invite", room_id, alice)

    assert room_id in (await asyncio.wait_for(waiting, 10))["rooms"]["invite"]


async def test_a_wait_ends_when_a_key_is_taken(alice: Client, bob: Client) -> None:
    await alice.ok("POST", "/v3/keys/upload", {"one_time_keys": {"curve25519:AAAA": "A" * 43}})
    since = (await sync(alice))["next_batch"]
    waiting = asyncio.create_task(sync(alice, since, timeout=30_000))
    await asyncio.sleep(0.2)

    await bob.ok("POST", "/v3/keys/claim", {"one_time_keys": {alice.user_id: {alice.device_id: "curve25519"}}})

    assert (await asyncio.wait_for(waiting, 10))["device_one_time_keys_count"].get("curve25519", 0) == 0


async def test_a_wait_ends_with_the_session(alice: Client) -> None:
    since = (await sync(alice))["next_batch"]
    waiting = asyncio.create_task(alice.get("/v3/sync", since=since, timeout=30_000, set_presence="offline"))
    await asyncio.sleep(0.2)

    await alice.ok("POST", "/v3/logout")

    answer = await asyncio.wait_for(waiting, 10)
    assert (answer.status, answer.body["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_what_concerns_others_does_not_end_a_wait(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id, event_id, since = await a_pair(alice, bob)
    elsewhere = await a_room(bob, carol)
    waiting = asyncio.create_task(sync(alice, since, timeout=1500))
    await asyncio.sleep(0.2)

    started = time.monotonic()
    await send(bob, elsewhere, "not for alice")
    await read(bob, room_id, event_id, "m.read.private")
    await bob.ok("PUT", own(bob, "account_data/org.example"), {"a": 1})
    messages = {"messages": {bob.user_id: {"*": {"a": 1}}}}
    await carol.ok("PUT", f"/v3/sendToDevice/org.example/{unique()}", messages)
    answer = await waiting

    assert time.monotonic() - started > 1
    assert set(answer).isdisjoint({"rooms", "account_data", "to_device", "device_lists"})
    assert "rooms" not in await sync(alice, answer["next_batch"])


async def test_syncing_on_while_others_write_loses_and_repeats_nothing(conninfo: str) -> None:
    async with running(conninfo, presence=False) as one, running(conninfo, presence=False) as two:
        alice, bob, carol = [await one.register(name) for name in ("alice", "bob", "carol")]
        room_id = await a_room(alice, bob, carol)

        def there(client: Client) -> Client:
            return Client(two.base_url, two.anonymous.session, client.user_id, access_token=client.access_token)

        first = await sync(alice, filter={"room": {"timeline": {"limit": 100}}})
        told = {"one": [*timeline(first, room_id)], "two": [*timeline(first, room_id)]}
        state = {"one": _state_of(told["one"]), "two": _state_of(told["two"])}
        writers = [bob, there(bob), carol, there(carol), there(alice)]
        is_done = asyncio.Event()

        async def write(writer: Client, number: int) -> None:
            for step in range(8):
                if step % 3 == number % 3:
                    state_path = f"/v3/rooms/{quote(room_id)}/state/org.example/{writer.user_id}"
                    allowed = await writer.put(state_path, {"step": step, "by": number})
                    assert allowed.status in (200, 403)
                else:
                    await send(writer, room_id, f"{number} {step}")

        async def follow(name: str, client: Client) -> None:
            since, empty = first["next_batch"], 0
            while empty < 1:
                was_done = is_done.is_set()
                answer = await sync(client, since, timeout=300, filter={"room": {"timeline": {"limit": 3}}})
                since = answer["next_batch"]
                section = answer.get("rooms", {}).get("join", {}).get(room_id, {"timeline": {"events": []}})
                events = section["timeline"]["events"]
                state[name] |= _state_of(section.get("state", {}).get("events", []))
                if section["timeline"].get("limited"):
                    events = await _with_gap(client, room_id, section["timeline"], told[name][-1]["event_id"])
                told[name].extend(events)
                state[name] |= _state_of(section["timeline"]["events"])
                empty += was_done and not events

        following = [asyncio.create_task(follow(*each)) for each in (("one", alice), ("two", there(alice)))]
        await asyncio.gather(*(write(writer, number) for number, writer in enumerate(writers)))
        is_done.set()
        await asyncio.gather(*following)

        page = await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/messages", params={"dir": "f", "limit": "200"})
        everything = [event["event_id"] for event in page["chunk"]]
        for name in ("one", "two"):
            assert [event["event_id"] for event in told[name]] == everything
            assert state[name] == await whole_state(alice, room_id)


def _state_of(events: list[Any]) -> dict[tuple[str, str], str]:
    return {(event["type"], event["state_key"]): event["event_id"] for event in events if "state_key" in event}


async def _with_gap(client: Client, room_id: str, section: Any, last: str) -> list[Any]:
    """The timeline with what came before it, back to the last event that is known."""
    missed: list[Any] = []
    params = {"dir": "b", "from": section["prev_batch"], "limit": "2"}
    while True:
        page = await client.ok("GET", f"/v3/rooms/{quote(room_id)}/messages", params=params)
        for event in page["chunk"]:
            if event["event_id"] == last:
                return [*reversed(missed), *section["events"]]
            missed.append(event)
        params["from"] = page["end"]


@pytest.mark.one_process("others read the table that is held")
async def test_what_comes_while_a_users_rooms_are_looked_up_is_not_missed(
    server: Server, alice: Client, bob: Client
) -> None:
    room_id = await a_room(alice, bob)
    await send(alice, room_id, "before")
    since = (await sync(alice))["next_batch"]  # a token of nobody in particular; this process knows nothing of Bob
    async with await server.application.database.connect() as connection, connection.transaction():
        await connection.execute("lock table room_state in access exclusive mode")
        waiting = asyncio.create_task(sync(bob, since, timeout=3000))
        await asyncio.sleep(0.3)
        event_id = await send(alice, room_id, "meanwhile")
    answer = await waiting

    assert event_id in [event["event_id"] for event in timeline(answer, room_id)]
