"""The stages of user-interactive authentication (Client-Server API, "Authentication types")."""

from collections.abc import Sequence
from dataclasses import dataclass

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject
from homeserver.client_api.identifiers import user_of_login
from homeserver.services.accounts import AccountService
from homeserver.services.requester import Requester


class DummyStage:
    """Always succeeds ("Dummy Auth")."""

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, _auth: JsonObject, _requester: Requester | None, _address: str) -> None:
        """Succeed."""


class PasswordStage:
    """The account's password ("Password-based"): only that of the account that asks."""

    def __init__(self, accounts: AccountService) -> None:
        self._accounts = accounts

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, auth: JsonObject, requester: Requester | None, address: str) -> None:
        """Raise M_FORBIDDEN unless the password is that of who asks."""
        password = auth.get("password")
        if requester is None or not isinstance(password, str):
            raise InvalidInput("A password is required", "M_MISSING_PARAM")
        has_identifier = "identifier" in auth or "user" in auth
        user = user_of_login(auth) if has_identifier else requester.user_id
        if await self._accounts.check_password(user, password, address=address) != requester.user_id:
            raise Forbidden("Invalid user name or password")


class RegistrationTokenStage:
    """A token that an administrator handed out ("Token-authenticated registration")."""

    def __init__(self, accounts: AccountService) -> None:
        self._accounts = accounts

    def params(self) -> JsonObject | None:
        """Nothing to know."""
        return None

    async def check(self, auth: JsonObject, _requester: Requester | None, address: str) -> None:
        """Raise M_UNAUTHORIZED unless the token could be used now; registering then uses it."""
        token = auth.get("token")
        if not isinstance(token, str):
            raise InvalidInput("A registration token is required", "M_MISSING_PARAM")
        if not await self._accounts.is_registration_token_usable(token, address=address):
            raise Forbidden("The registration token is not valid", "M_UNAUTHORIZED")


@dataclass(frozen=True, slots=True)
class Policy:
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

    async def check(self, _auth: JsonObject, _requester: Requester | None, _address: str) -> None:
        """Submitting the stage is agreeing."""
