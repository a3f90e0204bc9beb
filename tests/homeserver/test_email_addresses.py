"""E-mail addresses of accounts: proven by mail, to register, to log in, to reset a password (Client-Server API,
"Adding Account Administrative Contact Information", "Email-based (identity / homeserver)")."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import UserID
from homeserver.config import Identifiers, ProofOnRegistration, RateLimit, RateLimits, Registration, RegistrationMode
from homeserver.services.identifiers import CONFIRM_PATH
from tests.client import PASSWORD, Answer, Client, Server, quote, unique
from tests.mail_server import MailServer
from tests.servers import running

REGISTER, RESET, ADD = "register", "account/password", "account/3pid"
NEXT_LINK = "https://app.example.org/welcome?x=1"


@dataclass(slots=True)
class Mailing:
    """A server that sends mail, and who takes it."""

    server: Server
    mails: MailServer

    async def request(self, where: str, address: str, secret: str = "secret", attempt: int = 1, **more: Any) -> Answer:
        body = {"client_secret": secret, "email": address, "send_attempt": attempt, **more}
        return await self.server.anonymous.post(f"/v3/{where}/email/requestToken", body)

    async def link_to(self, address: str, number: int = 0) -> dict[str, str]:
        """What the link in a message holds."""
        text = (await self.mails.next_for(address, number)).part("plain")
        found = re.search(r"(\S*)\?sid=(\S+)&token=(\S+)", text)
        assert found is not None, text
        assert found[1].endswith(CONFIRM_PATH)
        return {"sid": found[2], "token": found[3]}

    async def follow(self, address: str, number: int = 0) -> Answer:
        """Press the button on the page that a message leads to."""
        link = await self.link_to(address, number)
        shown = await self.server.anonymous.get(CONFIRM_PATH, **link)
        assert shown.status == 200
        return await self.press(link)

    async def press(self, link: dict[str, str]) -> Answer:
        form = f"sid={link['sid']}&token={link['token']}".encode()
        return await self.server.anonymous.request("POST", CONFIRM_PATH, form, allow_redirects=False)

    async def prove(self, where: str, address: str, secret: str = "secret") -> dict[str, str]:
        """The credentials of who has proven to have the address."""
        answer = await self.request(where, address, secret)
        assert answer.status == 200, answer.body
        assert (await self.follow(address)).status == 200
        return {"sid": answer.body["sid"], "client_secret": secret}

    async def a_user_with(self, address: str) -> Client:
        user = await self.server.register()
        credentials = await self.prove(ADD, address)
        await user.ok("POST", "/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
        return user


@pytest_asyncio.fixture(scope="session")
async def mailing(databases: Callable[[str], str]) -> AsyncIterator[Mailing]:
    """Registering needs no address."""
    async with (
        MailServer.running() as mails,
        running(
            databases("mail"), mail=mails.settings(), identifiers=Identifiers(next_link_hosts=("App.example.org",))
        ) as server,
    ):
        yield Mailing(server, mails)


@pytest_asyncio.fixture
async def asking(conninfo: str) -> AsyncIterator[Mailing]:
    """Registering needs an address."""
    registration = Registration(mode=RegistrationMode.OPEN, email=ProofOnRegistration.REQUIRED)
    async with (
        MailServer.running() as mails,
        running(conninfo, mail=mails.settings(), registration=registration) as server,
    ):
        yield Mailing(server, mails)


def an_address() -> str:
    return f"{unique()}@example.org"


def by_email(credentials: dict[str, str], session: str | None = None) -> dict[str, Any]:
    auth = {"type": "m.login.email.identity", "threepid_creds": credentials}
    return auth if session is None else {**auth, "session": session}


# --- proving


async def test_an_address_is_added_once_it_is_proven(mailing: Mailing) -> None:
    address, user = an_address(), await mailing.server.register()
    sid = (await mailing.request(ADD, address.upper())).body["sid"]
    credentials = {"sid": sid, "client_secret": "secret"}

    status, error = await user.post("/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
    assert (status, error["errcode"]) == (403, "M_THREEPID_AUTH_FAILED")
    link = await mailing.link_to(address)
    page = await mailing.server.anonymous.get(CONFIRM_PATH, **link)
    assert address.encode() in page.body
    status, error = await user.post("/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
    assert status == 403, "to look at the page is no proof"
    assert (await mailing.press(link)).status == 200
    await user.ok("POST", "/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})

    [listed] = (await user.ok("GET", "/v3/account/3pid"))["threepids"]
    assert (listed["medium"], listed["address"]) == ("email", address)
    assert listed["validated_at"] <= listed["added_at"]


async def test_adding_needs_a_password_and_the_clients_secret(mailing: Mailing) -> None:
    address, user = an_address(), await mailing.server.register()
    credentials = await mailing.prove(ADD, address)

    assert (await user.post("/v3/account/3pid/add", credentials)).status == 401
    for wrong in ({"client_secret": "other"}, {"sid": "other"}, {"sid": ""}):
        body = {**credentials, **wrong, "auth": user.password_auth()}
        status, error = await user.post("/v3/account/3pid/add", body)
        assert (status, error["errcode"]) == (403, "M_THREEPID_AUTH_FAILED")
    assert (await user.ok("GET", "/v3/account/3pid")) == {"threepids": []}


async def test_a_proof_is_good_once_and_for_one_purpose(mailing: Mailing) -> None:
    address, user = an_address(), await mailing.server.register()
    credentials = await mailing.prove(REGISTER, address)

    status, error = await user.post("/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
    assert (status, error["errcode"]) == (403, "M_THREEPID_AUTH_FAILED")
    other = an_address()
    credentials = await mailing.prove(ADD, other)
    statuses = [
        (await user.post("/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})).status
        for _ in range(2)
    ]
    assert statuses == [200, 403]


async def test_a_message_is_sent_again_only_when_asked(mailing: Mailing) -> None:
    address = an_address()
    first = await mailing.request(ADD, address)
    again = await mailing.request(ADD, address)
    more = await mailing.request(ADD, address, attempt=2)
    other = await mailing.request(ADD, address, secret="another")

    assert first.body == again.body == more.body
    assert other.body["sid"] != first.body["sid"]
    await mailing.mails.next_for(address, 2)
    await asyncio.sleep(0.1)
    assert len([each for each in mailing.mails.taken if address in each.recipients]) == 3
    assert (await mailing.follow(address, 0)).status == 200, "the first link stays good"


async def test_a_link_that_is_made_up_proves_nothing_and_ends_the_good_one(mailing: Mailing) -> None:
    address = an_address()
    await mailing.request(ADD, address)
    link = await mailing.link_to(address)

    for token in ("", "x", link["token"][:-1], "a b", "ü"):
        shown = await mailing.server.anonymous.get(CONFIRM_PATH, sid=link["sid"], token=token)
        assert shown.status == 403
    for number in range(5):
        assert (await mailing.press({"sid": link["sid"], "token": f"guess{number}"})).status == 403
    assert (await mailing.press(link)).status == 403


async def test_a_link_expires(conninfo: str) -> None:
    async with MailServer.running() as mails:
        identifiers = Identifiers(link_lifetime=1)  # type: ignore[arg-type]  # shorter than settings may be
        async with running(conninfo, mail=mails.settings(), identifiers=identifiers) as server:
            short = Mailing(server, mails)
            first = await short.request(ADD, an_address())
            await asyncio.sleep(0.01)

            user = await server.register()
            body = {"sid": first.body["sid"], "client_secret": "secret", "auth": user.password_auth()}
            assert (await user.post("/v3/account/3pid/add", body)).status == 403
            await server.application.accounts.identifiers.forget_expired()


async def test_the_page_leads_on_only_where_the_operator_lets_it(mailing: Mailing) -> None:
    address, elsewhere = an_address(), an_address()
    await mailing.request(REGISTER, address, next_link=NEXT_LINK)
    await mailing.request(REGISTER, elsewhere, next_link="https://evil.example.org/")

    link = await mailing.link_to(address)
    shown = await mailing.server.anonymous.get(CONFIRM_PATH, **link)
    assert "form-action 'self' https://app.example.org;" in shown.headers["Content-Security-Policy"]
    pressed = await mailing.press(link)
    assert (pressed.status, pressed.headers["Location"]) == (303, NEXT_LINK)
    pressed = await mailing.follow(elsewhere)
    assert (pressed.status, "Location" in pressed.headers) == (200, False)


@pytest.mark.parametrize(
    "link",
    [
        *("javascript:alert(1)", "data:text/html,x", "//app.example.org", "https://", "x", "vector://app.example.org/"),
        *("https://u@app.example.org/", "https://app.example.org:99999/", "https://app.example.org/" + "x" * 2000),
        *("https://app.example.org@evil.test/", "https://evil.test/app.example.org", "https://[app.example.org/"),
    ],
)
async def test_the_page_leads_to_nothing_else(mailing: Mailing, link: str) -> None:
    address = an_address()
    assert (await mailing.request(REGISTER, address, next_link=link)).status == 200

    followed = await mailing.follow(address)

    assert (followed.status, "Location" in followed.headers) == (200, False)


async def test_a_next_link_is_text(mailing: Mailing) -> None:
    status, error = await mailing.request(REGISTER, an_address(), next_link=5)

    assert (status, error["errcode"]) == (400, "M_BAD_JSON")


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        ({"email": "nobody"}, "M_INVALID_PARAM"),
        ({"email": "a@b.c\r\nBcc: d@e.f"}, "M_INVALID_PARAM"),
        ({"email": 5}, "M_BAD_JSON"),
        ({"email": None}, "M_MISSING_PARAM"),
        ({"client_secret": ""}, "M_INVALID_PARAM"),
        ({"client_secret": "ü"}, "M_INVALID_PARAM"),
        ({"client_secret": "x" * 256}, "M_INVALID_PARAM"),
        ({"client_secret": None}, "M_MISSING_PARAM"),
        ({"send_attempt": -1}, "M_INVALID_PARAM"),
        ({"send_attempt": 1 << 60}, "M_INVALID_PARAM"),
        ({"send_attempt": "1"}, "M_BAD_JSON"),
        ({"send_attempt": None}, "M_MISSING_PARAM"),
    ],
)
async def test_a_malformed_request_is_refused(mailing: Mailing, changes: dict[str, object], errcode: str) -> None:
    body = {"client_secret": "secret", "email": an_address(), "send_attempt": 1, **changes}
    for where in (REGISTER, RESET, ADD):
        status, error = await mailing.server.anonymous.post(f"/v3/{where}/email/requestToken", body)
        assert (status, error["errcode"]) == (400, errcode)


async def test_phone_numbers_are_not_supported(mailing: Mailing) -> None:
    body = {"client_secret": "secret", "country": "GB", "phone_number": "07700900001", "send_attempt": 1}
    for where in (REGISTER, RESET, ADD):
        status, error = await mailing.server.anonymous.post(f"/v3/{where}/msisdn/requestToken", body)
        assert (status, error["errcode"]) == (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")


async def test_without_a_mail_server_addresses_are_not_supported(server: Server, alice: Client) -> None:
    body = {"client_secret": "secret", "email": "a@example.org", "send_attempt": 1}
    for where in (REGISTER, RESET, ADD):
        status, error = await server.anonymous.post(f"/v3/{where}/email/requestToken", body)
        assert (status, error["errcode"]) == (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
    capabilities = (await alice.ok("GET", "/v3/capabilities"))["capabilities"]
    assert capabilities["m.3pid_changes"] == {"enabled": False}
    answer = await server.anonymous.post("/v3/account/password", {"new_password": PASSWORD})
    assert (answer.status, answer.body["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_messages_are_limited_by_who_asks_and_by_who_gets_them(conninfo: str) -> None:
    limits = RateLimits(verification=RateLimit(per_second=0.0001, burst=2))
    async with (
        MailServer.running() as mails,
        running(conninfo, mail=mails.settings(), rate_limits=limits) as server,
    ):
        limited = Mailing(server, mails)
        statuses = [(await limited.request(ADD, an_address())).status for _ in range(3)]
        assert statuses == [200, 200, 429]


# --- whose an address is


async def test_an_address_is_one_accounts(mailing: Mailing) -> None:
    address = an_address()
    proofs = []
    for number, secret in enumerate(("mine", "theirs")):  # both are proven before either is added
        sid = (await mailing.request(ADD, address, secret)).body["sid"]
        await mailing.follow(address, number)
        proofs.append({"sid": sid, "client_secret": secret})
    users = [await mailing.server.register() for _ in proofs]

    answers = [
        await user.post("/v3/account/3pid/add", {**proof, "auth": user.password_auth()})
        for user, proof in zip(users, proofs, strict=True)
    ]

    assert [answer.status for answer in answers] == [200, 400]
    assert answers[1].body["errcode"] == "M_THREEPID_IN_USE"


async def test_who_asks_is_not_told_whether_an_address_is_in_use(mailing: Mailing) -> None:
    address, unknown = an_address(), an_address()
    await mailing.a_user_with(address)

    for where in (REGISTER, ADD):
        assert (await mailing.request(where, address, secret=unique())).status == 200
    assert (await mailing.request(RESET, unknown)).status == 200

    for number in (1, 2):
        told = await mailing.mails.next_for(address, number)
        assert "already have an account" in told.message["Subject"]
        assert "token=" not in told.part("plain") + told.part("html")
    told = await mailing.mails.next_for(unknown)
    assert "No account" in told.message["Subject"]
    assert "token=" not in told.part("plain") + told.part("html")


async def test_who_asks_is_told_where_the_operator_wants_it(conninfo: str) -> None:
    async with (
        MailServer.running() as mails,
        running(conninfo, mail=mails.settings(), identifiers=Identifiers(reveal_use=True)) as server,
    ):
        telling = Mailing(server, mails)
        address = an_address()
        await telling.a_user_with(address)

        for where in (REGISTER, ADD):
            status, error = await telling.request(where, address, secret="new")
            assert (status, error["errcode"]) == (400, "M_THREEPID_IN_USE")
        status, error = await telling.request(RESET, an_address())
        assert (status, error["errcode"]) == (400, "M_THREEPID_NOT_FOUND")


async def test_an_address_is_taken_away(mailing: Mailing) -> None:
    address, other = an_address(), await mailing.server.register()
    user = await mailing.a_user_with(address)
    body = {"medium": "email", "address": address.upper()}

    assert await other.ok("POST", "/v3/account/3pid/delete", body) == {"id_server_unbind_result": "no-support"}
    assert len((await user.ok("GET", "/v3/account/3pid"))["threepids"]) == 1
    assert await user.ok("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "no-support"}
    assert len((await user.ok("GET", "/v3/account/3pid"))["threepids"]) == 1
    assert await user.ok("POST", "/v3/account/3pid/delete", body) == {"id_server_unbind_result": "no-support"}
    assert await user.ok("GET", "/v3/account/3pid") == {"threepids": []}


async def test_an_account_that_ends_has_no_address(mailing: Mailing) -> None:
    address = an_address()
    user = await mailing.a_user_with(address)

    ended = await user.ok("POST", "/v3/account/deactivate", {"auth": user.password_auth()})

    assert ended == {"id_server_unbind_result": "success"}
    sid = (await mailing.request(ADD, address, secret="another")).body["sid"]
    await mailing.follow(address, 1)
    other = await mailing.server.register()
    body = {"sid": sid, "client_secret": "another", "auth": other.password_auth()}
    assert (await other.post("/v3/account/3pid/add", body)).status == 200


async def test_administrators_see_addresses(mailing: Mailing) -> None:
    address, admin = an_address(), await mailing.server.register("admin")
    await mailing.server.application.accounts.service.set_admin(UserID(admin.user_id), is_admin=True)
    user = await mailing.a_user_with(address)

    shown = await admin.ok("GET", f"/_synapse/admin/v2/users/{quote(user.user_id)}")

    assert [(each["medium"], each["address"]) for each in shown["threepids"]] == [("email", address)]


# --- registering


async def test_registering_with_an_address(asking: Mailing) -> None:
    address, anonymous = an_address(), asking.server.anonymous
    body = {"username": unique(), "password": PASSWORD}
    status, challenge = await anonymous.post("/v3/register", body)
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.email.identity"]}])
    sid = (await asking.request(REGISTER, address)).body["sid"]
    auth = by_email({"sid": sid, "client_secret": "secret"}, challenge["session"])

    status, waiting = await anonymous.post("/v3/register", {**body, "auth": auth})
    assert (status, waiting["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    await asking.follow(address)
    status, registered = await anonymous.post("/v3/register", {**body, "auth": auth})

    assert status == 200
    user = anonymous.logged_in(registered)
    [listed] = (await user.ok("GET", "/v3/account/3pid"))["threepids"]
    assert listed["address"] == address
    again = {"username": unique(), "password": PASSWORD, "auth": by_email({"sid": sid, "client_secret": "secret"})}
    assert (await anonymous.post("/v3/register", again)).status == 401


async def test_an_address_may_be_asked_for_and_left_out(conninfo: str) -> None:
    registration = Registration(mode=RegistrationMode.OPEN, email=ProofOnRegistration.OPTIONAL)
    async with (
        MailServer.running() as mails,
        running(conninfo, mail=mails.settings(), registration=registration) as server,
    ):
        _, challenge = await server.anonymous.post("/v3/register", {})

        assert challenge["flows"] == [{"stages": ["m.login.dummy"]}, {"stages": ["m.login.email.identity"]}]
        await server.register()


async def test_registering_by_the_fallback_page(asking: Mailing) -> None:
    address, anonymous = an_address(), asking.server.anonymous
    _, challenge = await anonymous.post("/v3/register", {"username": unique(), "password": PASSWORD})
    path, session = "/v3/auth/m.login.email.identity/fallback/web", challenge["session"]
    assert b'name="email"' in (await anonymous.get(path, session=session)).body

    form = f"session={session}&email={address}".encode()
    shown = await anonymous.request("POST", path, form)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', shown.body.decode()))
    assert fields.keys() == {"session", "sid", "client_secret"}
    form = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
    assert (await anonymous.request("POST", path, form)).status == 403
    await asking.follow(address)
    assert b"onAuthDone" in (await anonymous.request("POST", path, form)).body

    status, registered = await anonymous.post("/v3/register", {"auth": {"session": session}})
    assert status == 200
    assert len((await anonymous.logged_in(registered).ok("GET", "/v3/account/3pid"))["threepids"]) == 1


async def test_the_fallback_page_sends_no_mail_for_a_session_that_is_made_up(asking: Mailing) -> None:
    form = f"session=x&email={an_address()}".encode()

    refused = await asking.server.anonymous.request("POST", "/v3/auth/m.login.email.identity/fallback/web", form)

    assert refused.status == 400
    assert asking.mails.taken == []


# --- logging in, and a lost password


async def test_logging_in_with_an_address(mailing: Mailing) -> None:
    address = an_address()
    user = await mailing.a_user_with(address)
    anonymous = mailing.server.anonymous
    identifier = {"type": "m.id.thirdparty", "medium": "email", "address": address.capitalize()}
    forms: list[dict[str, object]] = [{"identifier": identifier}, {"medium": "email", "address": address}]

    for form in forms:
        body = await anonymous.ok("POST", "/v3/login", {"type": "m.login.password", "password": PASSWORD, **form})
        assert body["user_id"] == user.user_id
    wrong: list[dict[str, object]] = [
        {"password": "wrong"},
        {"identifier": {**identifier, "address": an_address()}},
        {"identifier": {**identifier, "address": "nobody"}},
        {"identifier": {**identifier, "medium": "msisdn"}},
        {"identifier": {**identifier, "medium": "msisdn", "address": "447700900001"}},
        {"identifier": {"type": "m.id.phone", "country": "GB", "phone": "+447700900001"}},
    ]
    for changes in wrong:
        login = {"type": "m.login.password", "password": PASSWORD, "identifier": identifier, **changes}
        status, error = await anonymous.post("/v3/login", login)
        assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_lost_password_is_reset(mailing: Mailing) -> None:
    address, password = an_address(), "a new password"
    user = await mailing.a_user_with(address)
    anonymous = mailing.server.anonymous
    status, challenge = await anonymous.post("/v3/account/password", {"new_password": password})
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.email.identity"]}])
    sid = (await mailing.request(RESET, address)).body["sid"]
    auth = by_email({"sid": sid, "client_secret": "secret"}, challenge["session"])
    body = {"new_password": password, "auth": auth}

    status, waiting = await anonymous.post("/v3/account/password", body)
    assert (status, waiting["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    assert (await mailing.follow(address, 1)).status == 200
    assert (await anonymous.post("/v3/account/password", body)).status == 200

    assert (await user.get("/v3/account/whoami")).status == 401, "its devices have ended"
    assert (await dataclasses.replace(user, password=password).login()).user_id == user.user_id
    fresh = {"new_password": "another one", "auth": by_email({"sid": sid, "client_secret": "secret"})}
    assert (await anonymous.post("/v3/account/password", fresh)).status == 401, "the proof is used up"


async def test_devices_may_stay_when_a_password_is_reset(mailing: Mailing) -> None:
    address = an_address()
    user = await mailing.a_user_with(address)
    sid = (await mailing.request(RESET, address)).body["sid"]
    await mailing.follow(address, 1)
    auth = by_email({"sid": sid, "client_secret": "secret"})

    body = {"new_password": "a new password", "logout_devices": False, "auth": auth}
    assert (await mailing.server.anonymous.post("/v3/account/password", body)).status == 200

    assert (await user.get("/v3/account/whoami")).status == 200


async def test_nobody_resets_a_password_with_another_purposes_proof(mailing: Mailing) -> None:
    address = an_address()
    credentials = await mailing.prove(ADD, address)
    user = await mailing.server.register()
    await user.ok("POST", "/v3/account/3pid/add", {**credentials, "auth": user.password_auth()})
    registering = await mailing.prove(REGISTER, an_address())

    for proof in (credentials, registering):
        body = {"new_password": "a new password", "auth": by_email(proof)}
        assert (await mailing.server.anonymous.post("/v3/account/password", body)).status == 401


async def test_whoever_is_logged_in_changes_only_their_own_password(mailing: Mailing) -> None:
    address, mallory = an_address(), await mailing.server.register()
    user = await mailing.a_user_with(address)
    sid = (await mailing.request(RESET, address)).body["sid"]
    await mailing.follow(address, 1)
    body = {"new_password": "a new password", "auth": by_email({"sid": sid, "client_secret": "secret"})}

    status, error = await mallory.post("/v3/account/password", body)
    assert (status, error["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    assert (await user.post("/v3/account/password", body)).status == 200
    assert (await user.get("/v3/account/whoami")).status == 200
