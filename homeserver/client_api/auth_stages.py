"""The stages of user-interactive authentication (Client-Server API, "Authentication types")."""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject
from homeserver.client_api.fields import find_text, get_object, get_text
from homeserver.client_api.identifiers import user_of_login
from homeserver.client_api.interactive_auth import Asker
from homeserver.services.accounts import AccountService
from homeserver.services.captcha import Captcha
from homeserver.services.identifiers import IdentifierService
from homeserver.services.rate_limits import RateLimits
from storage.identifier_validations import Purpose


class DummyStage:
    """Always succeeds ("Dummy Auth")."""

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, _auth: JsonObject, _asker: Asker) -> None:
        """Succeed."""


class PasswordStage:
    """The account's password ("Password-based"): only that of the account that asks."""

    def __init__(self, accounts: AccountService) -> None:
        self._accounts = accounts

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, auth: JsonObject, asker: Asker) -> None:
        """Raise M_FORBIDDEN unless the password is that of who asks."""
        password = auth.get("password")
        if asker.user_id is None or not isinstance(password, str):
            raise InvalidInput("A password is required", "M_MISSING_PARAM")
        has_identifier = "identifier" in auth or "user" in auth
        user = user_of_login(auth) if has_identifier else asker.user_id
        if await self._accounts.check_password(user, password, address=asker.address) != asker.user_id:
            raise Forbidden("Invalid user name or password")


class RegistrationTokenStage:
    """A token that an administrator handed out ("Token-authenticated registration")."""

    def __init__(self, accounts: AccountService) -> None:
        self._accounts = accounts

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, auth: JsonObject, asker: Asker) -> str:
        """Raise M_UNAUTHORIZED unless the token could be used now; registering then uses it."""
        token = auth.get("token")
        if not isinstance(token, str):
            raise InvalidInput("A registration token is required", "M_MISSING_PARAM")
        if not await self._accounts.is_registration_token_usable(token, address=asker.address):
            raise Forbidden("The registration token is not valid", "M_UNAUTHORIZED")
        return token


class IdentifierStage:
    """An e-mail address or a phone number that was proven ("Email-based", "Phone number/MSISDN-based"): one to
    register with, or who lost a password has."""

    def __init__(self, identifiers: IdentifierService, medium: str) -> None:
        self._identifiers = identifiers
        self._medium = medium

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, auth: JsonObject, asker: Asker) -> str:
        """Raise M_THREEPID_AUTH_FAILED until what was sent has been followed or submitted; the ID of the proof."""
        credentials = get_object(auth, "threepid_creds") or get_object(auth, "threepidCreds")
        sid, client_secret = get_text(credentials, "sid"), get_text(credentials, "client_secret")
        resets = asker.path.endswith("/account/password")
        purpose = Purpose.RESET_PASSWORD if resets else Purpose.REGISTER
        proven = await self._identifiers.check_proven(purpose, sid, client_secret)
        if proven.identifier.medium != self._medium:
            raise Forbidden("This is an address of another kind", "M_THREEPID_AUTH_FAILED")
        if asker.user_id is not None and await self._identifiers.find_user(proven.identifier) != asker.user_id:
            raise Forbidden("This is not an address of yours", "M_THREEPID_AUTH_FAILED")
        return proven.sid


class CaptchaStage:
    """A captcha, solved ("Google ReCaptcha")."""

    def __init__(self, captcha: Captcha, rate_limits: RateLimits) -> None:
        self._captcha = captcha
        self._rate_limits = rate_limits

    def params(self) -> JsonObject | None:
        """What shows it."""
        return {"public_key": self._captcha.site_key}

    async def check(self, auth: JsonObject, asker: Asker) -> None:
        """Raise M_CAPTCHA_NEEDED, M_CAPTCHA_INVALID, or LimitExceeded for an address that has many checked."""
        self._rate_limits.spend("login", asker.address)
        await self._captcha.check(find_text(auth, "response") or "", asker.address)


class Policy(Struct, frozen=True):
    """A document that people agree to."""

    name: str
    """Its key in the parameters, such as `privacy_policy`."""
    version: str
    language: str
    title: str
    url: str


class TermsStage:
    """Agreeing to the server's documents ("Terms of service at registration")."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._params: JsonObject = {"policies": {}}
        for policy in policies:
            document = self._params["policies"].setdefault(policy.name, {"version": policy.version})
            document[policy.language] = {"name": policy.title, "url": policy.url}

    def params(self) -> JsonObject | None:
        """The documents."""
        return self._params

    async def check(self, _auth: JsonObject, _asker: Asker) -> None:
        """Submitting the stage is agreeing."""
