"""Password, deactivation, whoami (Client-Server API, "Account management")."""

import psycopg
from psycopg import sql

from tests.client import Client, Server
from tests.homeserver.test_login import is_logged_in
from tests.servers import running

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

    assert (status, body) == (200, {"id_server_unbind_result": "success"})
    assert [await is_logged_in(client) for client in (alice, phone)] == [False, False]
    login = {"type": "m.login.password", "user": alice.user_id, "password": alice.password}
    status, error = await server.anonymous.post("/v3/login", login)
    assert (status, error["errcode"]) in ((403, "M_FORBIDDEN"), (403, "M_USER_DEACTIVATED"))
    name = alice.user_id[1:].partition(":")[0]
    status, error = await server.anonymous.get("/v3/register/available", username=name)
    assert (status, error["errcode"]) == (400, "M_USER_IN_USE")


async def test_what_is_bound_nowhere_is_not_unbound(alice: Client) -> None:
    assert (await alice.get("/v3/account/3pid")).body == {"threepids": []}
    for end in ("delete", "unbind"):
        status, body = await alice.post(f"/v3/account/3pid/{end}", {"medium": "email", "address": "a@hearth.test"})
        assert (status, body) == (200, {"id_server_unbind_result": "no-support"})
        assert (await alice.post(f"/v3/account/3pid/{end}", {})).body["errcode"] == "M_MISSING_PARAM"


async def test_deactivating_ends_keys_and_erasing_ends_data(conninfo: str, connection: psycopg.Connection) -> None:
    tables = ("cross_signing_keys", "key_backup_keys", "devices", "sessions", "profiles", "account_data", "filters")
    async with running(conninfo) as server:
        alice = await server.register()
        for statement in (
            "INSERT INTO cross_signing_keys (user_id, usage, public_key, json) VALUES (%s, 'master', 'key', '{}')",
            "INSERT INTO account_data (user_id, room, type, content, position) VALUES (%s, 0, 'a', '{}', 1)",
            "INSERT INTO profiles (user_id, fields) VALUES (%s, '{}')",
            "INSERT INTO filters (user_id, filter, json) VALUES (%s, 0, '{}')",
        ):
            connection.execute(statement, (alice.user_id,))

        await alice.ok("POST", "/v3/account/deactivate", {"erase": True, "auth": alice.password_auth()})

    for table in tables:
        assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone() == (
            0,
        ), table
    assert connection.execute("SELECT is_erased, password_hash FROM users").fetchone() == (True, None)
