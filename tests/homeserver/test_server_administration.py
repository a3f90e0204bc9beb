"""Locking, suspending, whois, registration by shared secret (Client-Server API, "Server Administration")."""

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from homeserver.config import Registration, RegistrationMode, Secret
from tests.client import PASSWORD, Answer, Client, Server, quote, unique
from tests.servers import running

SECRET = "a secret of some length"


@pytest_asyncio.fixture(scope="session")
async def secret_server(databases: Callable[[str], str]) -> AsyncIterator[Server]:
    """A server on which who knows the secret makes accounts."""
    registration = Registration(mode=RegistrationMode.OPEN, shared_secret=Secret(SECRET))
    async with running(databases("secret"), registration=registration) as server:
        yield server


async def register_by_secret(server: Server, name: str, *, secret: str = SECRET, **fields: Any) -> Answer:
    nonce = (await server.anonymous.get("/_synapse/admin/v1/register")).body["nonce"]
    admin = "admin" if fields.get("admin") else "notadmin"
    mac = hmac.new(secret.encode(), "\0".join((nonce, name, PASSWORD, admin)).encode(), hashlib.sha1).hexdigest()
    body = {"nonce": nonce, "username": name, "password": PASSWORD, "mac": mac, **fields}
    return await server.anonymous.post("/_synapse/admin/v1/register", body)


@pytest_asyncio.fixture
async def admin(secret_server: Server) -> Client:
    """An administrator."""
    answer = await register_by_secret(secret_server, unique("admin"), admin=True)
    return secret_server.anonymous.logged_in(answer.body)


@pytest_asyncio.fixture
async def user(secret_server: Server) -> Client:
    """A user of the same server."""
    return await secret_server.register()


async def test_who_knows_the_secret_registers(secret_server: Server) -> None:
    name = unique()

    status, body = await register_by_secret(secret_server, name)

    assert (status, body["user_id"]) == (200, f"@{name}:{secret_server.name}")
    assert body.keys() >= {"access_token", "device_id", "home_server"}
    client = secret_server.anonymous.logged_in(body)
    assert (await client.ok("GET", "/v3/account/whoami"))["user_id"] == body["user_id"]
    assert (await client.get(f"/_synapse/admin/v1/users/{quote(client.user_id)}/admin")).status == 403


async def test_who_does_not_know_the_secret_does_not(secret_server: Server, server: Server) -> None:
    assert (await register_by_secret(secret_server, unique(), secret="a guess")).status == 403
    assert (await register_by_secret(secret_server, unique(), nonce="made.up")).status == 400
    assert (await register_by_secret(secret_server, unique(), mac="\u0100")).status == 403
    assert (await register_by_secret(secret_server, unique(), mac=5)).status == 400
    assert (await server.anonymous.get("/_synapse/admin/v1/register")).status == 400


async def test_a_mac_does_not_make_an_administrator_of_somebody_else(secret_server: Server) -> None:
    name = unique()
    nonce = (await secret_server.anonymous.get("/_synapse/admin/v1/register")).body["nonce"]
    mac = hmac.new(SECRET.encode(), f"{nonce}\0{name}\0{PASSWORD}\0notadmin".encode(), hashlib.sha1).hexdigest()
    body = {"nonce": nonce, "username": name, "password": PASSWORD, "mac": mac, "admin": True}

    assert (await secret_server.anonymous.post("/_synapse/admin/v1/register", body)).status == 403


async def test_a_locked_account_can_only_log_out(admin: Client, user: Client) -> None:
    path = f"/v1/admin/lock/{quote(user.user_id)}"
    assert (await admin.put(path, {"locked": True})).body == {"locked": True}
    assert (await admin.get(path)).body == {"locked": True}

    status, error = await user.get("/v3/account/whoami")
    assert (status, error["errcode"], error["soft_logout"]) == (401, "M_USER_LOCKED", True)
    login = {"type": "m.login.password", "user": user.user_id, "password": user.password}
    status, error = await user.anonymous().post("/v3/login", login)
    assert (status, error["errcode"]) == (401, "M_USER_LOCKED")

    assert (await admin.put(path, {"locked": False})).status == 200
    assert (await user.get("/v3/account/whoami")).status == 200
    await admin.put(path, {"locked": True})
    assert (await user.post("/v3/logout")).status == 200


async def test_an_account_is_suspended_and_no_longer(admin: Client, user: Client) -> None:
    path = f"/v1/admin/suspend/{quote(user.user_id)}"
    assert (await admin.get(path)).body == {"suspended": False}

    assert (await admin.put(path, {"suspended": True})).body == {"suspended": True}

    assert (await admin.get(path)).body == {"suspended": True}
    assert (await user.get("/v3/account/whoami")).status == 200
    profile = f"/v3/profile/{quote(user.user_id)}/displayname"
    for answer in (await user.put(profile, {"displayname": "x"}), await user.delete(profile)):
        assert (answer.status, answer.body["errcode"]) == (403, "M_USER_SUSPENDED")
    assert (await admin.put(path, {"suspended": False})).body == {"suspended": False}
    assert (await user.put(profile, {"displayname": "x"})).status == 200


@pytest.mark.parametrize("what", ["lock", "suspend"])
async def test_who_may_lock_and_suspend_whom(secret_server: Server, admin: Client, user: Client, what: str) -> None:
    other_admin = (await register_by_secret(secret_server, unique(), admin=True)).body["user_id"]
    gone = await secret_server.register()
    await gone.ok("POST", "/v3/account/deactivate", {"auth": gone.password_auth()})
    body = {"locked": True, "suspended": True}
    for client, target, status, errcode in (
        (user, user.user_id, 403, "M_FORBIDDEN"),
        (admin, other_admin, 403, "M_FORBIDDEN"),
        (admin, admin.user_id, 403, "M_FORBIDDEN"),
        (admin, "@nobody-here:hearth.test", 404, "M_NOT_FOUND"),
        (admin, gone.user_id, 404, "M_NOT_FOUND"),
        (admin, "@somebody:elsewhere.test", 400, "M_INVALID_PARAM"),
        (admin, "nonsense", 400, "M_INVALID_PARAM"),
    ):
        answer = await client.put(f"/v1/admin/{what}/{quote(target)}", body)
        assert (answer.status, answer.body["errcode"]) == (status, errcode), target
    path = f"/v1/admin/{what}/{quote(user.user_id)}"
    assert (await admin.put(path, {})).body["errcode"] == "M_MISSING_PARAM"
    assert (await admin.put(path, {"locked": 1, "suspended": "x"})).body["errcode"] == "M_BAD_JSON"


async def test_administrators_are_told_that_they_may(admin: Client) -> None:
    capabilities = (await admin.ok("GET", "/v3/capabilities"))["capabilities"]

    assert capabilities["m.account_moderation"] == {"suspend": True, "lock": True}


async def test_whois_is_for_oneself_and_administrators(secret_server: Server, admin: Client, user: Client) -> None:
    path = f"/v3/admin/whois/{quote(user.user_id)}"
    await user.request("GET", "/v3/account/whoami", headers={"User-Agent": "teapot/1.0"})

    for client in (user, admin):
        body = await client.ok("GET", path, headers={"User-Agent": "teapot/1.0"})
        (connection,) = body["devices"][user.device_id]["sessions"][0]["connections"]
        assert (body["user_id"], connection["ip"], connection["user_agent"]) == (
            user.user_id,
            "127.0.0.1",
            "teapot/1.0",
        )
        assert connection["last_seen"] > 0
    other = await secret_server.register()
    status, error = await other.get(path)
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_administrators_make_registration_tokens(admin: Client, user: Client) -> None:
    base = "/_synapse/admin/v1/registration_tokens"
    assert (await user.post(f"{base}/new")).status == 403

    made = await admin.ok("POST", f"{base}/new", {"uses_allowed": 3, "length": 12})

    assert (len(made["token"]), made["uses_allowed"], made["completed"]) == (12, 3, 0)
    assert made in (await admin.ok("GET", base))["registration_tokens"]
    assert (await admin.post(f"{base}/new", {"token": made["token"]})).status == 400
    assert (await admin.post(f"{base}/new", {"token": "a b"})).status == 400
    assert (await admin.delete(f"{base}/{made['token']}")).status == 200
    assert (await admin.delete(f"{base}/{made['token']}")).status == 404
