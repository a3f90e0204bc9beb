"""What people of the other server are called."""

from tests.client import quote
from tests.interop.people import Person


async def test_a_profile_is_looked_up(host: Person, guest: Person) -> None:
    await host.ok("PUT", f"/profile/{quote(host.user_id)}/displayname", {"displayname": "Hosťka"})

    profile = await guest.ok("GET", f"/profile/{quote(host.user_id)}")
    name = await guest.ok("GET", f"/profile/{quote(host.user_id)}/displayname")
    status, body = await guest.client.get(f"/v3/profile/{quote('@nobody:' + host.server_name)}")

    assert profile["displayname"] == name["displayname"] == "Hosťka"
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


async def test_all_of_a_profile_is_told(host: Person, guest: Person) -> None:
    fields = {"avatar_url": f"mxc://{host.server_name}/face", "org.example.mood": {"now": "curious"}}
    for name, value in fields.items():
        await host.ok("PUT", f"/profile/{quote(host.user_id)}/{name}", {name: value})

    profile = await guest.ok("GET", f"/profile/{quote(host.user_id)}")

    assert fields.items() <= profile.items()
