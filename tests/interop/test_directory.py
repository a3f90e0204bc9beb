"""Rooms of the other server: in its list, by alias."""

from tests.client import quote, unique
from tests.interop.border import Border
from tests.interop.people import Person


async def test_the_list_of_public_rooms_is_read(border: Border, host: Person, guest: Person) -> None:
    word = unique("quokka")
    for number in range(3):
        await host.create_room(name=f"{word} {number}", visibility="public", topic="marsupials")

    path, server = "/publicRooms", {"server": host.server_name}
    expected = {f"{word} {number}" for number in range(3)}

    async def are_found() -> bool:
        found = await guest.ok("POST", path, {"filter": {"generic_search_term": word}}, params=server)
        return {room["name"] for room in found["chunk"]} == expected

    await border.eventually(are_found)  # Synapse lists them after a while
    pages = [await guest.ok("GET", path, params={**server, "limit": "2"})]
    while "next_batch" in pages[-1]:
        pages.append(await guest.ok("GET", path, params={**server, "limit": "2", "since": pages[-1]["next_batch"]}))

    shown = [room for page in pages for room in page["chunk"]]
    assert len({room["room_id"] for room in shown}) == len(shown)
    ours = [room for room in shown if room.get("name") in expected]
    assert len(ours) == len(expected)
    assert all(room["topic"] == "marsupials" and room["num_joined_members"] == 1 for room in ours)
    await guest.join(ours[0]["room_id"], via=[host])


async def test_a_guest_joins_by_alias(host: Person, guest: Person) -> None:
    name = host.user_id[1:].partition(":")[0]
    room_id = await host.create_room(room_alias_name=f"hall-{name}")

    assert await guest.join(f"#hall-{name}:{host.server_name}") == room_id

    await host.sees_member(room_id, guest)
    event_id = await host.says(room_id, "welcome")
    await guest.sees(room_id, event_id)


async def test_an_alias_of_the_other_server_is_resolved(host: Person, guest: Person) -> None:
    alias = f"#{unique('hall')}:{host.server_name}"
    room_id = await host.create_room(room_alias_name=alias[1:].partition(":")[0])

    found = await guest.ok("GET", f"/directory/room/{quote(alias)}")
    status, body = await guest.client.get(f"/v3/directory/room/{quote('#none:' + host.server_name)}")

    assert found["room_id"] == room_id
    assert host.server_name in found["servers"]
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")
