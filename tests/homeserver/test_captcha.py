"""Captchas on registration (Client-Server API, "Google ReCaptcha"), checked by somebody on loopback."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from urllib.parse import parse_qs

import orjson
import pytest
import pytest_asyncio

from federation.protocol.errors import LimitExceeded
from homeserver.config import Captcha, ExistingFile, Federation, Registration, RegistrationMode, Secret
from homeserver.services.rate_limits import RateLimits
from tests.client import PASSWORD, Server, unique
from tests.federation.authority import Authority
from tests.federation.https_servers import Request, Write, https_server, whole_answer
from tests.servers import running

PATH = "/v3/auth/m.login.recaptcha/fallback/web"


@dataclass(slots=True)
class Checker:
    """Finds the answer `right` right."""

    asked: list[dict[str, list[str]]] = field(default_factory=list)
    body: bytes | None = None
    """Instead of what is so."""

    async def answer(self, request: Request, write: Write) -> None:
        form = parse_qs(request.body.decode())
        self.asked.append(form)
        body = orjson.dumps({"success": form["response"] == ["right"]}) if self.body is None else self.body
        await whole_answer(body)(request, write)


@dataclass(slots=True)
class Scene:
    server: Server
    checker: Checker


@pytest_asyncio.fixture(scope="session")
async def checking(databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """A server on which who registers solves a captcha."""
    authority, checker = Authority(tmp_path_factory.mktemp("authority")), Checker()
    async with https_server(authority, "127.0.0.1", answer=checker.answer) as place:
        captcha = Captcha(
            site_key="site<key>", secret=Secret("secret"), verify_url=f"https://127.0.0.1:{place.port}/verify"
        )
        federation = Federation(
            allowed_ranges=(ip_network("127.0.0.0/8"),), certificate_authorities=(ExistingFile(authority.certificate),)
        )
        registration = Registration(mode=RegistrationMode.OPEN, captcha=captcha)
        async with running(databases("captcha"), registration=registration, federation=federation) as server:
            yield Scene(server, checker)


@pytest.fixture
def scene(checking: Scene) -> Scene:
    checking.checker.asked.clear()
    checking.checker.body = None
    return checking


async def test_who_registers_solves_it(scene: Scene) -> None:
    anonymous, body = scene.server.anonymous, {"username": unique(), "password": PASSWORD}
    status, challenge = await anonymous.post("/v3/register", body)
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.recaptcha"]}])
    assert challenge["params"] == {"m.login.recaptcha": {"public_key": "site<key>"}}

    for response, errcode in ((None, "M_CAPTCHA_NEEDED"), ("wrong", "M_CAPTCHA_INVALID"), (5, "M_BAD_JSON")):
        auth = {"type": "m.login.recaptcha", "session": challenge["session"], "response": response}
        status, error = await anonymous.post("/v3/register", {**body, "auth": auth})
        assert (status, error["errcode"]) == (401, errcode)
    auth = {"type": "m.login.recaptcha", "session": challenge["session"], "response": "right"}
    assert (await anonymous.post("/v3/register", {**body, "auth": auth})).status == 200

    assert scene.checker.asked[-1] == {"secret": ["secret"], "response": ["right"], "remoteip": ["127.0.0.1"]}


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"success": "true"}', b'{"success": 1}', b"{" * 100_000])
async def test_an_answer_that_is_none_lets_nobody_in(scene: Scene, answer: bytes) -> None:
    scene.checker.body = answer
    auth = {"type": "m.login.recaptcha", "response": "right"}

    status, error = await scene.server.anonymous.post(
        "/v3/register", {"username": unique(), "password": PASSWORD, "auth": auth}
    )

    assert status == 401
    assert error["errcode"] in ("M_CAPTCHA_INVALID", "M_UNKNOWN")


async def test_the_page_shows_it_and_nothing_else_runs(scene: Scene) -> None:
    anonymous = scene.server.anonymous
    _, challenge = await anonymous.post("/v3/register", {"username": unique(), "password": PASSWORD})
    session = challenge["session"]

    shown = await anonymous.get(PATH, session=session)

    assert b'data-sitekey="site&lt;key&gt;"' in shown.body
    policy = dict(each.split(" ", 1) for each in shown.headers["Content-Security-Policy"].split("; "))
    assert policy["script-src"] == policy["frame-src"] == "https://www.google.com https://www.gstatic.com"
    assert policy["default-src"] == "'none'"
    wrong = await anonymous.request("POST", PATH, f"session={session}&g-recaptcha-response=wrong".encode())
    assert (wrong.status, b"onAuthDone" in wrong.body) == (401, False)
    right = await anonymous.request("POST", PATH, f"session={session}&g-recaptcha-response=right".encode())
    assert (right.status, b"onAuthDone" in right.body) == (200, True)
    assert (await anonymous.post("/v3/register", {"auth": {"session": session}})).status == 200


@pytest.mark.one_process("its budgets are replaced here")
async def test_an_address_has_few_checked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def spend(_self: RateLimits, name: str, key: str, *, cost: int = 1) -> None:
        if (name, key) == ("login", "127.0.0.1"):
            raise LimitExceeded(1000)

    monkeypatch.setattr(RateLimits, "spend", spend)
    auth = {"type": "m.login.recaptcha", "response": "right"}

    answer = await scene.server.anonymous.post("/v3/register", {"username": unique(), "auth": auth})

    assert (answer.status, scene.checker.asked) == (429, [])
