"""Login, refresh and logout (Client-Server API, "Login", "Refreshing access tokens", "Logout")."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.authentication import TokenAuthenticator
from homeserver.client_api.fields import get_bool, get_text
from homeserver.client_api.identifiers import user_of_login
from homeserver.client_api.interactive_auth import InteractiveAuth
from homeserver.client_api.routing import requester
from homeserver.services.accounts import LOGIN_TOKEN_LIFETIME_MS, AccountService
from homeserver.services.sessions import NewLogin, SessionService, Tokens, check_device_id, check_display_name

PASSWORD = "m.login.password"  # noqa: S105  # the name of a login type
TOKEN = "m.login.token"  # noqa: S105  # the name of a login type
APPLICATION_SERVICE = "m.login.application_service"
MAX_LOGIN_BODY = 64 * 1024
"""Of who has not said yet who they are."""


class LoginAPI:
    """Beginning and ending sessions."""

    def __init__(
        self,
        accounts: AccountService,
        sessions: SessionService,
        authenticator: TokenAuthenticator,
        interactive_auth: InteractiveAuth,
        *,
        base_url: str | None,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._authenticator = authenticator
        self._interactive_auth = interactive_auth
        self._base_url = base_url

    async def get_flows(self, _call: Call) -> Answer:
        """GET /login."""
        return {
            "flows": [
                {"type": PASSWORD},
                {"type": TOKEN, "get_login_token": True},
                {"type": APPLICATION_SERVICE},
            ]
        }

    async def login(self, call: Call) -> Answer:
        """POST /login."""
        body = await call.body(max_bytes=MAX_LOGIN_BODY)
        kind = body.get("type")
        if kind is None:
            raise InvalidInput("type is required", "M_MISSING_PARAM")
        new = new_login(body)
        if kind == PASSWORD:
            user_id = await self._accounts.check_password(
                user_of_login(body), get_text(body, "password"), address=call.request.remote or ""
            )
        elif kind == TOKEN:
            user_id = await self._accounts.use_login_token(get_text(body, "token"), address=call.request.remote or "")
        elif kind == APPLICATION_SERVICE:
            service, user = self._authenticator.service(call), user_of_login(body)
            if not isinstance(user, str):
                raise InvalidInput("Application services log users in by their user IDs")
            user_id = await self._accounts.find_for_service(service, user)
        else:
            raise InvalidInput("Unknown login type", "M_UNKNOWN")
        answer = token_fields(await self._sessions.start(user_id, new))
        if self._base_url is not None:
            answer["well_known"] = {"m.homeserver": {"base_url": self._base_url}}
        return answer

    async def get_token(self, call: Call) -> Answer:
        """POST /login/get_token ("Token-based login"): consent is asked for each time."""
        who = requester(call)
        await self._interactive_auth.require(call, await call.body(optional=True), who)
        token = await self._accounts.make_login_token(who.user_id)
        return {"login_token": token, "expires_in_ms": LOGIN_TOKEN_LIFETIME_MS}

    async def refresh(self, call: Call) -> Answer:
        """POST /refresh."""
        tokens = await self._sessions.refresh(get_text(await call.body(max_bytes=MAX_LOGIN_BODY), "refresh_token"))
        fields = token_fields(tokens)
        return {name: fields[name] for name in ("access_token", "refresh_token", "expires_in_ms") if name in fields}

    async def logout(self, call: Call) -> Answer:
        """POST /logout: the device goes with the session."""
        who = requester(call)
        if who.device_id is not None:
            await self._sessions.end_devices(who.user_id, [who.device_id])
        return {}

    async def logout_all(self, call: Call) -> Answer:
        """POST /logout/all."""
        await self._sessions.end_devices(requester(call).user_id)
        return {}


def new_login(body: JsonObject) -> NewLogin:
    """The device that a login or registration asks for."""
    return NewLogin(
        device_id=check_device_id(body.get("device_id")),
        display_name=check_display_name(body.get("initial_device_display_name")),
        wants_refresh_token=get_bool(body, "refresh_token"),
    )


def token_fields(tokens: Tokens) -> JsonObject:
    """What a client is told of its new session."""
    fields: JsonObject = {
        "user_id": tokens.user_id,
        "access_token": tokens.access_token,
        "device_id": tokens.device_id,
        "home_server": tokens.user_id.partition(":")[2],
    }
    if tokens.refresh_token is not None:
        fields["refresh_token"] = tokens.refresh_token
    if tokens.expires_in_ms is not None:
        fields["expires_in_ms"] = tokens.expires_in_ms
    return fields
