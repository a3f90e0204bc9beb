"""Rooms and spaces of the other server, described to who is not in them."""

from typing import Any

from tests.client import quote
from tests.interop.people import Person


async def test_a_room_is_summed_up(host: Person, guest: Person) -> None:
    room_id = await host.create_room(name="Hall", topic="echo")
    closed = await host.create_room(preset="private_chat")

    told = await guest.client.get(f"/v1/room_summary/{quote(room_id)}", via=host.server_name)
    untold = await guest.client.get(f"/v1/room_summary/{quote(closed)}", via=host.server_name)

    assert told.status == 200, told
    names = ("room_id", "name", "topic", "join_rule", "num_joined_members", "world_readable")
    assert [told.body[name] for name in names] == [room_id, "Hall", "echo", "public", 1, False]
    assert untold.status in (403, 404)


async def test_a_space_in_a_space_is_walked(host: Person, guest: Person) -> None:
    space = await host.create_room(creation_content={"type": "m.space"}, name="Space", visibility="public")
    inner = await host.create_room(creation_content={"type": "m.space"}, name="Inner")
    rooms = [await host.create_room(name=f"Room {number}") for number in range(2)]
    secret = await host.create_room(preset="private_chat", name="Secret")
    for parent, child in ((space, inner), (space, rooms[0]), (inner, rooms[1]), (space, secret)):
        await host.set_state(parent, "m.space.child", {"via": [host.server_name]}, child)
    await guest.join(space, via=[host])
    # Only the space itself is on the guest's server; what is in it is asked for.
    await guest.sees_state(space, "m.space.child", rooms[0])

    hierarchy: Any = await guest.client.ok("GET", f"/v1/rooms/{quote(space)}/hierarchy")

    shown = {room["room_id"]: room.get("name") for room in hierarchy["rooms"]}
    assert shown == {space: "Space", inner: "Inner", rooms[0]: "Room 0", rooms[1]: "Room 1"}
