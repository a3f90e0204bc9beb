"""To-device messages and device lists in syncs ("Send-to-Device messaging", "Tracking the device list for a user")."""

from typing import Any

from tests.client import Client, Server, quote, unique
from tests.homeserver.rooms import a_room, act, join, leave
from tests.homeserver.syncs import sync, token


async def send(client: Client, target: Client, device_id: str, *numbers: int) -> None:
    """Send messages to a device, or to all with `*`."""
    for number in numbers:
        body = {"messages": {target.user_id: {device_id: {"number": number}}}}
        await client.ok("PUT", f"/v3/sendToDevice/org.example/{unique()}", body)


def numbers(answer: Any) -> list[int]:
    """What came."""
    return [event["content"]["number"] for event in answer.get("to_device", {}).get("events", [])]


async def test_messages_come_again_until_a_token_proves_their_arrival(alice: Client, bob: Client) -> None:
    since = await token(bob)
    await send(alice, bob, "*", 1, 2)

    assert numbers(await sync(bob, since)) == [1, 2]
    answer = await sync(bob, since)
    assert numbers(answer) == [1, 2]
    assert answer["to_device"]["events"][0]["sender"] == alice.user_id
    await send(alice, bob, "*", 3)
    second = await sync(bob, answer["next_batch"])
    assert numbers(second) == [3]
    assert numbers(await sync(bob, second["next_batch"])) == []
    assert numbers(await sync(bob)) == []


async def test_a_first_sync_holds_what_waits(alice: Client, bob: Client) -> None:
    await send(alice, bob, "*", 1)

    first = await sync(bob)

    assert numbers(first) == [1]
    assert numbers(await sync(bob)) == [1]
    assert numbers(await sync(bob, first["next_batch"])) == []


async def test_devices_have_inboxes_of_their_own(alice: Client, bob: Client) -> None:
    other = await bob.login()
    await send(alice, bob, "*", 1)
    await send(alice, bob, bob.device_id, 2)

    first = await sync(bob)
    assert numbers(first) == [1, 2]
    assert numbers(await sync(bob, first["next_batch"])) == []
    assert numbers(await sync(other)) == [1]


async def test_many_messages_come_in_parts_at_once(alice: Client, bob: Client) -> None:
    since = await token(bob)
    await send(alice, bob, "*", *range(130))

    first = await sync(bob, since, timeout=30_000)
    second = await sync(bob, first["next_batch"], timeout=30_000)

    assert numbers(first) == list(range(100))
    assert numbers(second) == list(range(100, 130))
    assert numbers(await sync(bob, second["next_batch"])) == []


# --- device lists


async def rename(client: Client) -> None:
    """Change a device, which others have to hear of."""
    await client.ok("PUT", f"/v3/devices/{client.device_id}", {"display_name": unique()})


async def lists(client: Client, since: str) -> tuple[set[str], set[str]]:
    """Whose devices changed, and who no longer matters."""
    found = (await sync(client, since)).get("device_lists", {})
    return set(found.get("changed", ())), set(found.get("left", ()))


async def test_who_shares_a_room_hears_of_changed_devices(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    await a_room(alice, bob)
    await a_room(alice, carol)
    tokens = [await token(each) for each in (alice, bob, carol)]

    await rename(bob)

    assert await lists(alice, tokens[0]) == ({bob.user_id}, set())
    assert await lists(bob, tokens[1]) == ({bob.user_id}, set())
    assert await lists(carol, tokens[2]) == (set(), set())


async def test_coming_and_going_with_another_room_that_is_shared(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    first, second = await a_room(alice, bob), await a_room(alice, carol)
    since = await token(alice)
    await join(bob, second)
    await leave(bob, first)
    assert (await lists(alice, since))[1] == set()
    since = await token(alice)
    of_bob = await token(bob)
    await act(alice, "kick", second, bob)
    assert await lists(alice, since) == (set(), {bob.user_id})
    assert await lists(bob, of_bob) == (set(), {alice.user_id, carol.user_id})


async def test_who_declines_one_invite_and_comes_into_another_room_is_met(alice: Client, bob: Client) -> None:
    first, second = await a_room(alice), await a_room(alice)
    await act(alice, "invite", second, bob)
    since = await token(alice)
    await join(bob, first)
    await leave(bob, second)

    assert await lists(alice, since) == ({bob.user_id}, set())


async def test_who_joins_meets_everybody_there(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, bob)
    since, of_alice = await token(carol), await token(alice)

    await carol.ok("POST", f"/v3/join/{quote(room_id)}", {})

    assert (await lists(carol, since))[0] >= {alice.user_id, bob.user_id}
    assert await lists(alice, of_alice) == ({carol.user_id}, set())


async def test_a_new_name_is_no_new_device(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    since = await token(alice)

    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})

    assert await lists(alice, since) == (set(), set())


async def test_who_left_and_came_back_is_met_again(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(alice)
    await leave(bob, room_id)
    await rename(bob)
    await join(bob, room_id)

    assert await lists(alice, since) == ({bob.user_id}, set())
