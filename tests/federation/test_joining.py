"""Our users join rooms of another server: two whole servers."""

import asyncio
from typing import Any

import pytest

from tests.client import Answer, Client, quote
from tests.federation.servers import Pair
from tests.homeserver.syncs import sync, token
from tests.protocol.builders import VERSIONS
from tests.rooms import send


async def create(client: Client, **options: Any) -> str:
    """A room that anybody may join."""
    room: str = (await client.ok("POST", "/v3/createRoom", {"preset": "public_chat", **options}))["room_id"]
    return room


async def join(client: Client, room: str, *via: str, name: str = "via") -> Answer:
    params = [(name, server) for server in via]
    return await client.request("POST", f"/v3/join/{quote(room)}", {}, params=params)


async def joined(client: Client, room: str, *via: str) -> None:
    answer = await join(client, room, *via)
    assert answer.status == 200, answer.body
    assert answer.body["room_id"] == room


async def state_of(client: Client, room: str) -> dict[tuple[str, str], Any]:
    events = await client.ok("GET", f"/v3/rooms/{quote(room)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


async def until_synced(client: Client, room: str, event_id: str, since: str = "") -> Any:
    """The room's part of the sync that has the event in its timeline."""
    async with asyncio.timeout(15):
        while True:
            synced = await client.ok(
                "GET", "/v3/sync", params={"timeout": "5000", **({"since": since} if since else {})}
            )
            since = synced["next_batch"]
            found = synced["rooms"]["join"].get(room) if "rooms" in synced and "join" in synced["rooms"] else None
            if found and event_id in [event["event_id"] for event in found["timeline"]["events"]]:
                return found


async def until_members(client: Client, room: str, wanted: set[str]) -> None:
    """Wait until just these are joined."""
    async with asyncio.timeout(15):
        members: set[str] = set()
        while members != wanted:
            answer = await client.ok("GET", f"/v3/rooms/{quote(room)}/joined_members")
            members = set(answer["joined"])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_user_joins_a_room_of_another_server(pair: Pair, version: str) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, room_version=version, name="Far away")

    await joined(bob, room, pair.near.name)

    assert await state_of(bob, room) == await state_of(alice, room)
    synced = (await bob.get("/v3/sync")).body["rooms"]["join"][room]
    assert synced["summary"]["m.joined_member_count"] == 2
    names = [event["content"]["name"] for event in synced["state"]["events"] if event["type"] == "m.room.name"]
    assert names == ["Far away"]
    await until_synced(alice, room, await send(bob, room, "hello"))


async def test_who_waits_in_a_sync_gets_the_room_with_its_state(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, name="Far away")
    since = await token(bob)

    waiting = asyncio.create_task(sync(bob, since, timeout=10_000))
    await joined(bob, room, pair.near.name)

    synced = (await waiting)["rooms"]["join"][room]
    state = {(event["type"], event["state_key"]) for event in synced["state"]["events"]}
    assert ("m.room.name", "") in state
    assert ("m.room.member", alice.user_id) in state
    assert [event["state_key"] for event in synced["timeline"]["events"]] == [bob.user_id]


async def test_whoever_knows_the_alias_or_an_older_word_for_via_gets_in(pair: Pair) -> None:
    alice, bob, carol = [await server.register() for server in (pair.near, pair.far, pair.far)]
    room = await create(alice)

    assert (await join(bob, room, pair.near.name, name="server_name")).status == 200
    assert (await join(carol, room)).status == 200  # the server is in the room by now


async def test_several_users_who_join_at_once_all_get_in_by_one_join_from_outside(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    users = [await pair.far.register("user") for _ in range(4)]
    room = await create(alice)

    answers = await asyncio.gather(*(join(user, room, pair.near.name) for user in (*users, users[0])))

    assert [answer.status for answer in answers] == [200] * 5
    members = (await users[0].get(f"/v3/rooms/{quote(room)}/joined_members")).body["joined"]
    assert set(members) == {alice.user_id, *(user.user_id for user in users)}


async def test_a_room_that_no_server_knows_is_not_found(pair: Pair) -> None:
    bob = await pair.far.register("bob")

    assert (await join(bob, "!nowhere:" + pair.near.name)).status == 404
    assert (await join(bob, "!" + "x" * 43, pair.near.name)).status == 404
    assert (await join(bob, "!" + "x" * 43)).status == 404
    unreachable = await join(bob, "!" + "x" * 43, "127.0.0.1:1")
    assert (unreachable.status, unreachable.body["errcode"]) == (502, "M_UNKNOWN")


async def test_who_may_not_join_is_told_so(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, preset="private_chat")

    answer = await join(bob, room, "127.0.0.1:1", pair.near.name)

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    assert (await bob.get(f"/v3/rooms/{quote(room)}/state")).status in (403, 404)


async def test_a_room_that_everybody_here_left_is_joined_anew_beyond_a_gap(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, name="before")
    await joined(bob, room, pair.near.name)
    await until_synced(alice, room, await send(bob, room, "first"))
    left = await bob.post(f"/v3/rooms/{quote(room)}/leave")
    assert left.status == 200
    since = (await bob.get("/v3/sync")).body["next_batch"]
    await until_members(alice, room, {alice.user_id})
    await send(alice, room, "unseen")
    await alice.put(f"/v3/rooms/{quote(room)}/state/m.room.name", {"name": "after"})
    await alice.put(f"/v3/rooms/{quote(room)}/state/m.room.topic", {"topic": "new"})

    await joined(bob, room, pair.near.name)

    assert await state_of(bob, room) == await state_of(alice, room)
    synced = (await bob.get("/v3/sync", since=since)).body["rooms"]["join"][room]
    told = {(event["type"], event["state_key"]): event["content"] for event in synced["state"]["events"]}
    assert told["m.room.name", ""] == {"name": "after"}
    await until_synced(alice, room, await send(bob, room, "again"))
    await until_synced(bob, room, await send(alice, room, "welcome"))


async def test_a_restricted_room_is_joined_with_the_signature_of_a_server_in_it(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    lobby = await create(alice)
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    join_rules = {"type": "m.room.join_rules", "state_key": "", "content": rule}
    room = await create(alice, initial_state=[join_rules])

    refused = await join(bob, room, pair.near.name)
    await joined(bob, lobby, pair.near.name)
    await until_members(alice, lobby, {alice.user_id, bob.user_id})
    await joined(bob, room, pair.near.name)

    assert (refused.status, refused.body["errcode"]) == (403, "M_FORBIDDEN")
    path = f"/v3/rooms/{quote(room)}/state/m.room.member/{quote(bob.user_id)}"
    assert (await bob.get(path)).body["join_authorised_via_users_server"] == alice.user_id


async def test_where_none_of_ours_may_let_somebody_in_another_server_does(pair: Pair) -> None:
    alice, bob, carol = [await server.register() for server in (pair.near, pair.far, pair.far)]
    lobby = await create(alice)
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    join_rules = {"type": "m.room.join_rules", "state_key": "", "content": rule}
    room = await create(alice, initial_state=[join_rules], power_level_content_override={"invite": 50})
    for user in (bob, carol):
        await joined(user, lobby, pair.near.name)
    await joined(bob, room, pair.near.name)

    await joined(carol, room)

    assert await state_of(carol, room) == await state_of(alice, room)
