"""The one HTTP client for all that this server asks of others: federation, keys, media, push, previews.

Whoever names the target may be hostile, and so may be who answers. Every connection, also after a redirect, goes to an
address that was just checked; bytes, time, headers and content types are bounded; proxies that the environment names
are ignored, since they would resolve names anew; TLS is 1.2 or later and checks names always.
"""

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct, field
from msgspec.structs import replace
from yarl import URL

from federation.outbound.addresses import AddressPolicy
from federation.outbound.name_lookup import NameLookup
from federation.outbound.turns import CutOff, Places, Turn, Turns
from storage.figures import Figures
from storage.spans import NO_SPANS, Spans

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""For a connection, its TLS included, to one address."""

IDLE_SECONDS = 30.0
"""Between two pieces of a body. Until the first, an answer may take all of the request's time."""

KEEP_ALIVE_SECONDS = 60.0
MAX_KEPT_HOSTS = 500
"""To which connections are kept, as many as `Places` says."""
PLACES = Places(prompt=512, prompt_seconds=5.0, slow=512, per_host=16, unproven=2)
ADDRESS_SECONDS = 60
"""For so long a host's addresses are remembered, for the next connection to it."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class EgressError(Exception):
    """There is no answer that may be used. The text is for the log: it tells of addresses."""


class NotConnected(EgressError):
    """There is no connection: nothing was sent, and another address may be tried."""


class AddressDenied(NotConnected):
    """All addresses of the target lie in ranges that no request may go to."""


class AnswerTooLarge(EgressError):
    """The body has more bytes than were asked for."""


class NotStarted(EgressError):
    """The answer did not begin as soon as was asked for; which may say more of who asked than of who was asked."""


class Crowded(EgressError):
    """There was no room for the request; which says nothing of who was asked."""


class WrongContentType(EgressError):
    """The body is of another type than was asked for."""


class _Denied(OSError):
    """The same within aiohttp, which passes on only an OSError."""


class EgressRequest(Struct, frozen=True, kw_only=True):
    """One request, and what its answer may be at most."""

    method: str = "GET"
    url: str
    """With https; exactly as it is to be sent, percent-encoding included."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    max_bytes: int
    """Of the body, after it is unpacked."""
    timeout: float = 30.0
    """For the whole, in seconds: looking up, connecting, redirects, and all of the body."""
    starts_within: float | None = None
    """Seconds in which the answer must begin, where that is less than all of it may take."""
    redirects: int = 0
    """How many are followed, of a GET."""
    content_types: Sequence[str] = ()
    """What a body with status 2xx may be, such as `application/json` or `image/*`; anything if empty."""
    host_header: str | None = None
    """Instead of the URL's host and port; not after a redirect."""
    tls_name: str | None = None
    """What the certificate must be for, instead of the URL's host; not after a redirect."""
    allows_http: bool = False
    allows_compression: bool = False


class EgressResponse(Struct, frozen=True):
    """An answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """Names in any case."""
    url: str
    """After redirects."""
    body: bytes


class EgressStream:
    """An answer whose body is still to come."""

    def __init__(self, response: aiohttp.ClientResponse, turn: Turn, max_bytes: int, deadline: float) -> None:
        self._response = response
        self._turn = turn
        self._max_bytes = max_bytes
        self._deadline = deadline
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url = str(response.url)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive; raises AnswerTooLarge before there are more bytes than asked for."""
        self._check_length()
        size = 0
        while chunk := await self._next_chunk():
            size += len(chunk)
            if size > self._max_bytes:
                raise AnswerTooLarge(f"more than {self._max_bytes} bytes from {self.url}")
            yield chunk

    async def read(self) -> bytes:
        """All of it."""
        pieces = [chunk async for chunk in self.chunks()]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Give the connection back, or end it if there is more to come."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        self._turn.end()

    def _check_length(self) -> None:
        length = self._response.content_length
        if length is not None and length > self._max_bytes:
            raise AnswerTooLarge(f"{length} bytes from {self.url}, of at most {self._max_bytes}")

    async def _next_chunk(self) -> bytes:
        content = self._response.content
        idle_at = asyncio.get_running_loop().time() + IDLE_SECONDS
        try:
            async with self._turn.until(min(idle_at, self._deadline)):
                return await content.readany()
        except CutOff:
            raise _cut_off(self.url) from None
        except TimeoutError:
            takes = "takes too long" if self._deadline < idle_at else "sends nothing any more"
            raise EgressError(f"{self.url} {takes}") from None
        except aiohttp.ClientError as error:
            raise _failure(self.url, error) from None


class Egress:
    """Connections to others, kept open for the next request. `close` ends them."""

    def __init__(
        self,
        policy: AddressPolicy,
        lookup: NameLookup,
        authorities: Sequence[Path] = (),
        *,
        user_agent: str = "Hearth",
        places: Places = PLACES,
        spans: Spans = NO_SPANS,
    ) -> None:
        """`authorities` are files in PEM format, trusted besides the system's."""
        self.lookup = lookup
        self.spans = spans
        """For who asks by way of this. No other server is told of a trace."""
        self._policy = policy
        self._authorities = authorities
        self._user_agent = user_agent
        self._turns = Turns(places)
        self._kept_of_host = places.kept
        self._kept: OrderedDict[str, float] = OrderedDict()
        """The hosts to which connections are kept, and until when."""
        self._session: aiohttp.ClientSession | None = None
        self._passing_session: aiohttp.ClientSession | None = None
        """For connections that are not kept."""
        self._is_closed = False

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._turns.figures()

    async def fetch(self, request: EgressRequest) -> EgressResponse:
        """The whole answer; raises EgressError."""
        stream = await self.open(request)
        try:
            return EgressResponse(stream.status, stream.headers, stream.url, await stream.read())
        finally:
            stream.close()

    @asynccontextmanager
    async def stream(self, request: EgressRequest) -> AsyncIterator[EgressStream]:
        """The answer once its headers are there; raises EgressError, also out of `chunks` and `read`."""
        stream = await self.open(request)
        try:
            yield stream
        finally:
            stream.close()

    async def open(self, request: EgressRequest) -> EgressStream:
        """As `stream`, for who closes it in every case."""
        began = asyncio.get_running_loop().time()
        deadline = began + request.timeout
        start = deadline if request.starts_within is None else min(deadline, began + request.starts_within)
        try:
            response, turn = await self._follow(request, start)
        except CutOff:
            raise _cut_off(request.url) from None
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise NotConnected(f"{request.url} takes too long to connect to") from None
            kind = NotStarted if start < deadline else EgressError
            raise kind(f"{request.url} takes too long") from None
        except aiohttp.ClientError as error:
            raise _failure(request.url, error) from None
        try:
            _check_content_type(response, request.content_types)
        except WrongContentType:
            response.close()
            turn.end()
            raise
        return EgressStream(response, turn, request.max_bytes, deadline)

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        for session in (self._session, self._passing_session):
            if session is not None:
                await session.close()
        self._session = self._passing_session = None

    async def _follow(self, request: EgressRequest, deadline: float) -> tuple[aiohttp.ClientResponse, Turn]:
        """The first answer that is no redirect to be followed, and the turn that it takes."""
        url = _parse(request.url, allows_http=request.allows_http)
        for _ in range(request.redirects + 1):
            response, turn = await self._take_turn(request, url, deadline)
            location = response.headers.get("Location")
            if not (request.redirects and response.status in _REDIRECTS and location and request.method == "GET"):
                return response, turn
            response.close()
            turn.end()
            target = _parse(location, allows_http=request.allows_http, base=url)
            request = replace(
                request, headers=_passed_on(request.headers, url, target), host_header=None, tls_name=None
            )
            url = target
        raise EgressError(f"{request.url} redirects more than {request.redirects} times")

    async def _take_turn(
        self, request: EgressRequest, url: URL, deadline: float
    ) -> tuple[aiohttp.ClientResponse, Turn]:
        try:
            async with asyncio.timeout_at(deadline):
                turn = await self._turns.take(f"{url.raw_host}:{url.port}")
        except TimeoutError:
            raise Crowded(f"{url} has to wait too long for others") from None
        try:
            async with turn.until(deadline):
                response = await self._send(request, url, is_kept=self._is_kept(turn))
        except BaseException:
            turn.end()
            raise
        turn.is_answered = True
        return response, turn

    def _is_kept(self, turn: Turn) -> bool:
        """Whether a connection to the host is kept, or may be."""
        now = asyncio.get_running_loop().time()
        while self._kept and next(iter(self._kept.values())) < now:
            self._kept.popitem(last=False)
        if turn.beside >= self._kept_of_host or (turn.host not in self._kept and len(self._kept) >= MAX_KEPT_HOSTS):
            return False
        self._kept[turn.host] = now + KEEP_ALIVE_SECONDS
        self._kept.move_to_end(turn.host)
        return True

    async def _send(self, request: EgressRequest, url: URL, *, is_kept: bool) -> aiohttp.ClientResponse:
        headers = dict(request.headers)
        headers["Accept-Encoding"] = "gzip, deflate" if request.allows_compression else "identity"
        if request.host_header is not None:
            headers["Host"] = request.host_header
        session = (self._session if is_kept else self._passing_session) or await self._open(is_kept=is_kept)
        try:
            return await session.request(
                request.method,
                url,
                headers=headers,
                data=request.body,
                allow_redirects=False,
                server_hostname=request.tls_name,
            )
        except aiohttp.ClientError:  # some of them are ValueErrors, too
            raise
        except (ValueError, RuntimeError) as error:  # a header that cannot be sent; uvloop's own errors
            raise EgressError(f"{url}: {error}") from error

    async def _open(self, *, is_kept: bool) -> aiohttp.ClientSession:
        """The session, made with the other on first use: reading the system's authorities takes some 30 ms."""
        context = await asyncio.to_thread(_tls_context, self._authorities)
        if self._is_closed:
            raise EgressError("closed")
        if self._session is None:  # else another was faster
            self._session = self._make_session(context, {"keepalive_timeout": KEEP_ALIVE_SECONDS})
            self._passing_session = self._make_session(context, {"force_close": True})
        session = self._session if is_kept else self._passing_session
        if session is None:
            raise EgressError("closed")
        return session

    def _make_session(self, context: ssl.SSLContext, keeping: Mapping[str, Any]) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,  # `turns.py` says how many there are
            resolver=_Resolver(self.lookup, self._policy),
            ttl_dns_cache=ADDRESS_SECONDS,
            ssl=context,
            socket_factory=self._make_socket,
            **keeping,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            max_headers=100,
            trust_env=False,
        )

    def _make_socket(self, target: aiohttp.AddrInfoType) -> socket.socket:
        """The socket of every connection, to an address that was given or looked up: the last gate."""
        family, kind, protocol, _, address = target
        if not self._policy.permits(str(address[0])):
            raise _Denied(f"no request may go to {address[0]}")
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks up names for aiohttp; passes on only addresses that requests may go to."""

    def __init__(self, lookup: NameLookup, policy: AddressPolicy) -> None:
        self._lookup = lookup
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError: LookupFailed, or where no address is permitted."""
        found = await self._lookup.addresses(host)
        permitted = [address for address in found if self._policy.permits(address)]
        if not permitted:
            raise _Denied(f"no request may go to {', '.join(found)}")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in permitted
        ]

    async def close(self) -> None:
        """The lookup belongs to the egress client."""


def _cut_off(url: str) -> Crowded:
    return Crowded(f"{url} takes long, and there are too many that do")


def _failure(url: str, error: aiohttp.ClientError) -> EgressError:
    if isinstance(error, aiohttp.ClientConnectorError):
        kind = AddressDenied if isinstance(error.os_error, _Denied) else NotConnected
        return kind(f"{url}: {error.os_error}")
    if isinstance(error, aiohttp.ClientSSLError):
        return NotConnected(f"{url}: {error}")
    return EgressError(f"{url}: {type(error).__name__}: {error}")


def _parse(text: str, *, allows_http: bool, base: URL | None = None) -> URL:
    try:
        url = URL(text, encoded=True)
        if base is not None:
            url = base.join(url)
        if url.user is not None or not url.raw_host or url.port is None:
            raise EgressError(f"{url} is not https, or names no host, or has a user's name")
    except ValueError as error:
        raise EgressError(f"{text!r} is no URL: {error}") from None
    if url.scheme != "https" and not (allows_http and url.scheme == "http"):
        raise EgressError(f"{url} is not https")
    return url.with_fragment(None)


def _passed_on(headers: Mapping[str, str], origin: URL, target: URL) -> Mapping[str, str]:
    """What another place may not learn is left out."""
    if origin.origin() == target.origin():
        return headers
    return {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}


def _check_content_type(response: aiohttp.ClientResponse, permitted: Sequence[str]) -> None:
    if not permitted or not 200 <= response.status < 300:
        return
    given = response.content_type.lower()
    if given not in permitted and f"{given.partition('/')[0]}/*" not in permitted:
        raise WrongContentType(f"{response.url} answers with {given}")


def _tls_context(authorities: Sequence[Path]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for file in authorities:
        context.load_verify_locations(file)
    return context
