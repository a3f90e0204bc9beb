"""Password, deactivation, whoami (Client-Server API, "Account management")."""

from tests.clients import Client, Server
from tests.homeserver.test_login import is_logged_in

NEW = "a different password"


async def test_changing_the_password_needs_the_old_one(alice: Client) -> None:
    status, challenge = await alice.post("/v3/account/password", {"new_password": NEW})

    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}])
    auth = {**alice.password_auth(challenge["session"]), "password": "wrong"}
    status, refused = await alice.post("/v3/account/password", {"new_password": NEW, "auth": auth})
    assert (status, refused["errcode"], refused["session"]) == (401, "M_FORBIDDEN", challenge["session"])
    auth = alice.password_auth(challenge["session"])
    assert (await alice.post("/v3/account/password", {"new_password": NEW, "auth": auth})).body == {}


async def test_a_new_password_ends_the_other_sessions(alice: Client) -> None:
    phone = await alice.login()

    await alice.ok("POST", "/v3/account/password", {"new_password": NEW, "auth": alice.password_auth()})

    assert [await is_logged_in(client) for client in (alice, phone)] == [True, False]
    old = {"type": "m.login.password", "user": alice.user_id, "password": alice.password}
    assert (await alice.anonymous().post("/v3/login", old)).status == 403
    assert (await alice.login(password=NEW)).user_id == alice.user_id


async def test_a_new_password_may_spare_the_other_sessions(alice: Client) -> None:
    phone = await alice.login()
    body = {"new_password": NEW, "logout_devices": False, "auth": alice.password_auth()}

    await alice.ok("POST", "/v3/account/password", body)

    assert [await is_logged_in(client) for client in (alice, phone)] == [True, True]


async def test_somebody_elses_password_proves_nothing(alice: Client, bob: Client) -> None:
    status, error = await alice.post("/v3/account/password", {"new_password": NEW, "auth": bob.password_auth()})

    assert (status, error["errcode"]) == (401, "M_FORBIDDEN")


async def test_an_authentication_serves_its_own_user_alone(alice: Client, bob: Client) -> None:
    _, challenge = await alice.post("/v3/account/password", {"new_password": NEW})

    status, answer = await bob.post("/v3/account/password", {"auth": {"session": challenge["session"]}})

    assert (status, answer["errcode"]) == (400, "M_MISSING_PARAM")


async def test_a_weak_password_is_refused_before_any_stage(alice: Client) -> None:
    status, error = await alice.post("/v3/account/password", {"new_password": "short"})

    assert (status, error["errcode"]) == (400, "M_WEAK_PASSWORD")


async def test_a_deactivated_account_is_over(server: Server, alice: Client) -> None:
    phone = await alice.login()
    assert (await alice.post("/v3/account/deactivate")).status == 401

    status, body = await alice.post("/v3/account/deactivate", {"auth": alice.password_auth()})

    assert (status, body) == (200, {"id_server_unbind_result": "no-support"})
    assert [await is_logged_in(client) for client in (alice, phone)] == [False, False]
    login = {"type": "m.login.password", "user": alice.user_id, "password": alice.password}
    status, error = await server.anonymous.post("/v3/login", login)
    assert (status, error["errcode"]) in ((403, "M_FORBIDDEN"), (403, "M_USER_DEACTIVATED"))
    name = alice.user_id[1:].partition(":")[0]
    status, error = await server.anonymous.get("/v3/register/available", username=name)
    assert (status, error["errcode"]) == (400, "M_USER_IN_USE")


async def test_there_are_no_third_party_identifiers(alice: Client) -> None:
    assert (await alice.get("/v3/account/3pid")).body == {"threepids": []}
