"""Registration (Client-Server API, "Account registration")."""

from tests.clients import PASSWORD, Client, Server, unique


async def test_registering_with_a_dummy_stage_logs_in(server: Server) -> None:
    name = unique()

    status, body = await server.anonymous.post(
        "/v3/register", {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    )

    assert status == 200
    assert body["user_id"] == f"@{name}:{server.name}"
    status, whoami = await server.anonymous.logged_in(body).get("/v3/account/whoami")
    assert (status, whoami) == (
        200,
        {"user_id": body["user_id"], "device_id": body["device_id"], "is_guest": False},
    )


async def test_a_user_logs_in_with_the_password(alice: Client) -> None:
    phone = await alice.login(initial_device_display_name="phone")

    assert (phone.user_id, phone.device_id != alice.device_id) == (alice.user_id, True)
    assert (await phone.get("/v3/account/whoami")).status == 200
