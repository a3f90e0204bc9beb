"""Registration (Client-Server API, "Account registration")."""

from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from homeserver.config import RateLimit, RateLimits, Registration, RegistrationMode, TermsDocument
from tests.client import PASSWORD, Client, Server, unique
from tests.servers import running

DUMMY = {"type": "m.login.dummy"}


@pytest_asyncio.fixture
async def server_with_tokens(conninfo: str) -> AsyncIterator[Server]:
    """A server on which registering needs a token and agreement to two documents."""
    terms = (
        TermsDocument("privacy", "1.2", "Privacy", "https://hearth.test/privacy"),
        TermsDocument("privacy", "1.2", "Datenschutz", "https://hearth.test/datenschutz", "de"),
    )
    registration = Registration(mode=RegistrationMode.TOKEN, terms=terms)
    async with running(conninfo, registration=registration) as server:
        yield server


def add_token(connection: psycopg.Connection, token: str, uses_allowed: int | None = None) -> None:
    connection.execute(
        "INSERT INTO registration_tokens (token, created_ts, uses_allowed) VALUES (%s, 0, %s)", (token, uses_allowed)
    )


async def test_registering_with_a_dummy_stage_logs_in(server: Server) -> None:
    name = unique()

    status, body = await server.anonymous.post("/v3/register", {"username": name, "password": PASSWORD, "auth": DUMMY})

    assert status == 200
    assert body["user_id"] == f"@{name}:{server.name}"
    assert await server.anonymous.logged_in(body).ok("GET", "/v3/account/whoami") == {
        "user_id": body["user_id"],
        "device_id": body["device_id"],
        "is_guest": False,
    }


async def test_an_empty_request_is_told_the_flows(server: Server) -> None:
    bodies: tuple[object, ...] = (b"", {})
    for body in bodies:
        status, challenge = await server.anonymous.request("POST", "/v3/register", body)

        assert status == 401
        assert challenge["flows"] == [{"stages": ["m.login.dummy"]}]
        assert challenge["params"] == {}
        assert isinstance(challenge["session"], str)
        assert "errcode" not in challenge
        assert "completed" not in challenge


async def test_a_session_of_an_empty_request_serves_the_whole_request(server: Server) -> None:
    _, challenge = await server.anonymous.post("/v3/register", {})
    auth = {**DUMMY, "session": challenge["session"]}

    status, body = await server.anonymous.post(
        "/v3/register", {"username": unique(), "password": PASSWORD, "auth": auth}
    )

    assert (status, "access_token" in body) == (200, True)


async def test_parameters_need_not_be_sent_twice(server: Server) -> None:
    name = unique()
    _, challenge = await server.anonymous.post("/v3/register", {"username": name, "password": PASSWORD})

    status, body = await server.anonymous.post("/v3/register", {"auth": {**DUMMY, "session": challenge["session"]}})

    assert (status, body["user_id"]) == (200, f"@{name}:{server.name}")
    client = server.anonymous.logged_in(body)
    assert (await client.login()).user_id == client.user_id


async def test_the_device_is_as_asked_for(server: Server) -> None:
    client = await server.register(device_id="TEAPOT", initial_device_display_name="Teapot")

    assert client.device_id == "TEAPOT"
    device = await client.ok("GET", "/v3/devices/TEAPOT")
    assert device["display_name"] == "Teapot"


async def test_login_can_be_inhibited(server: Server) -> None:
    status, body = await server.anonymous.post(
        "/v3/register", {"username": unique(), "password": PASSWORD, "inhibit_login": True, "auth": DUMMY}
    )

    assert status == 200
    assert body.keys() == {"user_id", "home_server"}


async def test_without_a_name_the_server_chooses_one(server: Server) -> None:
    status, body = await server.anonymous.post("/v3/register", {"password": PASSWORD, "auth": DUMMY})

    assert status == 200
    assert body["user_id"].startswith("@")


async def test_capitals_in_a_name_become_small(server: Server) -> None:
    name = unique()

    client = await server.anonymous.register_as(name.upper())

    assert client.user_id == f"@{name}:{server.name}"


async def test_a_name_is_given_once(server: Server, alice: Client) -> None:
    name = alice.user_id[1:].partition(":")[0]

    for body in ({"username": name, "password": PASSWORD}, {"username": name, "password": PASSWORD, "auth": DUMMY}):
        status, error = await server.anonymous.post("/v3/register", body)
        assert (status, error["errcode"]) == (400, "M_USER_IN_USE")


@pytest.mark.parametrize("name", ["", "a b", "é", "@a", "a:b", "a\x00b", "a" * 250])
async def test_a_name_outside_the_grammar_is_refused(server: Server, name: str) -> None:
    status, error = await server.anonymous.post("/v3/register", {"username": name, "password": PASSWORD, "auth": DUMMY})

    assert (status, error["errcode"]) == (400, "M_INVALID_USERNAME")


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        ({"password": "short"}, "M_WEAK_PASSWORD"),
        ({"password": "x" * 513}, "M_INVALID_PARAM"),
        ({"password": 12345678}, "M_INVALID_PARAM"),
        ({"password": None}, "M_MISSING_PARAM"),
        ({"username": 5}, "M_INVALID_PARAM"),
        ({"device_id": 5}, "M_INVALID_PARAM"),
        ({"device_id": "a\x00"}, "M_INVALID_PARAM"),
        ({"initial_device_display_name": []}, "M_INVALID_PARAM"),
        ({"refresh_token": "yes"}, "M_BAD_JSON"),
        ({"inhibit_login": 1}, "M_INVALID_PARAM"),
        ({"auth": "m.login.dummy"}, "M_BAD_JSON"),
        ({"auth": {"type": "m.login.dummy", "session": 1}}, "M_INVALID_PARAM"),
    ],
)
async def test_a_malformed_registration_is_refused(server: Server, changes: dict[str, object], errcode: str) -> None:
    body = {"username": unique(), "password": PASSWORD, "auth": DUMMY, **changes}

    status, error = await server.anonymous.post("/v3/register", body)

    assert (status, error["errcode"]) == (400, errcode)


async def test_an_unknown_kind_is_refused(server: Server) -> None:
    status, error = await server.anonymous.post("/v3/register", {}, kind="robot")

    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")


async def test_whether_a_name_is_available(server: Server, alice: Client) -> None:
    taken = alice.user_id[1:].partition(":")[0]

    assert (await server.anonymous.get("/v3/register/available", username=unique())).body == {"available": True}
    for name, errcode in ((taken, "M_USER_IN_USE"), ("a b", "M_INVALID_USERNAME")):
        status, error = await server.anonymous.get("/v3/register/available", username=name)
        assert (status, error["errcode"]) == (400, errcode)
    status, error = await server.anonymous.get("/v3/register/available")
    assert (status, error["errcode"]) == (400, "M_MISSING_PARAM")


async def test_the_older_path_registers_too(server: Server) -> None:
    status, _ = await server.anonymous.post("/r0/register", {"username": unique(), "password": PASSWORD, "auth": DUMMY})

    assert status == 200


async def test_a_guest_may_do_little(server: Server) -> None:
    status, body = await server.anonymous.post("/v3/register", {"device_id": "IGNORED"}, kind="guest")

    assert status == 200
    guest = server.anonymous.logged_in(body)
    assert (await guest.ok("GET", "/v3/account/whoami"))["is_guest"] is True
    status, error = await guest.post("/v3/account/password", {"new_password": PASSWORD})
    assert (status, error["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_a_guest_gets_an_ordinary_account(server: Server) -> None:
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register?kind=guest", {}))
    localpart = guest.user_id[1:].partition(":")[0]
    body = {"username": localpart, "password": PASSWORD, "guest_access_token": guest.access_token}
    ordinary = await server.register("ordinary")
    own = ordinary.user_id[1:].partition(":")[0]

    for wrong, status, errcode in (
        ({"guest_access_token": "unknown"}, 403, "M_FORBIDDEN"),
        ({"guest_access_token": ordinary.access_token, "username": own}, 403, "M_FORBIDDEN"),
        ({"guest_access_token": 7}, 400, "M_BAD_JSON"),
        ({"username": None}, 400, "M_MISSING_PARAM"),
        ({"username": unique()}, 400, "M_INVALID_PARAM"),
        ({"guest_access_token": None}, 400, "M_USER_IN_USE"),
    ):
        answer = await server.anonymous.post("/v3/register", {**body, **wrong, "auth": DUMMY})
        assert (answer.status, answer.body["errcode"]) == (status, errcode), wrong

    user = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register", {**body, "auth": DUMMY}))
    assert user.user_id == guest.user_id
    for client in (user, guest, await user.login()):
        assert (await client.ok("GET", "/v3/account/whoami"))["is_guest"] is False
        await client.ok("GET", "/v3/pushrules/")
    again = await server.anonymous.post("/v3/register", {**body, "auth": DUMMY})
    assert (again.status, again.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_where_registration_is_closed_nobody_registers(conninfo: str) -> None:
    async with running(conninfo, registration=Registration()) as server:
        for kind in ("user", "guest"):
            status, error = await server.anonymous.post("/v3/register", {}, kind=kind)
            assert (status, error["errcode"]) in ((403, "M_FORBIDDEN"), (403, "M_GUEST_ACCESS_FORBIDDEN"))
        answer = await server.anonymous.get("/v1/register/m.login.registration_token/validity", token="t")
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_registering_with_a_token_and_terms(server_with_tokens: Server, connection: psycopg.Connection) -> None:
    add_token(connection, "welcome", uses_allowed=1)
    anonymous = server_with_tokens.anonymous
    body = {"username": "alice", "password": PASSWORD}

    status, first = await anonymous.post("/v3/register", body)
    assert (status, first["flows"]) == (401, [{"stages": ["m.login.registration_token", "m.login.terms"]}])
    assert first["params"]["m.login.terms"]["policies"]["privacy"] == {
        "version": "1.2",
        "en": {"name": "Privacy", "url": "https://hearth.test/privacy"},
        "de": {"name": "Datenschutz", "url": "https://hearth.test/datenschutz"},
    }
    session = first["session"]
    auth = {"type": "m.login.registration_token", "token": "welcome", "session": session}
    status, second = await anonymous.post("/v3/register", {**body, "auth": auth})
    assert (status, second["completed"], second["session"]) == (401, ["m.login.registration_token"], session)
    assert "errcode" not in second
    status, done = await anonymous.post("/v3/register", {**body, "auth": {"type": "m.login.terms", "session": session}})
    assert (status, done["user_id"]) == (200, "@alice:hearth.test")

    assert (await anonymous.get("/v1/register/m.login.registration_token/validity", token="welcome")).body == {
        "valid": False
    }


async def test_a_wrong_token_may_be_tried_again(server_with_tokens: Server, connection: psycopg.Connection) -> None:
    add_token(connection, "welcome")
    anonymous = server_with_tokens.anonymous
    auth = {"type": "m.login.registration_token", "token": "wrong"}

    status, failed = await anonymous.post("/v3/register", {"username": "a", "password": PASSWORD, "auth": auth})

    assert (status, failed["errcode"], "completed" in failed) == (401, "M_UNAUTHORIZED", False)
    auth = {**auth, "token": "welcome", "session": failed["session"]}
    status, body = await anonymous.post("/v3/register", {"auth": auth})
    assert (status, body["completed"]) == (401, ["m.login.registration_token"])


async def test_what_was_agreed_to_cannot_be_changed(server_with_tokens: Server, connection: psycopg.Connection) -> None:
    add_token(connection, "welcome")
    anonymous = server_with_tokens.anonymous
    auth = {"type": "m.login.registration_token", "token": "welcome"}
    _, first = await anonymous.post("/v3/register", {"username": "a", "password": PASSWORD, "auth": auth})

    changed = {"username": "b", "password": PASSWORD, "auth": {"type": "m.login.terms", "session": first["session"]}}
    status, error = await anonymous.post("/v3/register", changed)

    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_stage_of_no_flow_completes_nothing(server_with_tokens: Server) -> None:
    for stage in ("m.login.dummy", "m.login.password", "nonsense", 5):
        status, error = await server_with_tokens.anonymous.post("/v3/register", {"auth": {"type": stage}})
        assert (status, error["errcode"]) == (401, "M_UNRECOGNIZED")


async def test_a_password_being_registered_is_not_stored(
    server_with_tokens: Server, connection: psycopg.Connection
) -> None:
    add_token(connection, "welcome")
    auth = {"type": "m.login.registration_token", "token": "welcome"}
    _, challenge = await server_with_tokens.anonymous.post(
        "/v3/register", {"username": "a", "password": PASSWORD, "auth": auth}
    )

    rows = connection.execute("SELECT t::text, body, body_hash FROM interactive_auth_sessions t").fetchall()

    assert len(rows) == 1
    stored = repr(rows).encode() + rows[0][1]
    for secret in (PASSWORD, PASSWORD.encode().hex(), challenge["session"]):
        assert secret.encode() not in stored


async def test_the_fallback_page_completes_a_stage(server_with_tokens: Server, connection: psycopg.Connection) -> None:
    add_token(connection, "welcome")
    anonymous = server_with_tokens.anonymous
    body = {"username": "a", "password": PASSWORD}
    _, challenge = await anonymous.post("/v3/register", body)
    session = challenge["session"]

    for stage, form in (("m.login.registration_token", b"token=welcome&"), ("m.login.terms", b"")):
        path = f"/v3/auth/{stage}/fallback/web"
        shown = await anonymous.get(path, session=session)
        assert (shown.status, shown.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        done = await anonymous.request("POST", path, form + b"session=" + session.encode())
        assert done.status == 200
        assert b"onAuthDone" in done.body

    status, registered = await anonymous.post("/v3/register", {"auth": {"session": session}})
    assert (status, registered["user_id"]) == (200, "@a:hearth.test")


async def test_stages_may_be_completed_before_the_request_is_known(
    server_with_tokens: Server, connection: psycopg.Connection
) -> None:
    add_token(connection, "welcome")
    anonymous = server_with_tokens.anonymous
    session = (await anonymous.post("/v3/register", {})).body["session"]
    form = f"token=welcome&session={session}".encode()
    await anonymous.request("POST", "/v3/auth/m.login.registration_token/fallback/web", form)

    auth = {"type": "m.login.terms", "session": session}
    body = {"username": "a", "password": PASSWORD, "auth": auth}
    status, registered = await anonymous.post("/v3/register", body)

    assert (status, registered["user_id"]) == (200, "@a:hearth.test")


async def test_the_fallback_page_refuses_what_the_stage_refuses(server_with_tokens: Server) -> None:
    anonymous = server_with_tokens.anonymous
    _, challenge = await anonymous.post("/v3/register", {"username": "a", "password": PASSWORD})
    path = "/v3/auth/m.login.registration_token/fallback/web"

    refused = await anonymous.request("POST", path, b"token=wrong&session=" + challenge["session"].encode())

    assert refused.status == 403
    assert b"onAuthDone" not in refused.body
    status, body = await anonymous.post("/v3/register", {"auth": {"session": challenge["session"]}})
    assert (status, "completed" in body) == (401, False)


async def test_the_fallback_page_escapes_what_it_shows(server: Server) -> None:
    shown = await server.anonymous.get("/v3/auth/m.login.dummy/fallback/web", session='"><script>alert(1)</script>')

    assert b"<script>alert" not in shown.body
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    assert (await server.anonymous.get("/v3/auth/m.login.sso/fallback/web", session="x")).status == 404


async def test_the_fallback_page_asks_who_is_logged_in_for_their_password(server: Server, alice: Client) -> None:
    path = "/v3/auth/m.login.password/fallback/web"
    _, challenge = await alice.post("/v3/delete_devices", {"devices": [alice.device_id]})
    session = challenge["session"]
    assert b'type="password"' in (await server.anonymous.get(path, session=session)).body

    refused = await server.anonymous.request("POST", path, f"password=wrong&session={session}".encode())
    assert refused.status == 403
    form = f"password={PASSWORD.replace(' ', '+')}&session={session}".encode()
    assert b"onAuthDone" in (await server.anonymous.request("POST", path, form)).body

    assert (await alice.post("/v3/delete_devices", {"auth": {"session": session}})).status == 200


async def test_registrations_from_an_address_are_limited(conninfo: str) -> None:
    limits = RateLimits(registration=RateLimit(per_second=0.001, burst=2))
    async with running(conninfo, rate_limits=limits) as server:
        await server.register()
        await server.register()

        answer = await server.anonymous.post(
            "/v3/register", {"username": unique(), "password": PASSWORD, "auth": DUMMY}
        )

    assert (answer.status, answer.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert answer.body["retry_after_ms"] > 0
    assert int(answer.headers["Retry-After"]) > 0
