"""A server that a room's access list shuts out hears and says nothing there any more."""

from typing import Any

from tests.interop.border import Border
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room


def denying(person: Person) -> dict[str, Any]:
    """An access list without their server, which it names with a wildcard in its first letter."""
    host = person.server_name.partition(":")[0]
    return {"allow": ["*"], "deny": [f"?{host[1:]}", "*.example"], "allow_ip_literals": True}


async def test_a_server_that_is_shut_out_neither_hears_nor_says_anything(
    border: Border, host: Person, guest: Person
) -> None:
    room_id = await a_shared_room(host, guest)
    other = await a_shared_room(host, guest)
    carol = await border.somebody_third()

    await host.set_state(room_id, "m.room.server_acl", denying(guest))
    await carol.join(room_id, via=[host])
    await host.sees_member(room_id, carol)
    unheard = await host.says(room_id, "without them")
    await carol.sees(room_id, unheard)
    status, answer = await guest.try_to_say(room_id, "let me in")
    await guest.sees(other, await host.says(other, "this arrives"))
    await host.sees(other, await guest.says(other, "so does this"))

    if host.is_ours:  # Synapse still tells them
        assert "without them" not in await guest.texts(room_id)
    assert "let me in" not in await host.texts(room_id)
    assert status in (200, 403), answer


async def test_a_server_that_is_shut_out_cannot_join(host: Person, guest: Person) -> None:
    acl = {"type": "m.room.server_acl", "state_key": "", "content": denying(guest)}
    room_id = await host.create_room(initial_state=[acl])

    status, _ = await guest.try_join(room_id, via=[host])

    assert status in (403, 404, 502)
    assert await host.joined_members(room_id) == {host.user_id}


async def test_servers_named_by_an_address_are_shut_out(alice: Person, bob: Person) -> None:
    content = {"allow": ["*"], "deny": [], "allow_ip_literals": False}
    room_id = await bob.create_room(initial_state=[{"type": "m.room.server_acl", "state_key": "", "content": content}])

    assert (await alice.try_join(room_id, via=[bob])).status in (403, 404, 502)
