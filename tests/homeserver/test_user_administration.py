"""Accounts as administrators manage them."""

from tests.client import PASSWORD, Client, Server, quote, unique
from tests.homeserver.test_login import is_logged_in
from tests.rooms import create_room

ONE, TWO = "/_synapse/admin/v1", "/_synapse/admin/v2/users"


async def test_an_administrator_makes_an_account(server: Server, admin: Client) -> None:
    user_id = f"@{unique()}:{server.name}"

    made = await admin.put(f"{TWO}/{quote(user_id)}", {"password": PASSWORD, "displayname": "Made", "admin": False})

    assert (made.status, made.body["name"], made.body["displayname"]) == (201, user_id, "Made")
    login = {"type": "m.login.password", "user": user_id, "password": PASSWORD}
    assert (await server.anonymous.post("/v3/login", login)).status == 200
    assert (await admin.get(f"{TWO}/{quote(user_id)}")).body == made.body


async def test_an_administrator_changes_an_account(server: Server, admin: Client, alice: Client) -> None:
    path = f"{TWO}/{quote(alice.user_id)}"

    changed = await admin.put(path, {"admin": True, "displayname": "Boss"})

    assert (changed.status, changed.body["admin"], changed.body["displayname"]) == (200, True, "Boss")
    assert (await alice.get(f"{ONE}/users/{quote(admin.user_id)}/admin")).body == {"admin": True}
    assert (await admin.put(f"{ONE}/users/{quote(alice.user_id)}/admin", {"admin": False})).status == 200
    assert (await alice.get(f"{ONE}/users/{quote(admin.user_id)}/admin")).status == 403
    await admin.ok("PUT", path, {"locked": True})
    assert (await alice.get("/v3/account/whoami")).body["errcode"] == "M_USER_LOCKED"


async def test_a_reset_password_ends_sessions(admin: Client, alice: Client) -> None:
    path = f"{ONE}/reset_password/{quote(alice.user_id)}"
    assert (await admin.post(path, {"new_password": "a new password", "logout_devices": False})).status == 200
    assert await is_logged_in(alice)

    assert (await admin.post(path, {"new_password": "another password"})).status == 200

    assert not await is_logged_in(alice)
    assert (await alice.login(password="another password")).user_id == alice.user_id


async def test_an_administrator_deactivates_an_account(admin: Client, alice: Client) -> None:
    assert (await admin.post(f"{ONE}/deactivate/{quote(alice.user_id)}", {"erase": True})).status == 200

    assert not await is_logged_in(alice)
    described = await admin.ok("GET", f"{TWO}/{quote(alice.user_id)}")
    assert (described["deactivated"], described["erased"]) == (True, True)
    again = await admin.put(f"{TWO}/{quote(alice.user_id)}", {"deactivated": False})
    assert (again.status, again.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_accounts_are_listed_by_pages(server: Server, admin: Client) -> None:
    prefix = unique("listed")
    for letter in "abc":
        await server.anonymous.register_as(f"{prefix}-{letter}")

    first = await admin.ok("GET", TWO, params={"name": prefix, "limit": "2"})
    second = await admin.ok("GET", TWO, params={"name": prefix, "limit": "2", "from": first["next_token"]})

    names = [each["name"] for page in (first, second) for each in page["users"]]
    assert names == [f"@{prefix}-{letter}:{server.name}" for letter in "abc"]
    assert (first["total"], "next_token" in second) == (3, False)
    assert (await admin.ok("GET", TWO, params={"name": prefix, "admins": "true"}))["total"] == 0


async def test_devices_and_rooms_of_an_account(admin: Client, alice: Client) -> None:
    phone, room_id = await alice.login(), await create_room(alice)
    devices = await admin.ok("GET", f"{TWO}/{quote(alice.user_id)}/devices")
    assert {device["device_id"] for device in devices["devices"]} == {alice.device_id, phone.device_id}

    assert (await admin.delete(f"{TWO}/{quote(alice.user_id)}/devices/{phone.device_id}")).status == 200

    assert [await is_logged_in(client) for client in (alice, phone)] == [True, False]
    rooms = await admin.ok("GET", f"{ONE}/users/{quote(alice.user_id)}/joined_rooms")
    assert rooms == {"joined_rooms": [room_id], "total": 1}


async def test_an_administrator_logs_in_as_a_user(server: Server, admin: Client, alice: Client) -> None:
    token = (await admin.ok("POST", f"{ONE}/users/{quote(alice.user_id)}/login", {}))["access_token"]

    other = server.anonymous.logged_in({"user_id": "", "device_id": "", "access_token": token})
    assert (await other.ok("GET", "/v3/account/whoami"))["user_id"] == alice.user_id
    assert (await admin.post(f"{ONE}/users/{quote(admin.user_id)}/login")).status == 400


async def test_administrators_do_not_lock_themselves_out(admin: Client) -> None:
    for body in ({"admin": False}, {"locked": True}, {"deactivated": True}):
        answer = await admin.put(f"{TWO}/{quote(admin.user_id)}", body)
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert await is_logged_in(admin)


async def test_who_is_no_account_and_what_is_no_value(admin: Client) -> None:
    for path, status in (("@nobody-here:hearth.test", 404), ("@x:elsewhere.test", 400), ("nonsense", 400)):
        assert (await admin.get(f"{TWO}/{quote(path)}")).status == status
    name = f"@{unique()}:hearth.test"
    for body in ({"admin": 1}, {"password": "short"}, {"displayname": 5}):
        assert (await admin.put(f"{TWO}/{quote(name)}", body)).status == 400
    assert (await admin.put(f"{TWO}/{quote('@A b:hearth.test')}", {})).body["errcode"] == "M_INVALID_USERNAME"


async def test_users_are_no_administrators(alice: Client) -> None:
    for method, path in (
        ("GET", TWO),
        ("GET", f"{TWO}/{quote(alice.user_id)}"),
        ("PUT", f"{TWO}/{quote(alice.user_id)}"),
        ("GET", f"{TWO}/{quote(alice.user_id)}/devices"),
        ("PUT", f"{ONE}/users/{quote(alice.user_id)}/admin"),
        ("POST", f"{ONE}/users/{quote(alice.user_id)}/login"),
        ("POST", f"{ONE}/deactivate/{quote(alice.user_id)}"),
        ("POST", f"{ONE}/reset_password/{quote(alice.user_id)}"),
        ("GET", f"{ONE}/server_version"),
    ):
        answer = await alice.request(method, path, {})
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN"), path
        assert (await alice.anonymous().request(method, path, {})).status == 401
