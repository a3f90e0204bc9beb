"""Rooms of another server that our users are not in yet, or not any longer: two servers, and what clients see."""

from typing import Any

from federation.protocol.types import UserID
from storage import outside_memberships
from tests.client import Client, quote
from tests.federation.handshakes import membership_in
from tests.federation.servers import Pair
from tests.homeserver.syncs import sync
from tests.rooms import create_room, join, put_state


async def people(pair: Pair) -> tuple[Client, Client]:
    """Alice at the near server, Bob at the far one."""
    return await pair.near.register("alice"), await pair.far.register("bob")


async def invite(owner: Client, room_id: str, target: Client) -> None:
    await owner.ok("POST", f"/v3/rooms/{quote(room_id)}/invite", {"user_id": target.user_id})


async def kick(owner: Client, room_id: str, target: Client) -> None:
    await owner.ok("POST", f"/v3/rooms/{quote(room_id)}/kick", {"user_id": target.user_id})


async def leave(client: Client, room_id: str) -> None:
    await client.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})


async def knock(client: Client, room_id: str, pair: Pair) -> None:
    await client.ok("POST", f"/v3/knock/{quote(room_id)}", {}, params={"via": pair.near.name})


async def told(client: Client, room_id: str, part: str, since: str | None = None) -> Any:
    """The room once a sync tells of it in this part of `rooms`; no other part may have it in that answer."""
    for _ in range(20):
        answer = await sync(client, since, timeout=1_000)
        found = {name: rooms[room_id] for name, rooms in answer.get("rooms", {}).items() if room_id in rooms}
        if part in found:
            assert list(found) == [part]
            return found[part]
        since = answer["next_batch"]
    raise AssertionError(f"{room_id} does not appear in {part}")


async def parts(client: Client, room_id: str) -> list[str]:
    """Where a first sync has the room."""
    rooms = (await sync(client)).get("rooms", {})
    return [name for name, found in rooms.items() if room_id in found]


async def outside_of(pair: Pair, user: Client) -> list[str]:
    """Where the far server's database has a user's membership from outside that counts, as for a new process."""
    async with pair.far.application.database.read() as tx:
        return list(await outside_memberships.of_user(tx, UserID(user.user_id)))


async def test_an_invite_is_taken_back(pair: Pair) -> None:
    alice, bob = await people(pair)
    room_id = await create_room(alice, name="Lobby")
    await invite(alice, room_id, bob)
    state = (await told(bob, room_id, "invite"))["invite_state"]["events"]
    assert {"m.room.create", "m.room.name", "m.room.member"} <= {event["type"] for event in state}
    token = (await sync(bob))["next_batch"]

    await kick(alice, room_id, bob)
    left = await told(bob, room_id, "leave", token)
    assert left["timeline"]["events"][0]["sender"] == alice.user_id
    assert await parts(bob, room_id) == []


async def test_an_invite_is_rejected(pair: Pair) -> None:
    alice, bob = await people(pair)
    room_id = await create_room(alice)
    await invite(alice, room_id, bob)
    token = (await sync(bob))["next_batch"]

    path = f"/v3/rooms/{quote(room_id)}/forget"
    assert (await bob.post(path)).body["errcode"] == "M_UNKNOWN"
    await leave(bob, room_id)
    await told(bob, room_id, "leave", token)
    assert await parts(bob, room_id) == []
    assert await membership_in(pair.near, room_id, bob.user_id) == "leave"
    with_left: dict[str, Any] = {"filter": {"room": {"include_leave": True}}}
    assert room_id in (await sync(bob, **with_left))["rooms"]["leave"]
    await bob.ok("POST", path, {})
    assert room_id not in (await sync(bob, **with_left)).get("rooms", {}).get("leave", {})
    assert (await bob.post(path)).status == 404


async def test_a_knock_is_answered_by_an_invite(pair: Pair) -> None:
    alice, bob = await people(pair)
    room_id = await create_room(alice, name="Lobby")
    await put_state(alice, room_id, "m.room.join_rules", {"join_rule": "knock"})
    await knock(bob, room_id, pair)
    assert await membership_in(pair.near, room_id, bob.user_id) == "knock"
    assert await parts(bob, room_id) == ["knock"]
    token = (await sync(bob))["next_batch"]

    await invite(alice, room_id, bob)
    await told(bob, room_id, "invite", token)
    assert await parts(bob, room_id) == ["invite"]
    await join(bob, room_id)
    assert await parts(bob, room_id) == ["join"]
    assert await membership_in(pair.near, room_id, bob.user_id) == "join"


async def test_a_knock_is_turned_down(pair: Pair) -> None:
    alice, bob = await people(pair)
    room_id = await create_room(alice)
    await put_state(alice, room_id, "m.room.join_rules", {"join_rule": "knock"})
    await knock(bob, room_id, pair)
    token = (await sync(bob))["next_batch"]

    await kick(alice, room_id, bob)
    await told(bob, room_id, "leave", token)
    assert await parts(bob, room_id) == []


async def test_who_left_comes_back_by_an_invite(pair: Pair) -> None:
    alice, bob = await people(pair)
    room_id = await create_room(alice)
    await invite(alice, room_id, bob)
    await join(bob, room_id)
    await leave(bob, room_id)
    for _ in range(50):
        if await membership_in(pair.near, room_id, bob.user_id) == "leave":
            break
        await sync(alice, timeout=100)
    token = (await sync(bob))["next_batch"]

    await invite(alice, room_id, bob)
    await told(bob, room_id, "invite", token)
    assert await parts(bob, room_id) == ["invite"]
    token = (await sync(bob))["next_batch"]
    assert await outside_of(pair, bob) == [room_id]
    await join(bob, room_id)
    await told(bob, room_id, "join", token)
    assert await parts(bob, room_id) == ["join"]
    assert await outside_of(pair, bob) == []


async def test_an_invite_outlives_that_others_of_our_server_come_in(pair: Pair) -> None:
    alice, bob = await people(pair)
    carol = await pair.far.register("carol")
    room_id = await create_room(alice)
    await invite(alice, room_id, bob)
    await invite(alice, room_id, carol)
    await join(carol, room_id)

    assert await parts(bob, room_id) == ["invite"]
    token = (await sync(bob))["next_batch"]
    await leave(bob, room_id)
    await told(bob, room_id, "leave", token)
    assert await parts(bob, room_id) == []


async def test_an_invite_is_rejected_when_the_others_of_our_server_have_left(pair: Pair) -> None:
    alice, bob = await people(pair)
    carol = await pair.far.register("carol")
    room_id = await create_room(alice)
    await invite(alice, room_id, bob)
    await invite(alice, room_id, carol)
    await join(carol, room_id)
    await leave(carol, room_id)
    token = (await sync(bob))["next_batch"]

    await leave(bob, room_id)
    await told(bob, room_id, "leave", token)
    assert await parts(bob, room_id) == []
    assert await membership_in(pair.near, room_id, bob.user_id) == "leave"
