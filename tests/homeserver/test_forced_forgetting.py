"""A server whose users forget rooms when they leave them ("`m.forget_forced_upon_leave` capability")."""

import asyncio

from homeserver.followers.forced_forgetting import NAME
from tests.client import Client, Server, quote
from tests.homeserver.syncs import part, sync, token
from tests.rooms import create_room, join, send
from tests.servers import running


async def forgets(client: Client) -> object:
    """What the server says of it."""
    return (await client.ok("GET", "/v3/capabilities"))["capabilities"]["m.forget_forced_upon_leave"]


async def can_read(client: Client, room_id: str) -> bool:
    """Whether the room's history can be had."""
    answer = await client.get(f"/v3/rooms/{quote(room_id)}/messages", dir="b")
    assert answer.status in (200, 403)
    return answer.status == 200


async def test_what_is_left_is_forgotten(conninfo: str) -> None:
    async with running(conninfo, forget_rooms_on_leave=True) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        assert await forgets(alice) == {"enabled": True}
        for how in ("leave", "kick", "ban"):
            room_id = await create_room(alice, preset="public_chat")
            await join(bob, room_id)
            before = await token(bob)
            who, body = (bob, {}) if how == "leave" else (alice, {"user_id": bob.user_id})
            await who.ok("POST", f"/v3/rooms/{quote(room_id)}/{how}", body)

            async with asyncio.timeout(20):
                while await can_read(bob, room_id):  # noqa: ASYNC110  # the server tells nobody
                    await asyncio.sleep(0.05)
            assert part(await sync(bob, before), "leave", room_id)  # other devices still hear of it
            assert not part(await sync(bob, filter={"room": {"include_leave": True}}), "leave", room_id)
            assert await can_read(alice, room_id)
            if how == "leave":
                await join(bob, room_id)
                await send(alice, room_id, "again")
                assert await can_read(bob, room_id)


async def test_what_is_left_elsewhere_is_not(server: Server, alice: Client, bob: Client) -> None:
    assert await forgets(alice) == {"enabled": False}
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})

    assert await can_read(bob, room_id)
    async with server.application.database.read() as tx:
        rows = await tx.fetch("select name from followers where name = %s", (NAME,))
    assert rows == []  # there is no cursor that would one day lead back to here
