"""Who sends a request: the X-Matrix header verified (Server-Server API, "Request Authentication"), and the gate.

`build_federation_routes` puts every endpoint behind the gate: first the signature, then the budget of the server that
signed, then the endpoint, which gets a `FederationCall`. A plain `Route` among them is asked without a signature, and
spends from the budget of the address that it is asked from. So does every request whose signature does not hold, or
whose body cannot be read: nobody makes us look for keys without end.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from federation.arriving import BODIES, Body, is_small
from federation.inbound.streaming import LargeAnswers
from federation.protocol import canonical_json, request_signing
from federation.protocol.errors import Forbidden, InvalidInput, LimitExceeded, MatrixError, NotFound, Unauthorized
from federation.protocol.request_signing import Authorization, SignedRequest
from federation.protocol.types import JsonObject, ServerName
from federation.rooms.incomplete_rooms import BeingJoined
from federation.web import Answer, Call, Endpoint, Route
from storage.tail import Tail

MAX_BODY_BYTES = 1024 * 1024
"""Of most bodies, which carry one event or a query; a transaction's route says more."""

BYTES_PER_REQUEST = 100_000
"""A body of so many bytes costs as much of the budget as one more request."""

MAX_PENDING = 100
"""So many requests from one network may wait for a body, or for keys, which come from whoever the request names."""

MAX_HEADERS = 10
"""A server with several keys may send an Authorization header for each."""


class FederationCall(Call):
    """A request that another server signed."""

    __slots__ = ("_budget", "json", "origin", "size")

    def __init__(self, call: Call, budget: "Budget", *, origin: ServerName, json: JsonObject, size: int) -> None:
        super().__init__(call.request, call.path)
        self._budget = budget
        self.origin = origin
        """The server that signed the request, never our own."""
        self.json = json
        """The body, of which the signature holds; empty for a request that has none."""
        self.size = size
        """Bytes of the body."""

    def spend(self, cost: int) -> None:
        """Take more of the origin's budget than one for the request; raises LimitExceeded where there is less."""
        if cost:
            self._budget.spend(self.origin, cost=cost)


FederationEndpoint = Callable[[FederationCall], Awaitable[Answer]]


class FederationRoute(Struct, frozen=True):
    """One endpoint that other servers ask with a signature; `path` is whole."""

    method: str
    path: str
    endpoint: FederationEndpoint
    max_bytes: int = MAX_BODY_BYTES
    is_large: bool = False
    """Whether the answer may be large: few of these are made for one server at a time."""
    max_depth: int | None = None
    """How deeply the body may be nested; None where it carries events, each of which is held to the limit by itself."""


class Budget(Protocol):
    """How many requests a server, or an address, has left (`rate_limits.federation`)."""

    def check(self, key: str) -> None:
        """Raise LimitExceeded when there is none left."""

    def spend(self, key: str, *, cost: int = 1) -> None:
        """Take so much; raises LimitExceeded, and takes nothing, when there is less."""


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
        tail: Tail,
        speaks_with: Callable[[ServerName], bool],
    ) -> None:
        self._server_name = server_name
        self._verify_request = verify_request
        self._budget = budget
        self._note_alive = note_alive
        self._tail = tail
        self._speaks_with = speaks_with
        self._pending: Counter[str] = Counter()

    async def authenticate(self, call: Call, *, max_bytes: int, max_depth: int | None) -> FederationCall:
        """The call as one of the server that signed it, within its budget.

        Raises Unauthorized (401) if no signature holds, Forbidden, LimitExceeded, and what is wrong with the body.
        """
        network = call.network
        self._budget.check(network)
        if self._pending[network] >= MAX_PENDING:
            raise LimitExceeded(10_000)
        self._pending[network] += 1
        try:
            authorizations = self._read_headers(call.request)
            if is_small(call.request.content_length) or not call.request.can_read_body:
                signed = await self._receive(call, authorizations, network, max_bytes=max_bytes)
            else:
                async with BODIES.arriving() as held:  # until it is known whose it is
                    signed = await self._receive(call, authorizations, network, max_bytes=max_bytes, held=held)
        except LimitExceeded:
            raise
        except MatrixError:
            self._budget.spend(network)
            raise
        finally:
            self._pending[network] -= 1
            if not self._pending[network]:
                del self._pending[network]
        self._budget.spend(signed.origin, cost=1 + _weight(signed))
        self._note_alive(signed.origin)
        if self._tail.is_behind():  # whoever asks may know it from another process
            await self._tail.hear_neighbours()
        call.context = signed.origin
        return FederationCall(
            call,
            self._budget,
            origin=signed.origin,
            json=_body(signed, max_depth),
            size=len(signed.content or b""),
        )

    async def _receive(
        self, call: Call, authorizations: list[Authorization], network: str, *, max_bytes: int, held: Body | None = None
    ) -> SignedRequest:
        """The request with its body, verified."""
        signed = SignedRequest(
            method=call.request.method,
            uri=call.request.raw_path,
            origin=authorizations[0].origin,
            destination=self._server_name,
            content=await call.raw_body(max_bytes, held) or None,
        )
        await self._verify(authorizations, signed, network)
        return signed

    def spend(self, call: Call) -> None:
        """Take one from the budget of the network that asks without a signature."""
        self._budget.spend(call.network)

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

    async def _verify(self, authorizations: Sequence[Authorization], signed: SignedRequest, network: str) -> None:
        """Raise Unauthorized unless a signature holds for the body as it came, or else for its canonical form.

        What was signed is the canonical form, and most servers send just that. It is also the only way to verify what
        cannot be encoded again as the sender did, such as a huge number in an event of an old room. Reading what
        nobody has signed yet costs the network in advance.
        """
        try:
            await self._verify_any(authorizations, signed)
        except Unauthorized:
            if signed.content is None:
                raise
            if weight := _weight(signed):
                self._budget.spend(network, cost=weight)
            canonical = canonical_json.encode(canonical_json.loads_object(signed.content, max_depth=None))
            if canonical == signed.content:
                raise
            await self._verify_any(authorizations, replace(signed, content=canonical))

    async def _verify_any(self, authorizations: Sequence[Authorization], signed: SignedRequest) -> None:
        """One signature that holds is enough: the others may be of keys that are not known yet."""
        for authorization in authorizations[:-1]:
            try:
                return await self._verify_request(authorization, signed)
            except Unauthorized:
                continue
        return await self._verify_request(authorizations[-1], signed)


def _weight(signed: SignedRequest) -> int:
    """What a request costs beside others, for the work of reading it."""
    return len(signed.content or b"") // BYTES_PER_REQUEST


def _body(signed: SignedRequest, max_depth: int | None) -> JsonObject:
    if signed.content is not None:
        return canonical_json.loads_object(signed.content, max_depth=max_depth)
    if signed.method in ("PUT", "POST"):
        raise InvalidInput("The request needs a body", "M_NOT_JSON")
    return {}


def build_federation_routes(routes: Iterable[FederationRoute | Route], authenticator: Authenticator) -> list[Route]:
    """The routes of the API, each behind its gate."""
    large_answers = LargeAnswers()
    return [Route(route.method, route.path, _gated(route, authenticator, large_answers)) for route in routes]


def _gated(route: FederationRoute | Route, authenticator: Authenticator, large_answers: LargeAnswers) -> Endpoint:
    if isinstance(route, Route):
        ask = route.endpoint

        async def unsigned(call: Call) -> Answer:
            authenticator.spend(call)
            return await ask(call)

        return unsigned
    endpoint, max_bytes, max_depth = route.endpoint, route.max_bytes, route.max_depth

    async def ask_signed(call: FederationCall) -> Answer:
        try:
            return await endpoint(call)
        except BeingJoined as error:  # its 503 is for clients: servers would leave all of this one alone for a while
            raise NotFound("This server does not know the whole room yet") from error

    async def signed(call: Call) -> Answer:
        return await ask_signed(await authenticator.authenticate(call, max_bytes=max_bytes, max_depth=max_depth))

    async def large(call: Call) -> Answer:
        authenticated = await authenticator.authenticate(call, max_bytes=max_bytes, max_depth=max_depth)
        async with large_answers.turn(authenticated.origin):
            return await ask_signed(authenticated)

    return large if route.is_large else signed


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, "M_UNAUTHORIZED")
