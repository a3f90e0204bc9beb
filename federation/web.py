"""JSON over HTTP, for both APIs: routes, requests as `Call`, answers, and errors as the specification words them.

Built on aiohttp's low-level server: one dictionary walk per path segment finds the endpoint, so the cost of a
request does not grow with the number of routes, and an unknown path (404) differs from a wrong method (405).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import Any
from urllib.parse import unquote, unquote_plus

import orjson
from aiohttp import web
from msgspec import Struct

from federation.arriving import BODIES, Body, is_small
from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, MatrixError, TooLarge
from federation.protocol.types import JsonObject

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 10 * 1024 * 1024
"""A JSON body may not be larger; media has its own limit and is streamed."""

BODY_SECONDS = 120
"""In so long a JSON body must have arrived: nobody has many half of them kept in memory."""

MAX_QUERY_FIELDS = 1000

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match",
    "Access-Control-Expose-Headers": "ETag, Retry-After",
}
"""Client-Server API, "Web Browser Clients"; and what signing in by QR code takes (MSC4108)."""


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """An IPv4 address as it is; of an IPv6 address the network, which is what one customer has."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


Answer = JsonObject | bytes | web.StreamResponse
"""A JSON object, the bytes of one, or a response that is already whole."""


class Call:
    """One request, as an endpoint sees it: path parameters decoded, query and body checked on access."""

    __slots__ = ("_first_values", "_query", "charge", "context", "path", "request")

    def __init__(self, request: web.BaseRequest, path: Mapping[str, str]) -> None:
        self.request = request
        self.path = path
        """The path's parameters by name, percent-decoded."""
        self.context: Any = None
        """Who asks: set by the API's gate (a `Requester`, or the origin server)."""
        self.charge: Callable[[int], None] | None = None
        """Told of the size of a body before it is parsed, which takes up to a second a megabyte; may refuse it."""
        self._query: list[tuple[str, str]] | None = None
        self._first_values: dict[str, str] | None = None

    @property
    def network(self) -> str:
        """Where it comes from: `network_of` its address."""
        return network_of(self.request.remote or "")

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's names and values, decoded, in order."""
        if self._query is None:
            pairs = self.request.rel_url.raw_query_string.split("&")
            if len(pairs) > MAX_QUERY_FIELDS:
                raise InvalidInput("The query string has too many fields")
            parts = [pair.partition("=") for pair in pairs]
            self._query = [(_decoded(name), _decoded(value)) for name, _, value in parts if name]
        return self._query

    def query_text(self, name: str) -> str | None:
        """A parameter's first value; None when it is absent."""
        if self._first_values is None:
            self._first_values = dict(reversed(self.query))
        return self._first_values.get(name)

    def query_int(self, name: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        """An integer parameter; above `maximum` it is cut to it, below `minimum` it is refused."""
        text = self.query_text(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        if len(text) > 18 or not digits.isascii() or not digits.isdigit():
            raise InvalidInput(f"{name} must be an integer")
        value = int(text)
        if value < minimum:
            raise InvalidInput(f"{name} must be at least {minimum}")
        return value if maximum is None else min(value, maximum)

    def query_bool(self, name: str, *, default: bool = False) -> bool:
        """A boolean parameter: `true` or `false`."""
        text = self.query_text(name)
        if text is None:
            return default
        if text not in {"true", "false"}:
            raise InvalidInput(f"{name} must be true or false")
        return text == "true"

    async def raw_body(self, max_bytes: int = MAX_BODY_BYTES, held: Body | None = None) -> bytes:
        """The body's bytes; raises M_TOO_LARGE, M_NOT_JSON where they cannot be unpacked, 408 where they are slow.

        Where it may be large it counts among those that are on their way, or `held` for longer by who asks.
        """
        length = self.request.content_length
        if length is not None and length > max_bytes:
            raise TooLarge(f"The body is larger than {max_bytes} bytes")
        if held is not None or is_small(length) or not self.request.can_read_body:
            data = await self._read(max_bytes, held)
        else:
            async with BODIES.arriving() as body:
                data = await self._read(max_bytes, body)
        if self.charge is not None:
            self.charge(len(data))
        return data

    async def _read(self, max_bytes: int, body: Body | None) -> bytes:
        content = self.request.content
        if content.is_eof() and content.exception() is None:  # as a rule all of it has come: nothing is waited for
            data = content.read_nowait()
            if body is not None:
                body.add(len(data))
            if len(data) > max_bytes:
                raise TooLarge(f"The body is larger than {max_bytes} bytes")
            return data
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.request.content.iter_any():
                    size += len(chunk)
                    if body is not None:
                        body.add(len(chunk))
                    if size > max_bytes:
                        raise TooLarge(f"The body is larger than {max_bytes} bytes")
                    chunks.append(chunk)
        except TimeoutError as error:
            raise MatrixError("M_UNKNOWN", f"The body did not arrive within {BODY_SECONDS} seconds", 408) from error
        except web.RequestPayloadError as error:
            raise InvalidInput("The body is not what its headers say", "M_NOT_JSON") from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def body(self, *, optional: bool = False, max_bytes: int = MAX_BODY_BYTES) -> JsonObject:
        """The body as a JSON object; an empty one is `{}` where the body is optional.

        Raises M_NOT_JSON when it is not JSON, M_BAD_JSON when it is not an object.
        """
        data = await self.raw_body(max_bytes)
        if optional and not data.strip():
            return {}
        value = canonical_json.loads(data)
        if not isinstance(value, dict):
            raise InvalidInput("The body must be a JSON object", "M_BAD_JSON")
        return value


class Serving:
    """A request while it is answered, for who counts requests, or writes what happens meanwhile."""

    __slots__ = ("call", "endpoint", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.endpoint = ""
        """The path of its endpoint, with names for its parameters; empty where there is none."""
        self.call: Call | None = None

    def fields(self) -> dict[str, str]:
        """What tells it from others: its ID, who asks, and the room that it is about, as far as that is known."""
        fields = {"request_id": self.request_id}
        call = self.call
        if call is not None:
            asker = getattr(call.context, "user_id", None)
            if asker is not None:
                fields["user_id"] = asker
            elif isinstance(call.context, str):
                fields["origin"] = call.context
            if "room_id" in call.path:
                fields["room_id"] = call.path["room_id"][:255]
        return fields


SERVING: ContextVar[Serving | None] = ContextVar("SERVING", default=None)
"""What this task answers, if it answers a request or was begun by one that does."""


def _decoded(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    return _decoded_once(text) if len(text) < 2048 else unquote_plus(text)


_decoded_once = lru_cache(maxsize=2048)(unquote_plus)
"""Clients repeat a filter of many escapes with every sync."""


def _segment(text: str) -> str:
    """A part of a path; raises UnicodeDecodeError."""
    if "%" not in text:
        return text
    return _segment_once(text) if len(text) < 300 else unquote(text, errors="strict")


@lru_cache(maxsize=4096)
def _segment_once(text: str) -> str:
    """Those of rooms and users come again and again."""
    return unquote(text, errors="strict")


Endpoint = Callable[[Call], Awaitable[Answer]]


class Route(Struct, frozen=True):
    """One endpoint: `path` has parameters as whole segments, such as `/rooms/{room_id}/state`."""

    method: str
    path: str
    endpoint: Endpoint


class _Node:
    __slots__ = ("children", "endpoints", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.endpoints: dict[str, tuple[Endpoint, tuple[str, ...], str]] = {}


class Router:
    """Finds the endpoint of a path, segment by segment; a literal segment wins over a parameter."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        names: list[str] = []
        for segment in route.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.children.setdefault(segment, _Node())
        if route.method in node.endpoints:
            raise ValueError(f"two endpoints for {route.method} {route.path}")
        node.endpoints[route.method] = (route.endpoint, tuple(names), route.path)

    def find(self, method: str, raw_path: str) -> tuple[Endpoint, dict[str, str], str]:
        """The endpoint, its parameters, and its path with names for them; raises M_UNRECOGNIZED with 404 or 405."""
        values: list[str] = []
        node = self._walk(self._root, raw_path.split("/"), 1, values)
        if node is None:
            raise MatrixError("M_UNRECOGNIZED", "Unrecognized request", 404)
        found = node.endpoints.get(method)
        if found is None:
            raise MatrixError("M_UNRECOGNIZED", "Unrecognized method", 405)
        endpoint, names, template = found
        if "%00" in raw_path:
            raise InvalidInput("The path may not hold NUL")  # which nothing that is stored as text can hold either
        try:
            parameters = {name: _segment(value) for name, value in zip(names, values, strict=True)}
        except UnicodeDecodeError as error:
            raise InvalidInput("The path is not UTF-8") from error
        return endpoint, parameters, template

    def _walk(self, node: _Node, segments: list[str], index: int, values: list[str]) -> _Node | None:
        if index == len(segments):
            return node if node.endpoints else None
        segment = segments[index]
        child = node.children.get(segment)
        if child is None and "%" in segment and node.children:
            child = node.children.get(unquote(segment))
        if child is not None:
            found = self._walk(child, segments, index + 1, values)
            if found is not None:
                return found
        if node.parameter is None:
            return None
        depth = len(values)
        values.append(segment)
        found = self._walk(node.parameter, segments, index + 1, values)
        if found is None:
            del values[depth:]
        return found


def json_response(
    body: JsonObject | bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON answer that browsers on other origins may read."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    all_headers = {"Content-Type": "application/json", **CORS_HEADERS}
    if headers:
        all_headers.update(headers)
    return web.Response(body=data, status=status, headers=all_headers)


def error_response(error: MatrixError) -> web.Response:
    """The specification's error object, with `Retry-After` where waiting helps."""
    headers = {}
    retry_after_ms = error.fields.get("retry_after_ms")
    if retry_after_ms is not None:
        headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    return json_response(error.body(), error.http_status, headers)


async def respond(router: Router, request: web.BaseRequest, serving: Serving) -> web.StreamResponse:
    """Answer one request; a failure that nobody foresaw is logged and becomes a 500 that says nothing.

    What becomes known of it is noted in `serving`.
    """
    if request.method == "OPTIONS":
        return web.Response(status=204, headers=CORS_HEADERS)
    try:
        method = "GET" if request.method == "HEAD" else request.method
        endpoint, path, serving.endpoint = router.find(method, request.rel_url.raw_path)
        serving.call = call = Call(request, path)
        answer = await endpoint(call)
    except MatrixError as error:
        return error_response(error)
    except (ConnectionError, asyncio.IncompleteReadError):
        raise
    except Exception:
        logger.exception("internal error in %s %s", request.method, request.rel_url.raw_path)
        return error_response(MatrixError("M_UNKNOWN", "Internal server error", 500))
    if isinstance(answer, web.StreamResponse):
        return answer
    return json_response(answer)
