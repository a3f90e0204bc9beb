"""How the client API's endpoints are declared, and the gate that every call passes: login, budget, endpoint."""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Protocol

from msgspec import Struct

from federation.protocol.errors import Forbidden
from federation.web import Answer, Call, Endpoint, Route
from homeserver.services.requester import Requester


class Login(Enum):
    """Whether an endpoint needs an access token."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class ClientRoute(Struct, frozen=True, kw_only=True):
    """One endpoint of the Client-Server API."""

    method: str
    path: str
    """Below `/_matrix/client/`, with its version, such as `v3/account/whoami`. What is `v3` is also served as `r0`.

    With a slash before it, it is whole.
    """
    endpoint: Endpoint
    login: Login = Login.REQUIRED
    limit: str | None = None
    """The budget that a call spends from (`services/rate_limits.py`); None is unlimited."""
    guests: bool = False
    """Whether guests may call it ("Guest Access")."""
    while_locked: bool = False
    """Whether a locked account may call it: logging out."""
    waits: bool = False
    """Whether a call may wait long: before its answer is given, it is asked again whether who asks may have it."""
    unstable: tuple[str, ...] = ()
    """Further paths, of either kind."""


class Authenticator(Protocol):
    """Turns a call into who asks; raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN, M_USER_LOCKED, ..."""

    async def requester(self, call: Call, *, while_locked: bool) -> Requester:
        """Who asks; raises when there is no usable token."""

    async def check_again(self, call: Call, *, while_locked: bool) -> None:
        """Raises what `requester` would by now: the session may have ended while the call waited."""

    def has_token(self, call: Call) -> bool:
        """Whether the call carries any token, usable or not."""


def requester(call: Call) -> Requester:
    """Who asks, in an endpoint whose login is required."""
    context: Requester = call.context
    return context


def optional_requester(call: Call) -> Requester | None:
    """Who asks, in an endpoint whose login is optional."""
    context: Requester | None = call.context
    return context


def build_routes(
    routes: Iterable[ClientRoute],
    authenticator: Authenticator,
    limits: Mapping[str, Callable[[Call, str], None]],
    spend_on_body: Callable[[str, int], None],
) -> list[Route]:
    """The routes of the API, each behind its gate. `limits` spends from a budget by the caller's key, and
    `spend_on_body` for a body of a size."""
    built: list[Route] = []
    for route in routes:
        endpoint = _gated(route, authenticator, limits, spend_on_body)
        built.extend(Route(route.method, _whole(path), endpoint) for path in _paths(route))
    return built


def _whole(path: str) -> str:
    return path if path.startswith("/") else f"/_matrix/client/{path}"


def _paths(route: ClientRoute) -> list[str]:
    paths = [route.path, *route.unstable]
    if route.path.startswith("v3/"):
        paths.append("r0/" + route.path.removeprefix("v3/"))
    return paths


def _gated(
    route: ClientRoute,
    authenticator: Authenticator,
    limits: Mapping[str, Callable[[Call, str], None]],
    spend_on_body: Callable[[str, int], None],
) -> Endpoint:
    login, spend = route.login, limits[route.limit] if route.limit is not None else None

    async def gated(call: Call) -> Answer:
        key = call.request.remote or ""
        if login is Login.REQUIRED or (login is Login.OPTIONAL and authenticator.has_token(call)):
            who = await authenticator.requester(call, while_locked=route.while_locked)
            call.context = who
            if who.is_guest and not route.guests:
                raise Forbidden("Guests may not do this", "M_GUEST_ACCESS_FORBIDDEN")
            key = who.user_id if who.is_rate_limited else ""
        if key:
            if spend is not None:
                spend(call, key)
            if call.request.can_read_body:
                call.charge = partial(spend_on_body, key)
        answer = await route.endpoint(call)
        if route.waits and call.context is not None:
            await authenticator.check_again(call, while_locked=route.while_locked)
        return answer

    return gated


def admin_route(method: str, path: str, endpoint: Endpoint, authenticator: Authenticator) -> Route:
    """An endpoint for administrators of this server only; `path` is whole."""

    async def gated(call: Call) -> Answer:
        who = await authenticator.requester(call, while_locked=False)
        if not who.is_admin:
            raise Forbidden("You are not an administrator of this server")
        call.context = who
        return await endpoint(call)

    return Route(method, path, gated)
