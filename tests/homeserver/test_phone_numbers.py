"""Phone numbers of accounts: proven by SMS, to register, to log in, to reset a password (Client-Server API, "Adding
Account Administrative Contact Information", "Phone number/MSISDN-based (identity / homeserver)")."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg
import pytest
import pytest_asyncio

from federation.protocol.errors import InvalidInput
from homeserver.config import Identifiers, ProofOnRegistration, RateLimit, RateLimits, Registration, RegistrationMode
from homeserver.services import outgoing_messages
from homeserver.services.identifiers import MAX_FAILURES, SUBMIT_PATH
from homeserver.services.phone_numbers import parse_phone
from tests.client import PASSWORD, Answer, Client, Server, unique
from tests.mail_server import MailServer
from tests.servers import running
from tests.sms_gateway import TOKEN, Gateway, a_gateway

REGISTER, RESET, ADD = "register", "account/password", "account/3pid"
_numbers = itertools.count(10_000_000)


def a_number() -> str:
    """Of a German mobile phone, as it is kept."""
    return f"49151{next(_numbers)}"


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 100_000_000:08}"


@dataclass(slots=True)
class Texting:
    """A server that sends SMS, and who takes them."""

    server: Server
    gateway: Gateway

    async def request(self, where: str, number: str, secret: str = "secret", attempt: int = 1, **more: Any) -> Answer:
        dialled = {"country": "DE", "phone_number": f"0{number.removeprefix('49')}"}
        body = {"client_secret": secret, **dialled, "send_attempt": attempt, **more}
        return await self.server.anonymous.post(f"/v3/{where}/msisdn/requestToken", body)

    async def sid(self, where: str, number: str, secret: str = "secret", attempt: int = 1) -> str:
        """Of a request that is answered as it must be."""
        answer = await self.request(where, number, secret, attempt)
        assert answer.status == 200, answer.body
        assert answer.body["submit_url"].endswith(SUBMIT_PATH)
        return str(answer.body["sid"])

    async def submit(self, sid: str, code: str, secret: str = "secret") -> Answer:
        return await self.server.anonymous.post(SUBMIT_PATH, {"sid": sid, "client_secret": secret, "token": code})

    async def prove(self, where: str, number: str, secret: str = "secret") -> dict[str, str]:
        """The credentials of who has proven to have the number."""
        before = len(self.gateway.texts_to(number))
        sid = await self.sid(where, number, secret)
        answer = await self.submit(sid, await self.gateway.code_for(number, before), secret)
        assert (answer.status, answer.body) == (200, {"success": True})
        return {"sid": sid, "client_secret": secret}

    async def a_user_with(self, number: str) -> Client:
        user = await self.server.register()
        credentials = await self.prove(ADD, number)
        await user.ok("POST", "/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
        return user


@pytest_asyncio.fixture(scope="session")
async def texting(databases: Callable[[str], str]) -> AsyncIterator[Texting]:
    """Registering needs no number."""
    async with a_gateway() as gateway, running(databases("sms"), sms=gateway.settings()) as server:
        yield Texting(server, gateway)


@pytest_asyncio.fixture
async def asking(conninfo: str) -> AsyncIterator[Texting]:
    """Registering needs a number."""
    registration = Registration(mode=RegistrationMode.OPEN, phone=ProofOnRegistration.REQUIRED)
    async with a_gateway() as gateway, running(conninfo, sms=gateway.settings(), registration=registration) as server:
        yield Texting(server, gateway)


def by_phone(credentials: dict[str, str], session: str | None = None) -> dict[str, Any]:
    auth = {"type": "m.login.msisdn", "threepid_creds": credentials}
    return auth if session is None else {**auth, "session": session}


async def until(connection: psycopg.Connection, query: LiteralString) -> None:
    async with asyncio.timeout(20):
        while connection.execute(query).fetchone() != (True,):  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.05)


# --- proving


async def test_a_number_is_added_once_it_is_proven(texting: Texting) -> None:
    number, user = a_number(), await texting.server.register()
    sid = await texting.sid(ADD, number)
    credentials = {"sid": sid, "client_secret": "secret"}
    body = {**credentials, "auth": user.password_auth()}

    status, error = await user.post("/v3/account/3pid/add", body)
    assert (status, error["errcode"]) == (403, "M_THREEPID_AUTH_FAILED")
    code = await texting.gateway.code_for(number)
    assert (await texting.submit(sid, f" {code}\n")).body == {"success": True}
    assert (await texting.submit(sid, code)).body == {"success": True}, "a client may submit it again"
    assert (await user.post("/v3/account/3pid/add", credentials)).status == 401, "a password is needed"
    await user.ok("POST", "/v3/account/3pid/add", body)
    assert (await user.post("/v3/account/3pid/add", body)).status == 403, "the proof is used up"

    [listed] = (await user.ok("GET", "/v3/account/3pid"))["threepids"]
    assert (listed["medium"], listed["address"]) == ("msisdn", number)
    assert {"to": f"+{number}", "text": await texting.gateway.next_for(number)} in texting.gateway.bodies
    assert texting.gateway.authorizations == {f"Bearer {TOKEN}"}
    capabilities = (await user.ok("GET", "/v3/capabilities"))["capabilities"]
    assert capabilities["m.3pid_changes"] == {"enabled": True}


async def test_a_number_is_taken_from_an_account(texting: Texting) -> None:
    number, other = a_number(), a_number()
    user = await texting.a_user_with(number)

    await user.ok("POST", "/v3/account/3pid/delete", {"medium": "msisdn", "address": number})
    assert (await user.ok("GET", "/v3/account/3pid")) == {"threepids": []}
    await texting.a_user_with(number)

    ended = await texting.a_user_with(other)
    await ended.ok("POST", "/v3/account/deactivate", {"auth": ended.password_auth()})
    await texting.a_user_with(other)


async def test_wrong_codes_are_counted_and_a_new_code_does_not_change_that(texting: Texting) -> None:
    number = a_number()
    sid = await texting.sid(ADD, number)
    first = await texting.gateway.code_for(number)

    for _ in range(MAX_FAILURES - 2):
        status, error = await texting.submit(sid, wrong(first))
        assert (status, error["errcode"]) == (400, "M_TOKEN_INCORRECT")
    assert await texting.sid(ADD, number, attempt=2) == sid
    second = await texting.gateway.code_for(number, 1)
    for code in ("", "x" * 2000):
        assert (await texting.submit(sid, code)).body["errcode"] == "M_TOKEN_INCORRECT"
    status, error = await texting.submit(sid, second)
    assert (status, error["errcode"]) == (400, "M_SESSION_EXPIRED")
    assert await texting.sid(ADD, number, attempt=3) == sid
    other = await texting.sid(ADD, number, secret="other")
    third = await texting.gateway.code_for(number, 2)
    assert (await texting.submit(other, third, "other")).status == 200, "nothing is sent where no code would be right"


async def test_tries_at_once_are_counted_each(texting: Texting) -> None:
    number = a_number()
    sid = await texting.sid(ADD, number)
    code = await texting.gateway.code_for(number)

    answers = await asyncio.gather(*(texting.submit(sid, wrong(code)) for _ in range(4 * MAX_FAILURES)))

    errcodes = [answer.body["errcode"] for answer in answers]
    assert errcodes.count("M_TOKEN_INCORRECT") == MAX_FAILURES
    assert errcodes.count("M_SESSION_EXPIRED") == 3 * MAX_FAILURES
    assert (await texting.submit(sid, code)).status == 400


async def test_a_new_code_ends_those_before(texting: Texting) -> None:
    number = a_number()
    sid = await texting.sid(ADD, number)
    first = await texting.gateway.code_for(number)
    assert await texting.sid(ADD, number) == sid, "nothing is sent again unless it is asked for"
    assert await texting.sid(ADD, number, attempt=2) == sid
    second = await texting.gateway.code_for(number, 1)

    if first != second:  # but once in a million
        assert (await texting.submit(sid, first)).body["errcode"] == "M_TOKEN_INCORRECT"
    assert (await texting.submit(sid, second)).status == 200
    assert len(texting.gateway.texts_to(number)) == 2


async def test_a_code_is_good_with_its_secret_in_its_session_for_its_purpose(texting: Texting) -> None:
    number, user = a_number(), await texting.server.register()
    sid = await texting.sid(REGISTER, number)
    code = await texting.gateway.code_for(number)
    for _ in range(MAX_FAILURES):  # of others, which end nothing
        for changes in ({"secret": "other"}, {"sid": "other"}):
            refused = await texting.submit(**{"sid": sid, "code": code, **changes})
            assert (refused.status, refused.body["errcode"]) == (400, "M_SESSION_EXPIRED")
    page = await texting.server.anonymous.get("/unstable/hearth.email/confirm", sid=sid, token=code)
    assert page.status == 403, "this is for links in mail"

    assert (await texting.submit(sid, code)).status == 200
    body = {"sid": sid, "client_secret": "secret", "auth": user.password_auth()}
    assert (await user.post("/v3/account/3pid/add", body)).status == 403


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        *(({name: None}, "M_MISSING_PARAM") for name in ("sid", "client_secret", "token")),
        *(({name: 5}, "M_BAD_JSON") for name in ("sid", "client_secret", "token")),
        *(({"sid": sid}, "M_INVALID_PARAM") for sid in ("", "ü", "a b", "x" * 256)),
        ({"client_secret": ""}, "M_INVALID_PARAM"),
    ],
)
async def test_a_malformed_submission_is_refused(texting: Texting, changes: dict[str, Any], errcode: str) -> None:
    body = {"sid": "x", "client_secret": "secret", "token": "123456", **changes}
    status, error = await texting.server.anonymous.post(SUBMIT_PATH, body)
    assert (status, error["errcode"]) == (400, errcode)


async def test_a_code_expires_unless_another_is_asked_for(texting: Texting) -> None:
    number, database = a_number(), texting.server.application.database
    sid = await texting.sid(ADD, number)

    async def end_in(seconds: int) -> None:
        until_ts = database.now_ms() + seconds * 1000
        async with database.transaction() as tx:
            await tx.execute("update identifier_validations set expires_ts = %s where sid = %s", (until_ts, sid))

    await end_in(60)
    assert await texting.sid(ADD, number, attempt=2) == sid
    async with database.read() as tx:
        row = await tx.fetch_one("select expires_ts from identifier_validations where sid = %s", (sid,))
    assert row is not None
    assert row[0] > database.now_ms() + 600_000
    await end_in(0)
    code = await texting.gateway.code_for(number, 1)
    assert (await texting.submit(sid, code)).body["errcode"] == "M_SESSION_EXPIRED"


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        ({"phone_number": "110"}, "M_INVALID_PARAM"),
        ({"phone_number": "nobody"}, "M_INVALID_PARAM"),
        ({"phone_number": ""}, "M_INVALID_PARAM"),
        ({"phone_number": "0151 12345678" + " " * 50}, "M_INVALID_PARAM"),
        ({"phone_number": "0900 1234567"}, "M_INVALID_PARAM"),
        ({"phone_number": "0151 12345678 ext. 5"}, "M_INVALID_PARAM"),
        ({"phone_number": 5}, "M_BAD_JSON"),
        ({"phone_number": None}, "M_MISSING_PARAM"),
        ({"country": "XX"}, "M_INVALID_PARAM"),
        ({"country": "Germany"}, "M_INVALID_PARAM"),
        ({"country": None}, "M_MISSING_PARAM"),
        ({"client_secret": "ü"}, "M_INVALID_PARAM"),
        ({"client_secret": None}, "M_MISSING_PARAM"),
        ({"send_attempt": -1}, "M_INVALID_PARAM"),
        ({"send_attempt": "1"}, "M_BAD_JSON"),
        ({"send_attempt": None}, "M_MISSING_PARAM"),
    ],
)
async def test_a_malformed_request_is_refused(texting: Texting, changes: dict[str, Any], errcode: str) -> None:
    for where in (REGISTER, RESET, ADD):
        status, error = await texting.request(where, a_number(), **changes)
        assert (status, error["errcode"]) == (400, errcode)


@pytest.mark.parametrize(
    ("country", "text", "msisdn", "of"),
    [
        ("DE", "0151 123-45678", "4915112345678", "DE"),
        ("DE", "+43 664 1234567", "436641234567", "AT"),
        ("DE", "0043 664 1234567", "436641234567", "AT"),
        (None, "+4915112345678", "4915112345678", "DE"),
        ("CA", "(416) 555-0123", "14165550123", "CA"),
    ],
)
def test_a_number_has_one_form(country: str | None, text: str, msisdn: str, of: str) -> None:
    found = parse_phone(country, text)
    assert (found.msisdn, found.country) == (msisdn, of)


def test_a_number_without_a_country_begins_with_a_plus() -> None:
    with pytest.raises(InvalidInput):
        parse_phone(None, "015112345678")


# --- what is sent, and to whom


async def test_without_a_gateway_numbers_are_not_supported(server: Server) -> None:
    body = {"client_secret": "secret", "country": "DE", "phone_number": "0151 12345678", "send_attempt": 1}
    for where in (REGISTER, RESET, ADD):
        status, error = await server.anonymous.post(f"/v3/{where}/msisdn/requestToken", body)
        assert (status, error["errcode"]) == (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
    answer = await server.anonymous.post("/v3/account/password", {"new_password": PASSWORD})
    assert (answer.status, answer.body["errcode"]) == (401, "M_MISSING_TOKEN")
    assert (await server.anonymous.get("/v3/auth/m.login.msisdn/fallback/web", session="x")).status == 404


async def test_sms_go_to_the_countries_that_the_operator_lets_them(conninfo: str) -> None:
    async with a_gateway() as gateway:
        settings = gateway.settings(allowed_countries=("AT", "CH"))
        async with running(conninfo, sms=settings) as server:
            texting = Texting(server, gateway)
            for where in (REGISTER, RESET, ADD):  # whatever country a client names
                status, error = await texting.request(where, a_number(), country="AT", phone_number="+4915112345678")
                assert (status, error["errcode"]) == (403, "M_THREEPID_DENIED")
            answer = await texting.request(ADD, a_number(), country="DE", phone_number="+436641234567")
            assert answer.status == 200
            await gateway.next_for("436641234567")

    assert [number for number, _ in gateway.taken] == ["436641234567"]


@pytest.mark.parametrize("who", ["asker", "number"])
async def test_sms_are_limited_by_who_asks_and_by_who_gets_them(conninfo: str, who: str) -> None:
    limits = RateLimits(verification=RateLimit(per_second=0.0001, burst=2))
    async with a_gateway() as gateway, running(conninfo, sms=gateway.settings(), rate_limits=limits) as server:
        texting, number = Texting(server, gateway), a_number()
        if who == "number":  # others have asked for it
            for _ in range(2):
                server.application.rate_limits.spend("verification", number)
        statuses = [(await texting.request(ADD, number if who == "number" else a_number())).status for _ in range(3)]

    assert statuses == ([429, 429, 429] if who == "number" else [200, 200, 429])
    assert who == "asker" or gateway.bodies == []


async def test_who_asks_is_not_told_whether_a_number_is_in_use(texting: Texting) -> None:
    number, unknown = a_number(), a_number()
    await texting.a_user_with(number)

    sids = {
        await texting.sid(REGISTER, number, unique()): "123456",
        await texting.sid(ADD, number, unique()): "123456",
        await texting.sid(RESET, unknown): "123456",
    }

    for index in (1, 2):
        assert "already have an account" in await texting.gateway.next_for(number, index)
    assert "no account" in await texting.gateway.next_for(unknown)
    reset = list(sids)[-1]
    assert (await texting.submit(reset, "123456")).body["errcode"] == "M_TOKEN_INCORRECT", "as where there is one"


async def test_who_asks_is_told_where_the_operator_wants_it(conninfo: str) -> None:
    telling = Identifiers(reveal_use=True)
    async with a_gateway() as gateway, running(conninfo, sms=gateway.settings(), identifiers=telling) as server:
        texting, number = Texting(server, gateway), a_number()
        await texting.a_user_with(number)

        for where in (REGISTER, ADD):
            assert (await texting.request(where, number, unique())).body["errcode"] == "M_THREEPID_IN_USE"
        assert (await texting.request(RESET, a_number())).body["errcode"] == "M_THREEPID_NOT_FOUND"


async def test_of_two_who_prove_a_number_one_gets_it(conninfo: str) -> None:
    async with (
        a_gateway() as gateway,
        running(conninfo, sms=gateway.settings()) as server,
        running(conninfo, sms=gateway.settings()) as fellow,
    ):
        both = [Texting(server, gateway), Texting(fellow, gateway)]
        number, users = a_number(), [await each.server.register() for each in both]
        sids = [await each.sid(ADD, number, f"secret{index}") for index, each in enumerate(both)]
        codes = [await gateway.code_for(number, index) for index in range(2)]
        for index, sid in enumerate(sids):  # at the other process, whichever code came first
            answers = [await both[1 - index].submit(sid, code, f"secret{index}") for code in codes]
            assert 200 in {answer.status for answer in answers}

        answers = await asyncio.gather(
            *(
                user.post(
                    "/v3/account/3pid/add",
                    {"sid": sid, "client_secret": f"secret{index}", "auth": user.password_auth()},
                )
                for index, (user, sid) in enumerate(zip(users, sids, strict=True))
            )
        )

    assert sorted(answer.status for answer in answers) == [200, 400]
    assert len(gateway.taken) == 2, "each is sent by one process"


# --- the gateway


@pytest.mark.one_process("its patience is shortened here")
async def test_an_sms_waits_for_a_gateway_that_is_away_or_busy(
    conninfo: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_messages, "FIRST_PAUSE_MS", 1)
    monkeypatch.setattr(outgoing_messages, "POLL_SECONDS", 0.05)
    number = a_number()
    async with a_gateway() as away:
        settings = away.settings()
    async with running(conninfo, sms=settings) as server:
        sid = await Texting(server, away).sid(ADD, number)
        await until(connection, "select count(*) = 1 from outgoing_messages where tries > 1")
        async with a_gateway(away.port) as gateway:
            gateway.answers[number] = [429, 500, 503, 302]

            code = await gateway.code_for(number)

            assert (await Texting(server, gateway).submit(sid, code)).status == 200
            await until(connection, "select count(*) = 0 from outgoing_messages")
    assert [body["to"] for body in gateway.bodies] == [f"+{number}"] * 5


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_an_sms_that_the_gateway_refuses_is_dropped(
    conninfo: str, connection: psycopg.Connection, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    nobody, somebody = a_number(), a_number()
    async with a_gateway() as gateway:
        gateway.answers[nobody] = [status]
        async with running(conninfo, sms=gateway.settings()) as server:
            for number in (nobody, somebody):
                await Texting(server, gateway).sid(ADD, number)
            await gateway.next_for(somebody)
            await until(connection, "select count(*) = 0 from outgoing_messages")

    assert [number for number, _ in gateway.taken] == [somebody]
    assert nobody not in caplog.text, "the log names nobody"


async def test_an_sms_of_no_use_any_more_is_given_up(conninfo: str, connection: psycopg.Connection) -> None:
    useless, useful = a_number(), a_number()
    async with a_gateway() as gateway, running(conninfo, sms=gateway.settings()) as server:
        sms, database = server.application.accounts.sms, server.application.database
        async with database.transaction() as tx:
            await sms.put(tx, useless, "too late", lifetime_ms=0)
            await sms.put(tx, useful, "in time", lifetime_ms=60_000)
        sms.wake()

        await gateway.next_for(useful)
        await until(connection, "select count(*) = 0 from outgoing_messages")

    assert gateway.taken == [(useful, "in time")]


async def test_mail_and_sms_go_each_their_way(conninfo: str) -> None:
    number, address = a_number(), f"{unique()}@example.org"
    async with (
        a_gateway() as gateway,
        MailServer.running() as mails,
        running(conninfo, sms=gateway.settings(), mail=mails.settings()) as server,
    ):
        await Texting(server, gateway).sid(ADD, number)
        body = {"client_secret": "secret", "email": address, "send_attempt": 1}
        await server.anonymous.ok("POST", "/v3/account/3pid/email/requestToken", body)

        await gateway.next_for(number)
        await mails.next_for(address)
        _, challenge = await server.anonymous.post("/v3/account/password", {"new_password": PASSWORD})

    assert challenge["flows"] == [{"stages": ["m.login.email.identity"]}, {"stages": ["m.login.msisdn"]}]
    assert (len(gateway.bodies), len(mails.taken)) == (1, 1)


# --- registering


async def test_registering_with_a_number(asking: Texting) -> None:
    number, anonymous = a_number(), asking.server.anonymous
    body = {"username": unique(), "password": PASSWORD}
    status, challenge = await anonymous.post("/v3/register", body)
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.msisdn"]}])
    sid = await asking.sid(REGISTER, number)
    auth = by_phone({"sid": sid, "client_secret": "secret"}, challenge["session"])

    status, waiting = await anonymous.post("/v3/register", {**body, "auth": auth})
    assert (status, waiting["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    await asking.submit(sid, await asking.gateway.code_for(number))
    status, registered = await anonymous.post("/v3/register", {**body, "auth": auth})

    assert status == 200
    [listed] = (await anonymous.logged_in(registered).ok("GET", "/v3/account/3pid"))["threepids"]
    assert (listed["medium"], listed["address"]) == ("msisdn", number)
    again = {"username": unique(), "password": PASSWORD, "auth": by_phone({"sid": sid, "client_secret": "secret"})}
    assert (await anonymous.post("/v3/register", again)).status == 401


async def test_registering_by_the_fallback_page(asking: Texting) -> None:
    number, anonymous = a_number(), asking.server.anonymous
    _, challenge = await anonymous.post("/v3/register", {"username": unique(), "password": PASSWORD})
    path, session = "/v3/auth/m.login.msisdn/fallback/web", challenge["session"]
    assert b'name="phone"' in (await anonymous.get(path, session=session)).body

    refused = await anonymous.request("POST", path, f"session={session}&phone=0151".encode())
    assert (refused.status, b'name="phone"' in refused.body) == (400, True)
    made_up = await anonymous.request("POST", path, f"session=x&phone=%2B{a_number()}".encode())
    assert made_up.status == 400
    shown = await anonymous.request("POST", path, f"session={session}&phone=%2B{number}".encode())
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', shown.body.decode()))
    assert fields.keys() == {"session", "sid", "client_secret"}
    code = await asking.gateway.code_for(number)
    form = "&".join(f"{name}={value}" for name, value in fields.items())
    mistaken = await anonymous.request("POST", path, f"{form}&token={wrong(code)}".encode())
    assert (mistaken.status, b'name="token"' in mistaken.body) == (400, True)
    assert b"onAuthDone" in (await anonymous.request("POST", path, f"{form}&token={code}".encode())).body

    status, registered = await anonymous.post("/v3/register", {"auth": {"session": session}})
    assert status == 200
    assert len((await anonymous.logged_in(registered).ok("GET", "/v3/account/3pid"))["threepids"]) == 1
    assert [to for to, _ in asking.gateway.taken] == [number]


async def test_the_page_begins_anew_when_no_code_is_awaited_any_longer(asking: Texting) -> None:
    number, anonymous = a_number(), asking.server.anonymous
    _, challenge = await anonymous.post("/v3/register", {})
    path, session = "/v3/auth/m.login.msisdn/fallback/web", challenge["session"]
    shown = await anonymous.request("POST", path, f"session={session}&phone=%2B{number}".encode())
    fields = re.findall(r'name="(\w+)" value="([^"]*)"', shown.body.decode())
    code = await asking.gateway.code_for(number)
    form = "&".join(f"{name}={value}" for name, value in fields)

    for _ in range(MAX_FAILURES):
        await anonymous.request("POST", path, f"{form}&token={wrong(code)}".encode())
    late = await anonymous.request("POST", path, f"{form}&token={code}".encode())

    assert (late.status, b'name="phone"' in late.body) == (400, True)


@pytest.mark.parametrize(
    ("email", "phone", "flows"),
    [
        ("never", "optional", [["m.login.dummy"], ["m.login.msisdn"]]),
        ("required", "required", [["m.login.email.identity", "m.login.msisdn"]]),
        (
            "required",
            "optional",
            [["m.login.email.identity", "m.login.dummy"], ["m.login.email.identity", "m.login.msisdn"]],
        ),
        ("optional", "optional", [["m.login.dummy"], ["m.login.email.identity"], ["m.login.msisdn"]]),
    ],
)
async def test_what_registering_asks_for(conninfo: str, email: str, phone: str, flows: list[list[str]]) -> None:
    registration = Registration(
        mode=RegistrationMode.OPEN, email=ProofOnRegistration(email), phone=ProofOnRegistration(phone)
    )
    async with (
        a_gateway() as gateway,
        MailServer.running() as mails,
        running(conninfo, sms=gateway.settings(), mail=mails.settings(), registration=registration) as server,
    ):
        _, challenge = await server.anonymous.post("/v3/register", {})
        texting, number = Texting(server, gateway), a_number()
        credentials = await texting.prove(REGISTER, number)
        session = challenge["session"]
        body = {"username": unique(), "password": PASSWORD}
        as_mail = {**by_phone(credentials, session), "type": "m.login.email.identity"}
        swapped = (await server.anonymous.post("/v3/register", {**body, "auth": as_mail})).body
        proven = await server.anonymous.post("/v3/register", {**body, "auth": by_phone(credentials, session)})

    assert [flow["stages"] for flow in challenge["flows"]] == flows
    assert swapped["errcode"] == ("M_UNRECOGNIZED" if email == "never" else "M_THREEPID_AUTH_FAILED")
    assert proven.status == (401 if email == "required" else 200)
    assert email != "required" or proven.body["completed"] == ["m.login.msisdn"]


# --- logging in, and a lost password


async def test_logging_in_with_a_number(texting: Texting) -> None:
    number = a_number()
    user = await texting.a_user_with(number)
    anonymous, national = texting.server.anonymous, f"0{number[2:]}"
    thirdparty = {"type": "m.id.thirdparty", "medium": "msisdn", "address": number}
    dialled = {"type": "m.id.phone", "country": "DE", "phone": national}
    forms: list[dict[str, Any]] = [
        {"identifier": thirdparty},
        {"identifier": {**thirdparty, "address": f"+{number}"}},
        {"medium": "msisdn", "address": number},
        {"identifier": dialled},
        {"identifier": {**dialled, "phone": f"{national[:4]} {national[4:]}"}},
        {"identifier": {"type": "m.id.phone", "country": "DE", "number": national}},
        {"identifier": {**dialled, "country": "AT", "phone": f"+{number}"}},
    ]

    for form in forms:
        body = await anonymous.ok("POST", "/v3/login", {"type": "m.login.password", "password": PASSWORD, **form})
        assert body["user_id"] == user.user_id
    wrong_ones: list[tuple[dict[str, Any], int, str]] = [
        ({**thirdparty, "address": a_number()}, 403, "M_FORBIDDEN"),
        ({**thirdparty, "medium": "email"}, 403, "M_FORBIDDEN"),
        ({**dialled, "country": "AT"}, 403, "M_FORBIDDEN"),
        ({**dialled, "country": "XX"}, 403, "M_FORBIDDEN"),
        ({**dialled, "country": 5}, 400, "M_BAD_JSON"),
        ({**dialled, "phone": 5}, 400, "M_BAD_JSON"),
        ({**dialled, "phone": None}, 400, "M_MISSING_PARAM"),
    ]
    for identifier, expected, errcode in wrong_ones:
        login = {"type": "m.login.password", "password": PASSWORD, "identifier": identifier}
        status, error = await anonymous.post("/v3/login", login)
        assert (status, error["errcode"]) == (expected, errcode)


async def test_a_lost_password_is_reset(texting: Texting) -> None:
    number, password = a_number(), "a new password"
    user = await texting.a_user_with(number)
    anonymous = texting.server.anonymous
    status, challenge = await anonymous.post("/v3/account/password", {"new_password": password})
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.msisdn"]}])
    sid = await texting.sid(RESET, number)
    auth = by_phone({"sid": sid, "client_secret": "secret"}, challenge["session"])
    body = {"new_password": password, "auth": auth}

    status, waiting = await anonymous.post("/v3/account/password", body)
    assert (status, waiting["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    await texting.submit(sid, await texting.gateway.code_for(number, 1))
    assert (await anonymous.post("/v3/account/password", body)).status == 200

    assert (await user.get("/v3/account/whoami")).status == 401, "its devices have ended"
    assert (await replace(user, password=password).login()).user_id == user.user_id
    fresh = {"new_password": "another one", "auth": by_phone({"sid": sid, "client_secret": "secret"})}
    assert (await anonymous.post("/v3/account/password", fresh)).status == 401, "the proof is used up"


async def test_nobody_resets_a_password_with_another_purposes_proof_or_another_number(texting: Texting) -> None:
    number, mallory = a_number(), await texting.server.register()
    await texting.a_user_with(number)
    proofs = [await texting.prove(REGISTER, a_number()), await texting.prove(ADD, a_number())]
    for proof in proofs:
        body = {"new_password": "a new password", "auth": by_phone(proof)}
        assert (await texting.server.anonymous.post("/v3/account/password", body)).status == 401

    others = await texting.prove(RESET, number)
    body = {"new_password": "a new password", "auth": by_phone(others)}
    status, error = await mallory.post("/v3/account/password", body)
    assert (status, error["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
