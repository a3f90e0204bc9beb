"""Signed requests to other servers: names to places, X-Matrix, strict answers, and failures as `PeerFailed`."""

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypedDict, Unpack
from urllib.parse import quote, urlencode

from msgspec import Struct

from federation.outbound.availability import Availability
from federation.outbound.egress import (
    AnswerTooLarge,
    Crowded,
    Egress,
    EgressError,
    EgressRequest,
    EgressStream,
    NotConnected,
    NotStarted,
    WrongContentType,
)
from federation.outbound.server_discovery import ServerDiscovery, Target
from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, PeerRefused, PeerUnreachable
from federation.protocol.request_signing import SignedRequest, make_header
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName

MAX_BYTES = 16 * 1024 * 1024
"""Of an answer, unless the caller says otherwise."""

MAX_ERROR_BYTES = 64 * 1024
SECONDS = 30.0

_ERRCODE = re.compile(r"[A-Z0-9_.a-z]{1,100}")
_AWAY = frozenset((502, 503, 504))
"""What a proxy answers when the server behind it does not."""

_ANSWERED = frozenset(("M_NOT_YET_UPLOADED", "M_TOO_LARGE"))
"""What a server that is there answers of media with 502 and 504."""

Query = Iterable[tuple[str, str]]


class Options(TypedDict, total=False):
    """What a request may say of itself, by keyword."""

    timeout: float
    """In seconds, for the whole; 30 unless given."""
    starts_within: float
    """Seconds in which the answer must begin; a server that takes longer is not left alone for that."""
    max_bytes: int
    patient: bool
    """Ask even a server that is in back-off, because somebody waits for the answer."""
    may_be_us: bool
    """Whether another service may answer at this server's own name."""


class _Signed(Struct, frozen=True):
    """A request that is ready to be sent to any of the destination's places."""

    method: str
    destination: ServerName
    uri: str
    body: bytes | None
    authorization: str
    content_types: tuple[str, ...]


class FederationClient:
    """Requests of this server to others. Raises PeerUnreachable or PeerRefused where there is no answer to use."""

    def __init__(
        self,
        server_name: ServerName,
        signing_key: SigningKey,
        egress: Egress,
        discovery: ServerDiscovery,
        availability: Availability,
        *,
        speaks_with: Callable[[ServerName], bool],
    ) -> None:
        self._server_name = server_name
        self._signing_key = signing_key
        self._egress = egress
        self._discovery = discovery
        self._availability = availability
        self._speaks_with = speaks_with
        self.spans = egress.spans

    async def get(
        self, destination: ServerName, path: str, query: Query = (), **options: Unpack[Options]
    ) -> JsonObject:
        """GET; the answer's JSON object, in which nothing is checked but that it is one, without repeated keys."""
        return await self._call(self._sign("GET", destination, _uri(path, query), None), options)

    async def put(
        self,
        destination: ServerName,
        path: str,
        body: JsonObject | bytes,
        query: Query = (),
        **options: Unpack[Options],
    ) -> JsonObject:
        """PUT; otherwise as `get`. A body in bytes is canonical JSON already."""
        return await self._call(self._sign("PUT", destination, _uri(path, query), body), options)

    async def post(
        self, destination: ServerName, path: str, body: JsonObject, **options: Unpack[Options]
    ) -> JsonObject:
        """POST; otherwise as `get`."""
        return await self._call(self._sign("POST", destination, path, body), options)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        destination: ServerName,
        path: str,
        body: JsonObject | None = None,
        query: Query = (),
        *,
        content_types: tuple[str, ...] = ("application/json",),
        **options: Unpack[Options],
    ) -> AsyncIterator[EgressStream]:
        """The answer, with status 200, once its headers are there; its `chunks` raise as this does.

        `timeout` and `max_bytes` hold for the whole body. Nothing else is checked: it may be no JSON.
        """
        signed = self._sign(method, destination, _uri(path, query), body, content_types)
        stream = await self._open(signed, options)
        try:
            yield stream
        except EgressError as error:
            raise self._failure(destination, error) from None
        finally:
            stream.close()

    async def _call(self, signed: _Signed, options: Options) -> JsonObject:
        stream = await self._open(signed, options)
        try:
            content = await stream.read()
        except EgressError as error:
            raise self._failure(signed.destination, error) from None
        finally:
            stream.close()
        try:
            return _parse(content)
        except InvalidInput as error:
            raise PeerUnreachable(signed.destination, f"malformed answer: {error.message}") from None

    def _sign(
        self,
        method: str,
        destination: ServerName,
        uri: str,
        body: JsonObject | bytes | None,
        content_types: tuple[str, ...] = ("application/json",),
    ) -> _Signed:
        content = body if body is None or isinstance(body, bytes) else canonical_json.encode(body)
        request = SignedRequest(
            method=method, uri=uri, origin=self._server_name, destination=destination, content=content
        )
        return _Signed(method, destination, uri, content, make_header(request, self._signing_key), content_types)

    async def _open(self, signed: _Signed, options: Options) -> EgressStream:
        """As `_ask`, as a part of what is traced."""
        described = {
            "http.request.method": signed.method,
            "server.address": signed.destination,
            "url.path": signed.uri.partition("?")[0],
        }
        with self.spans.within("ask another server", described):
            return await self._ask(signed, options)

    async def _ask(self, signed: _Signed, options: Options) -> EgressStream:
        """The answer, if it is none of failure; what the server's availability is, is noted."""
        destination = signed.destination
        if destination == self._server_name and not options.get("may_be_us", False):
            raise PeerUnreachable(destination, "it is this server")
        if not self._speaks_with(destination):
            raise PeerUnreachable(destination, "the settings do not allow to speak with it")
        if not options.get("patient", False):
            self._availability.check(destination)
        try:
            stream = await self._connect(signed, options)
        except EgressError as error:
            raise self._failure(destination, error) from None
        if stream.status == 200:
            self._availability.alive(destination)
            return stream
        try:
            refusal = await _refusal(destination, stream)
        except EgressError as error:
            raise self._failure(destination, error) from None
        finally:
            stream.close()
        if stream.status in _AWAY and refusal.errcode not in _ANSWERED:
            self._availability.failed(destination, f"status {stream.status}")
        else:
            self._availability.alive(destination)
        raise refusal

    async def _connect(self, signed: _Signed, options: Options) -> EgressStream:
        """The answer of the first of the destination's places that takes a connection."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + options.get("timeout", SECONDS)
        start = min(deadline, clock() + options.get("starts_within", math.inf))

        def left() -> tuple[float, float]:
            now = clock()
            return start - now, deadline - now

        try:
            async with asyncio.timeout_at(start):
                *others, last = await self._discovery.find(signed.destination)
        except TimeoutError:
            kind = NotStarted if start < deadline else NotConnected
            raise kind(f"{signed.destination} takes too long to find") from None
        for target in others:
            with contextlib.suppress(NotConnected):
                return await self._egress.open(_request(signed, target, options, left()))
        try:
            return await self._egress.open(_request(signed, last, options, left()))
        except NotConnected:
            self._discovery.forget(signed.destination)
            raise

    def _failure(self, destination: ServerName, error: EgressError) -> PeerUnreachable:
        """What to raise; a server that answered badly is no server that does not answer."""
        if not isinstance(error, AnswerTooLarge | WrongContentType | Crowded | NotStarted):
            self._availability.failed(destination, str(error))
        return PeerUnreachable(destination, str(error))


def path_of(template: str, *segments: str) -> str:
    """The path with each `{}` replaced by a segment, percent-encoded: `path_of("/event/{}", event_id)`."""
    return template.format(*(quote(segment, safe="") for segment in segments))


def _uri(path: str, query: Query) -> str:
    encoded = urlencode(list(query), quote_via=quote, safe="")
    return f"{path}?{encoded}" if encoded else path


def _request(signed: _Signed, target: Target, options: Options, seconds: tuple[float, float]) -> EgressRequest:
    """`seconds` are those in which the answer must begin, and in which it must be whole."""
    headers = {"Authorization": signed.authorization}
    if signed.body is not None:
        headers["Content-Type"] = "application/json"
    return EgressRequest(
        method=signed.method,
        url=f"https://{target.authority}{signed.uri}",
        headers=headers,
        body=signed.body,
        max_bytes=options.get("max_bytes", MAX_BYTES),
        timeout=max(seconds[1], 0.01),
        starts_within=max(seconds[0], 0.01),
        content_types=signed.content_types,
        host_header=target.host_header,
        tls_name=target.tls_name,
        allows_compression=True,
    )


def _parse(content: bytes) -> JsonObject:
    value = canonical_json.loads(content, max_depth=None)
    if isinstance(value, list) and len(value) == 2 and value[0] == 200:
        value = value[1]  # version 1 of send_join, send_leave and invite answers [200, {...}]
    if not isinstance(value, dict):
        raise InvalidInput("no JSON object", "M_BAD_JSON")
    return value


async def _refusal(destination: ServerName, stream: EgressStream) -> PeerRefused:
    """The error that the server answered with, in whatever form."""
    content = bytearray()
    try:
        async for chunk in stream.chunks():
            content += chunk
            if len(content) > MAX_ERROR_BYTES:
                break
        body: JsonObject = canonical_json.loads_object(bytes(content))
    except (AnswerTooLarge, InvalidInput):
        body = {}
    errcode: Any = body.get("errcode")
    error: Any = body.get("error")
    if not isinstance(errcode, str) or _ERRCODE.fullmatch(errcode) is None:
        errcode = "M_UNKNOWN"
    if not isinstance(error, str):
        error = f"status {stream.status}"
    return PeerRefused(destination, stream.status, errcode, error[:500], body)
