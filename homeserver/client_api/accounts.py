"""Registration and account management (Client-Server API, "Account registration", "Account management")."""

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, Unauthorized
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, UserID
from federation.web import Answer, Call
from homeserver.client_api.authentication import TokenAuthenticator
from homeserver.client_api.fields import find_text
from homeserver.client_api.interactive_auth import (
    EMAIL,
    PASSWORD,
    PHONE,
    REGISTRATION_TOKEN,
    Attempt,
    Flows,
    InteractiveAuth,
)
from homeserver.client_api.login import APPLICATION_SERVICE, new_login, token_fields
from homeserver.client_api.routing import optional_requester, requester
from homeserver.services.accounts import AccountService, NewAccount
from homeserver.services.identity_servers import IdentityServers
from homeserver.services.sessions import NewLogin, SessionService

MAX_REGISTRATION_BODY = 64 * 1024


class RegistrationPolicy(Struct, frozen=True, kw_only=True):
    """Who may make an account."""

    flows: Flows | None
    """What registering needs; None where registration is closed."""
    allows_guests: bool
    uses_tokens: bool


class AccountsAPI:
    """Making, inspecting, changing and ending accounts."""

    def __init__(
        self,
        accounts: AccountService,
        sessions: SessionService,
        interactive_auth: InteractiveAuth,
        authenticator: TokenAuthenticator,
        *,
        identity_servers: IdentityServers,
        registration: RegistrationPolicy,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._interactive_auth = interactive_auth
        self._authenticator = authenticator
        self._identity_servers = identity_servers
        self._registration = registration

    async def register(self, call: Call) -> Answer:
        """POST /register."""
        body = await call.body(optional=True, max_bytes=MAX_REGISTRATION_BODY)
        if body.get("type") == APPLICATION_SERVICE:
            return await self._register_for_service(call, body)
        kind = call.query_text("kind") or "user"
        if kind == "guest":
            return await self._register_guest(call, body)
        if kind != "user":
            raise InvalidInput("kind must be user or guest")
        if self._registration.flows is None:
            raise Forbidden("Registration is closed on this server")
        attempt = await self._interactive_auth.begin(call, body, None)
        body = attempt.body
        localpart = _localpart(body)
        guest = await self._guest(body, localpart)
        if localpart is not None and guest is None:
            await self._accounts.check_available(localpart)
        password = None if body.get("password") is None else self._accounts.check_new_password(body["password"])
        new, inhibit_login = new_login(body), _inhibit_login(body)
        await self._interactive_auth.complete(attempt, self._registration.flows)
        if password is None:
            raise InvalidInput("A password is required", "M_MISSING_PARAM")
        account = _new_account(localpart, password, attempt)
        if guest is None:
            user_id = await self._accounts.register(account)
        else:
            user_id = await self._accounts.upgrade_guest(guest, account)
        return await self._logged_in(user_id, new, inhibit_login=inhibit_login)

    async def _guest(self, body: JsonObject, localpart: str | None) -> UserID | None:
        """The guest whose account is to become an ordinary one ("Guest Access"), if it is one's."""
        token = find_text(body, "guest_access_token")
        if token is None:
            return None
        try:
            who = await self._sessions.authenticate(token)
        except Unauthorized:
            who = None
        if who is None or not who.is_guest:
            raise Forbidden("guest_access_token is no access token of a guest")
        if localpart is None:
            raise InvalidInput("username is required", "M_MISSING_PARAM")
        if who.user_id != f"@{localpart}:{server_name_of(who.user_id)}":
            raise InvalidInput("username must be that of the guest")
        return who.user_id

    async def _logged_in(self, user_id: UserID, new: NewLogin, *, inhibit_login: bool) -> Answer:
        if inhibit_login:
            return {"user_id": user_id, "home_server": server_name_of(user_id)}
        return token_fields(await self._sessions.start(user_id, new))

    async def _register_for_service(self, call: Call, body: JsonObject) -> Answer:
        """Application Service API, "Server admin style permissions"."""
        service = self._authenticator.service(call)
        localpart = _localpart(body)
        if localpart is None:
            raise InvalidInput("username is required", "M_MISSING_PARAM")
        new, inhibit_login = new_login(body), _inhibit_login(body)
        user_id = await self._accounts.register_for_service(service, localpart)
        return await self._logged_in(user_id, new, inhibit_login=inhibit_login)

    async def _register_guest(self, call: Call, body: JsonObject) -> Answer:
        if not self._registration.allows_guests:
            raise Forbidden("Guests are not allowed on this server", "M_GUEST_ACCESS_FORBIDDEN")
        new = new_login({name: value for name, value in body.items() if name != "device_id"})
        user_id = await self._accounts.register(
            NewAccount(localpart=None, password=None, is_guest=True, address=call.request.remote or "")
        )
        return token_fields(await self._sessions.start(user_id, new))

    async def get_available(self, call: Call) -> Answer:
        """GET /register/available."""
        username = call.query_text("username")
        if username is None:
            raise InvalidInput("username is required", "M_MISSING_PARAM")
        if self._registration.flows is None:
            raise Forbidden("Registration is closed on this server")
        await self._accounts.check_available(username.lower())
        return {"available": True}

    async def get_token_validity(self, call: Call) -> Answer:
        """GET /register/m.login.registration_token/validity."""
        token = call.query_text("token")
        if token is None:
            raise InvalidInput("token is required", "M_MISSING_PARAM")
        if self._registration.flows is None:
            raise Forbidden("Registration is closed on this server")
        return {"valid": self._registration.uses_tokens and await self._accounts.is_registration_token_usable(token)}

    # --- an account that is logged in

    async def whoami(self, call: Call) -> Answer:
        """GET /account/whoami."""
        who = requester(call)
        answer: JsonObject = {"user_id": who.user_id, "is_guest": who.is_guest}
        if who.device_id is not None:
            answer["device_id"] = who.device_id
        return answer

    async def change_password(self, call: Call) -> Answer:
        """POST /account/password: also of who has lost it, and proves to have an address or number of the account's."""
        who = optional_requester(call)
        by_identifier = [[stage] for stage in (EMAIL, PHONE) if self._interactive_auth.has_stage(stage)]
        if who is None and not by_identifier:
            raise Unauthorized("An access token is required", "M_MISSING_TOKEN")
        attempt = await self._interactive_auth.begin(call, await call.body(max_bytes=MAX_REGISTRATION_BODY), who)
        password = self._accounts.check_new_password(attempt.body.get("new_password"))
        end_others = attempt.body.get("logout_devices", True)
        if not isinstance(end_others, bool):
            raise InvalidInput("logout_devices must be true or false")
        if who is None:
            await self._interactive_auth.complete(attempt, by_identifier)
            await self._accounts.reset_password(_identifier_proofs(attempt)[0], password, end_others=end_others)
        else:
            await self._interactive_auth.complete(attempt, [[PASSWORD], *by_identifier])
            await self._accounts.change_password(who.user_id, password, keep=who.device_id, end_others=end_others)
        return {}

    async def deactivate(self, call: Call) -> Answer:
        """POST /account/deactivate."""
        who = requester(call)
        body = await call.body(optional=True, max_bytes=MAX_REGISTRATION_BODY)
        erase = body.get("erase", False)
        if not isinstance(erase, bool):
            raise InvalidInput("erase must be true or false")
        find_text(body, "id_server")
        body = await self._interactive_auth.require(call, body, who)
        await self._accounts.deactivate(who.user_id, erase=body.get("erase") is True)
        is_unbound = await self._identity_servers.unbind_all(who.user_id, body.get("id_server"))
        return {"id_server_unbind_result": "success" if is_unbound else "no-support"}


def _localpart(body: JsonObject) -> str | None:
    username = body.get("username")
    if username is None:
        return None
    if not isinstance(username, str):
        raise InvalidInput("username must be a string")
    return username.lower()


def _inhibit_login(body: JsonObject) -> bool:
    value = body.get("inhibit_login", False)
    if not isinstance(value, bool):
        raise InvalidInput("inhibit_login must be true or false")
    return value


def _identifier_proofs(attempt: Attempt) -> list[str]:
    return [attempt.proofs[stage] for stage in (EMAIL, PHONE) if stage in attempt.proofs]


def _new_account(localpart: str | None, password: str, attempt: Attempt) -> NewAccount:
    return NewAccount(
        localpart=localpart,
        password=password,
        registration_token=attempt.proofs.get(REGISTRATION_TOKEN),
        identifier_proofs=_identifier_proofs(attempt),
        address=attempt.address,
    )
