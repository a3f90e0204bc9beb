"""Who sends a request: the X-Matrix header verified (Server-Server API, "Request Authentication"), and the gate.

`build_federation_routes` puts every endpoint behind the gate: first the signature, then the budget of the server that
signed, then the endpoint, which gets a `FederationCall`. A plain `Route` among them is asked without a signature, and
spends from the budget of the address that it is asked from. So does every request whose signature does not hold, or
whose body cannot be read: nobody makes us look for keys without end.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from aiohttp import web

from federation.protocol import canonical_json, request_signing
from federation.protocol.errors import Forbidden, InvalidInput, LimitExceeded, MatrixError, Unauthorized
from federation.protocol.request_signing import Authorization, SignedRequest
from federation.protocol.types import JsonObject, ServerName
from federation.web import Answer, Call, Endpoint, Route

MAX_BODY_BYTES = 1024 * 1024
"""Of most bodies, which carry one event or a query; a transaction's route says more."""

MAX_PENDING = 100
"""So many requests from one address may wait for a body, or for keys, which come from whoever the request names."""

MAX_HEADERS = 10
"""A server with several keys may send an Authorization header for each."""


class FederationCall(Call):
    """A request that another server signed."""

    __slots__ = ("json", "origin")

    def __init__(
        self, request: web.BaseRequest, path: Mapping[str, str], *, origin: ServerName, json: JsonObject
    ) -> None:
        super().__init__(request, path)
        self.origin = origin
        """The server that signed the request, never our own."""
        self.json = json
        """The body, of which the signature holds; empty for a request that has none."""


FederationEndpoint = Callable[[FederationCall], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class FederationRoute:
    """One endpoint that other servers ask with a signature; `path` is whole."""

    method: str
    path: str
    endpoint: FederationEndpoint
    max_bytes: int = MAX_BODY_BYTES
    max_depth: int | None = None
    """How deeply the body may be nested; None where it carries events, each of which is held to the limit by itself."""


class Budget(Protocol):
    """How many requests a server, or an address, has left (`rate_limits.federation`)."""

    def check(self, key: str) -> None:
        """Raise LimitExceeded when there is none left."""

    def spend(self, key: str) -> None:
        """Take one; raises LimitExceeded when there is none left."""


VerifyRequest = Callable[[Authorization, SignedRequest], Awaitable[None]]
"""Raises Unauthorized unless the origin signed the request: `Keyring.verify_request`."""


class Authenticator:
    """Turns a call into one of a known origin."""

    def __init__(
        self,
        server_name: ServerName,
        verify_request: VerifyRequest,
        budget: Budget,
        note_alive: Callable[[ServerName], None],
        *,
        speaks_with: Callable[[ServerName], bool],
    ) -> None:
        self._server_name = server_name
        self._verify_request = verify_request
        self._budget = budget
        self._note_alive = note_alive
        self._speaks_with = speaks_with
        self._pending: Counter[str] = Counter()

    async def authenticate(self, call: Call, *, max_bytes: int, max_depth: int | None) -> FederationCall:
        """The call as one of the server that signed it, within its budget.

        Raises Unauthorized (401) if no signature holds, Forbidden, LimitExceeded, and what is wrong with the body.
        """
        address = call.request.remote or ""
        self._budget.check(address)
        if self._pending[address] >= MAX_PENDING:
            raise LimitExceeded(10_000)
        self._pending[address] += 1
        try:
            authorizations = self._read_headers(call.request)
            raw = await call.raw_body(max_bytes)
            json = await self._verify_any(authorizations, call.request, raw, max_depth)
        except MatrixError:
            self._budget.spend(address)
            raise
        finally:
            self._pending[address] -= 1
            if not self._pending[address]:
                del self._pending[address]
        origin = authorizations[0].origin
        self._budget.spend(origin)
        self._note_alive(origin)
        return FederationCall(call.request, call.path, origin=origin, json=json)

    def spend(self, call: Call) -> None:
        """Take one from the budget of the address that asks without a signature."""
        self._budget.spend(call.request.remote or "")

    def _read_headers(self, request: web.BaseRequest) -> list[Authorization]:
        values = request.headers.getall("Authorization", [])
        if not values:
            raise _unauthorized("The request has no X-Matrix authorization")
        if len(values) > MAX_HEADERS:
            raise _unauthorized("The request has too many Authorization headers")
        authorizations = [request_signing.parse_header(value) for value in values]
        if len({authorization.origin for authorization in authorizations}) > 1:
            raise _unauthorized("The request is signed by more than one server")
        for authorization in authorizations:
            if authorization.destination not in (None, self._server_name):
                raise _unauthorized("The request is meant for another server")
        if authorizations[0].origin == self._server_name:
            raise _unauthorized("The request claims to be from this server itself")
        if not self._speaks_with(authorizations[0].origin):
            raise Forbidden("This server does not federate with yours")
        return authorizations

    async def _verify_any(
        self, authorizations: list[Authorization], request: web.BaseRequest, raw: bytes, max_depth: int | None
    ) -> JsonObject:
        """The body, once one of the signatures holds; one is enough, as the others may be of keys not known yet."""
        signed = SignedRequest(
            method=request.method,
            uri=request.raw_path,
            origin=authorizations[0].origin,
            destination=self._server_name,
            content=raw or None,
        )
        for authorization in authorizations[:-1]:
            try:
                return await self._verify(authorization, signed, max_depth)
            except Unauthorized:
                continue
        return await self._verify(authorizations[-1], signed, max_depth)

    async def _verify(self, authorization: Authorization, signed: SignedRequest, max_depth: int | None) -> JsonObject:
        """The body, if the signature holds for it as it came, or else for its canonical form.

        What was signed is the canonical form, and most servers send just that. It is also the only way to verify what
        cannot be encoded again as the sender did, such as a huge number in an event of an old room.
        """
        try:
            await self._verify_request(authorization, signed)
        except Unauthorized:
            if signed.content is None:
                raise
            body = canonical_json.loads_object(signed.content, max_depth=max_depth)
            canonical = canonical_json.encode(body)
            if canonical == signed.content:
                raise
            await self._verify_request(authorization, replace(signed, content=canonical))
            return body
        if signed.content is not None:
            return canonical_json.loads_object(signed.content, max_depth=max_depth)
        if signed.method in ("PUT", "POST"):
            raise InvalidInput("The request needs a body", "M_NOT_JSON")
        return {}


def build_federation_routes(routes: Iterable[FederationRoute | Route], authenticator: Authenticator) -> list[Route]:
    """The routes of the API, each behind its gate."""
    return [Route(route.method, route.path, _gated(route, authenticator)) for route in routes]


def _gated(route: FederationRoute | Route, authenticator: Authenticator) -> Endpoint:
    if isinstance(route, Route):
        ask = route.endpoint

        async def unsigned(call: Call) -> Answer:
            authenticator.spend(call)
            return await ask(call)

        return unsigned
    endpoint, max_bytes, max_depth = route.endpoint, route.max_bytes, route.max_depth

    async def signed(call: Call) -> Answer:
        return await endpoint(await authenticator.authenticate(call, max_bytes=max_bytes, max_depth=max_depth))

    return signed


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, "M_UNAUTHORIZED")
