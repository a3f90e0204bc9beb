"""Login, refresh, logout (Client-Server API, "Legacy API", "Refreshing access tokens", "Logout")."""

import asyncio
import dataclasses
import time

import psycopg
import pytest

from federation.protocol.types import UserID
from homeserver.config import Milliseconds, Passwords, RateLimit, RateLimits, Sessions
from storage import accounts
from tests.client import Client, Server
from tests.rooms import create_room, send
from tests.servers import running


async def is_logged_in(client: Client) -> bool:
    """Whether the client's token works; if not, it must be unknown for good."""
    status, body = await client.get("/v3/account/whoami")
    if status == 200:
        return True
    assert (status, body["errcode"], body.get("soft_logout", False)) == (401, "M_UNKNOWN_TOKEN", False)
    return False


async def test_the_flows_are_listed(server: Server) -> None:
    assert (await server.anonymous.get("/v3/login")).body == {
        "flows": [
            {"type": "m.login.password"},
            {"type": "m.login.token", "get_login_token": True},
            {"type": "m.login.application_service"},
        ]
    }
    assert (await server.anonymous.get("/r0/login")).status == 200


@pytest.mark.parametrize("form", ["user ID", "localpart", "old user", "capitals"])
async def test_a_user_is_named_in_several_forms(server: Server, alice: Client, form: str) -> None:
    localpart = alice.user_id[1:].partition(":")[0]
    namings: dict[str, dict[str, object]] = {
        "user ID": {"identifier": {"type": "m.id.user", "user": alice.user_id}},
        "localpart": {"identifier": {"type": "m.id.user", "user": localpart}},
        "old user": {"user": localpart},
        "capitals": {"identifier": {"type": "m.id.user", "user": localpart.upper()}},
    }

    status, body = await server.anonymous.post(
        "/v3/login", {"type": "m.login.password", "password": alice.password, **namings[form]}
    )

    assert (status, body["user_id"]) == (200, alice.user_id)
    assert body["device_id"] not in ("", alice.device_id)
    assert await is_logged_in(server.anonymous.logged_in(body))
    assert await is_logged_in(alice)


@pytest.mark.parametrize(
    ("changes", "status", "errcode"),
    [
        ({"password": "wrong"}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "nobody-here"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "@alice:elsewhere.test"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "a\x00b"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "a@b.c"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.phone", "country": "DE", "phone": "1"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "nonsense"}}, 400, "M_UNKNOWN"),
        ({"identifier": "alice"}, 400, "M_BAD_JSON"),
        ({"identifier": {"type": "m.id.user"}}, 400, "M_MISSING_PARAM"),
        ({"identifier": {"type": "m.id.user", "user": 5}}, 400, "M_BAD_JSON"),
        ({"identifier": None}, 400, "M_MISSING_PARAM"),
        ({"password": None}, 400, "M_MISSING_PARAM"),
        ({"password": ["x"]}, 400, "M_BAD_JSON"),
        ({"type": "m.login.nonsense"}, 400, "M_UNKNOWN"),
        ({"type": None}, 400, "M_MISSING_PARAM"),
        ({"device_id": {}}, 400, "M_INVALID_PARAM"),
    ],
)
async def test_a_login_is_refused(
    server: Server, alice: Client, changes: dict[str, object], status: int, errcode: str
) -> None:
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": alice.password,
        **changes,
    }

    answer = await server.anonymous.post("/v3/login", body)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)


async def test_logging_in_on_a_device_again_ends_its_earlier_token(alice: Client) -> None:
    assert await is_logged_in(alice)

    again = await alice.login(device_id=alice.device_id, initial_device_display_name="new name")

    assert (again.device_id, again.access_token != alice.access_token) == (alice.device_id, True)
    assert await is_logged_in(again)
    assert not await is_logged_in(alice)
    assert "display_name" not in await again.ok("GET", f"/v3/devices/{again.device_id}")


async def test_an_access_token_in_the_query_string(server: Server, alice: Client) -> None:
    answer = await server.anonymous.get("/v3/account/whoami", access_token=alice.access_token)

    assert (answer.status, answer.body["user_id"]) == (200, alice.user_id)


async def test_access_tokens_in_the_query_string_can_be_switched_off(conninfo: str) -> None:
    async with running(conninfo, query_string_tokens=False) as server:
        alice = await server.register()
        status, error = await server.anonymous.get("/v3/account/whoami", access_token=alice.access_token)

    assert (status, error["errcode"]) == (401, "M_MISSING_TOKEN")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc"])
async def test_a_token_is_required(server: Server, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}

    answer = await server.anonymous.request("GET", "/v3/account/whoami", headers=headers)

    assert (answer.status, answer.body["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_an_unknown_token_is_refused(server: Server) -> None:
    answer = await server.anonymous.request(
        "GET", "/v3/account/whoami", headers={"Authorization": "Bearer hearth_at_nonsense"}
    )

    assert answer.status == 401
    assert answer.body["errcode"] == "M_UNKNOWN_TOKEN"
    assert answer.body["soft_logout"] is False


async def test_tokens_are_stored_only_as_hashes(conninfo: str, connection: psycopg.Connection) -> None:
    async with running(conninfo) as server:
        alice = await server.register(refresh_token=True)
    text = repr(connection.execute("SELECT t::text, access_hash, refresh_hash FROM sessions t").fetchall())

    assert alice.access_token not in text
    assert alice.refresh_token not in text
    assert alice.access_token.startswith("hearth_at_")


async def test_logout_ends_the_session_and_the_device(alice: Client) -> None:
    phone = await alice.login()

    assert (await phone.post("/v3/logout")).body == {}

    assert not await is_logged_in(phone)
    devices = (await alice.ok("GET", "/v3/devices"))["devices"]
    assert [device["device_id"] for device in devices] == [alice.device_id]


async def test_logout_all_ends_every_session_of_this_user_alone(alice: Client, bob: Client) -> None:
    phone = await alice.login()

    assert (await phone.post("/v3/logout/all")).status == 200

    assert [await is_logged_in(client) for client in (alice, phone, bob)] == [False, False, True]


async def test_a_session_that_ends_on_one_process_ends_on_the_other(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register()
        elsewhere = other.anonymous.logged_in(
            {"user_id": alice.user_id, "device_id": alice.device_id, "access_token": alice.access_token}
        )
        assert await is_logged_in(elsewhere)

        await alice.post("/v3/logout")

        await other.application.tail.catch_up()
        assert not await is_logged_in(elsewhere)


@pytest.mark.one_process("what is remembered")
async def test_a_request_of_a_known_session_asks_the_database_nothing(
    conninfo: str, connection: psycopg.Connection
) -> None:
    async with running(conninfo) as server:
        alice = await server.register()
        assert await is_logged_in(alice)
        connection.execute("ALTER TABLE sessions RENAME TO hidden")

        assert await is_logged_in(alice)

        connection.execute("ALTER TABLE hidden RENAME TO sessions")


async def test_without_asking_for_it_there_is_no_refresh_token(server: Server) -> None:
    _, body = await server.anonymous.post("/v3/register", {"password": "x" * 8, "auth": {"type": "m.login.dummy"}})

    assert body.keys() == {"user_id", "access_token", "device_id", "home_server"}


async def refreshed(client: Client) -> Client:
    """The client with its next pair of tokens."""
    body = await client.anonymous().ok("POST", "/v3/refresh", {"refresh_token": client.refresh_token})
    assert body.keys() == {"access_token", "refresh_token", "expires_in_ms"}
    return client.logged_in({"user_id": client.user_id, "device_id": client.device_id, **body})


async def refresh_is_refused(client: Client) -> bool:
    """Whether the client's refresh token has ended for good."""
    status, body = await client.anonymous().post("/v3/refresh", {"refresh_token": client.refresh_token})
    return (status, body["errcode"], body.get("soft_logout", False)) == (401, "M_UNKNOWN_TOKEN", False)


async def test_the_old_pair_lives_until_the_new_access_token_is_used(server: Server) -> None:
    first = await server.register(refresh_token=True)
    second = await refreshed(first)
    assert await is_logged_in(first)

    assert await is_logged_in(second)

    assert not await is_logged_in(first)
    assert await refresh_is_refused(first)


async def test_the_old_pair_lives_until_the_new_refresh_token_is_used(server: Server) -> None:
    first = await server.register(refresh_token=True)
    second = await refreshed(first)

    third = await refreshed(second)

    assert await refresh_is_refused(first)
    assert await is_logged_in(third)
    assert not await is_logged_in(second)


async def test_a_refresh_whose_answer_was_lost_can_be_repeated(server: Server) -> None:
    first = await server.register(refresh_token=True)
    lost = await refreshed(first)

    second = await refreshed(first)

    assert await is_logged_in(second)
    assert not await is_logged_in(lost)


async def test_an_expired_access_token_is_a_soft_logout(conninfo: str) -> None:
    async with running(conninfo, sessions=Sessions(access_token_lifetime=Milliseconds(1))) as server:
        alice = await server.register(refresh_token=True)
        status, error = await alice.get("/v3/account/whoami")

        assert (status, error["errcode"], error["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", True)
        assert (await refreshed(alice)).access_token != alice.access_token
        assert await is_logged_in(await server.register())


async def test_an_expired_refresh_token_is_a_soft_logout(conninfo: str) -> None:
    async with running(conninfo, sessions=Sessions(refresh_token_lifetime=Milliseconds(1))) as server:
        alice = await server.register(refresh_token=True)
        status, error = await server.anonymous.post("/v3/refresh", {"refresh_token": alice.refresh_token})

    assert (status, error["errcode"], error["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", True)


async def test_a_refresh_token_ends_with_its_device(server: Server) -> None:
    alice = await server.register(refresh_token=True)
    await alice.post("/v3/logout")

    assert await refresh_is_refused(alice)


@pytest.mark.parametrize(("body", "errcode"), [({}, "M_MISSING_PARAM"), ({"refresh_token": 1}, "M_BAD_JSON")])
async def test_a_malformed_refresh_is_refused(server: Server, body: dict[str, object], errcode: str) -> None:
    answer = await server.anonymous.post("/v3/refresh", body)

    assert (answer.status, answer.body["errcode"]) == (400, errcode)


async def test_guessing_a_password_is_throttled(conninfo: str) -> None:
    limits = RateLimits(failed_login=RateLimit(per_second=0.001, burst=2), login=RateLimit(1000, 1000))
    async with running(conninfo, rate_limits=limits) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        guess = {"type": "m.login.password", "user": alice.user_id, "password": "guess"}
        localpart = alice.user_id[1:].partition(":")[0]
        spellings = (alice.user_id, localpart.upper(), localpart.title())  # all of them log the same account in
        answers = [await server.anonymous.post("/v3/login", {**guess, "user": user}) for user in spellings]
        right = await server.anonymous.post("/v3/login", {**guess, "password": alice.password})

        assert [answer.status for answer in answers] == [403, 403, 429]
        assert (right.status, right.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")
        assert (await bob.login()).user_id == bob.user_id


async def test_a_password_is_hashed_anew_once_that_is_to_cost_more(conninfo: str) -> None:
    async def stored(server: Server) -> str:
        async with server.application.database.read() as tx:
            account = await accounts.find(tx, UserID(alice.user_id))
        assert account is not None
        return account.password_hash or ""

    async with running(conninfo) as server:
        alice = await server.register()
        assert "m=8,t=1" in await stored(server)
    async with running(conninfo, passwords=Passwords(hash_kib=16, hash_passes=2)) as server:
        alice = dataclasses.replace(alice, base_url=server.anonymous.base_url, session=server.anonymous.session)
        wrong = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": alice.user_id}}
        assert (await server.anonymous.post("/v3/login", {**wrong, "password": "wrong"})).status == 403
        assert "m=8,t=1" in await stored(server)

        await alice.login()

        assert "m=16,t=2" in await stored(server)
        await alice.login()


async def test_logins_from_an_address_are_throttled(conninfo: str) -> None:
    limits = RateLimits(login=RateLimit(per_second=0.001, burst=3))
    async with running(conninfo, rate_limits=limits) as server:
        body = {"type": "m.login.password", "password": "guess"}
        statuses = [
            (await server.anonymous.post("/v3/login", {**body, "user": f"user{number}"})).status for number in range(4)
        ]

    assert statuses == [403, 403, 403, 429]


async def test_a_device_cannot_have_the_name_of_a_cross_signing_key(
    conninfo: str, connection: psycopg.Connection
) -> None:
    async with running(conninfo) as server:
        alice = await server.register()
        connection.execute(
            "INSERT INTO cross_signing_keys (user_id, usage, public_key, json) VALUES (%s, 'master', 'thekey', '{}')",
            (alice.user_id,),
        )
        body = {"type": "m.login.password", "user": alice.user_id, "password": alice.password, "device_id": "thekey"}
        status, error = await server.anonymous.post("/v3/login", body)

    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_login_token_logs_in_once(alice: Client) -> None:
    status, challenge = await alice.post("/v1/login/get_token")
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}])

    body = await alice.ok("POST", "/v1/login/get_token", {"auth": alice.password_auth(challenge["session"])})

    assert (body.keys(), body["expires_in_ms"]) == ({"login_token", "expires_in_ms"}, 120_000)
    login = {"type": "m.login.token", "token": body["login_token"], "device_id": "TV"}
    status, tokens = await alice.anonymous().post("/v3/login", login)
    assert (status, tokens["user_id"], tokens["device_id"]) == (200, alice.user_id, "TV")
    status, error = await alice.anonymous().post("/v3/login", login)
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_login_token_ends_with_the_password(alice: Client) -> None:
    token = (await alice.ok("POST", "/v1/login/get_token", {"auth": alice.password_auth()}))["login_token"]
    change = {"new_password": "another password", "auth": alice.password_auth()}
    await alice.ok("POST", "/v3/account/password", change)

    assert (await alice.anonymous().post("/v3/login", {"type": "m.login.token", "token": token})).status == 403


async def test_an_access_token_is_no_login_token(alice: Client) -> None:
    for token, status in ((alice.access_token, 403), ("x", 403), (5, 400), (None, 400)):
        assert (await alice.anonymous().post("/v3/login", {"type": "m.login.token", "token": token})).status == status


async def sync_until_nothing_is_new(client: Client) -> str:
    """A token from which a sync waits."""
    since: str = (await client.ok("GET", "/v3/sync"))["next_batch"]
    while True:
        body = await client.ok("GET", "/v3/sync", params={"since": since, "timeout": "50"})
        if body["next_batch"] == since or body.keys() <= EMPTY_SYNC:
            return str(body["next_batch"])
        since = body["next_batch"]


EMPTY_SYNC = {
    "next_batch",
    "device_one_time_keys_count",
    "device_unused_fallback_key_types",
    "org.matrix.msc2732.device_unused_fallback_key_types",
}


async def test_a_sync_that_waits_tells_a_session_that_ended_nothing(conninfo: str) -> None:
    async with running(conninfo, presence=False) as server:
        alice = await server.register()
        phone = await alice.login()
        since = await sync_until_nothing_is_new(phone)
        waiting = asyncio.create_task(phone.get("/v3/sync", since=since, timeout=20_000))
        await asyncio.sleep(0.2)

        await alice.ok("DELETE", f"/v3/devices/{phone.device_id}", {"auth": alice.password_auth()})
        await send(alice, await create_room(alice), "a secret")

        status, error = await waiting
        assert (status, error["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_a_server_that_stops_answers_who_waits(conninfo: str) -> None:
    async with running(conninfo, presence=False) as server:
        alice = await server.register()
        since = await sync_until_nothing_is_new(alice)
        waiting = asyncio.create_task(alice.get("/v3/sync", since=since, timeout=30_000))
        await asyncio.sleep(0.2)
        started = time.monotonic()

        await server.application.stop()

        assert time.monotonic() - started < 3
        assert (await waiting).status == 200
