"""Listening: what arrives on each configured address is answered by the APIs that it serves."""

import asyncio
import itertools
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

from aiohttp import web

from federation.protocol.errors import MatrixError
from federation.web import SERVING, Route, Router, Serving, error_response, respond
from homeserver.config import API, Listener

logger = logging.getLogger(__name__)

IDLE_SECONDS = 120
"""How long a connection may stay without a whole request: longer than proxies keep theirs, so that they close first."""
DRAIN_SECONDS = 10.0
"""How long clients may keep connections that they have to a process that is being replaced."""
SHUTDOWN_SECONDS = 5
"""What requests under way get to finish; aiohttp takes it twice."""


Respond = Callable[[Router, web.BaseRequest, Serving], Awaitable[web.StreamResponse]]


class Observer(Protocol):
    """Is told of every request."""

    def begin(self) -> None:
        """One has come."""

    def observe(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """It was answered, with this status; `endpoint` is its endpoint's path. Status 0: nothing came of it."""


class Listening:
    """The open ports of this process."""

    def __init__(
        self, routes: Mapping[API, Sequence[Route]], observer: Observer | None = None, *, answer: Respond = respond
    ) -> None:
        self._observer = observer
        self._respond = answer
        self.routes = routes
        """Every endpoint, by the API that it belongs to."""
        self._servers: list[_Server] = []
        self._runners: list[web.ServerRunner] = []
        self._sites: list[web.BaseSite] = []
        self._is_ending = False
        self.ports: list[int] = []
        """Of the listeners in their order, as bound."""

    async def start(self, listeners: Sequence[Listener], sockets: Sequence[socket.socket] = ()) -> None:
        """Answer on all of them, on sockets that are bound already or on new ones; raises OSError."""
        for listener, bound in zip_longest(listeners, sockets):
            await self._listen(listener, bound)

    async def stop(self, *, drain: bool = False) -> None:
        """Take no more connections, and give the requests under way some time to finish.

        `drain` closes no connection on which a request may be on its way: each ends with its next answer, which says
        so, or when it was quiet for some seconds.
        """
        self._is_ending = True
        if drain:
            for site in self._sites:
                await site.stop()
            deadline = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < deadline and self._has_connections():  # noqa: ASYNC110  # aiohttp tells nobody of their end
                await asyncio.sleep(0.05)
        for server in self._servers:
            server.is_closed = True
        for runner in self._runners:
            await runner.cleanup()

    def _has_connections(self) -> bool:
        return any(runner.server is not None and runner.server.connections for runner in self._runners)

    async def _listen(self, listener: Listener, bound: socket.socket | None) -> None:
        router = Router(route for api in listener.apis for route in self.routes[api])

        observer, answer, name = self._observer, self._respond, _namer(listener)
        writes_each = logger.isEnabledFor(logging.DEBUG)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            began = time.monotonic()
            if listener.behind_proxy:
                request = _with_forwarded_address(request)
            serving = Serving(name(request))
            SERVING.set(serving)
            status = 0
            if observer is not None:
                observer.begin()
            try:
                response = await answer(router, request, serving)
                status = response.status
            finally:
                if writes_each:
                    _write(request, serving, status, time.monotonic() - began)
                SERVING.set(None)  # the connection may be idle for long
                if observer is not None:
                    method = request.method if serving.endpoint else ""
                    observer.observe(method, serving.endpoint, status, time.monotonic() - began)
            if not response.prepared:
                response.headers["X-Request-ID"] = serving.request_id
                if self._is_ending:
                    response.force_close()
            return response

        server = _Server(handle, access_log=None, keepalive_timeout=IDLE_SECONDS)
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        self._servers.append(server)
        self._runners.append(runner)
        tls = _ssl_context(listener)
        site: web.BaseSite
        if bound is None:
            site = web.TCPSite(runner, listener.address, listener.port, ssl_context=tls, reuse_address=True)
        else:
            site = web.SockSite(runner, bound, ssl_context=tls)
        await site.start()
        self._sites.append(site)
        self.ports.append(runner.addresses[0][1])


class _Server(web.Server):
    is_closed = False
    """Whether whoever comes now, whose TLS handshake took until now, comes too late."""

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """What anybody may send is nothing that the log's errors tell of."""

    __slots__ = ("_server",)

    def __init__(self, server: _Server, **kwargs: Any) -> None:  # noqa: ANN401  # aiohttp's own
        super().__init__(server, **kwargs)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has come; nobody closes the connection of who comes after the end but this."""
        super().connection_made(transport)
        if self._server.is_closed:
            self.force_close()

    def log_exception(self, *args: object, **kw: object) -> None:
        """Say what went wrong, unless it is a body that cannot be read, which the client was told of."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as any other mistake of a client."""
        if not 400 <= status < 500:
            return super().handle_error(request, status, exc, message)
        logger.debug("no HTTP request from %s: %s", request.remote, type(exc).__name__)  # its text has the request's
        response = error_response(MatrixError("M_UNKNOWN", "The request is not valid HTTP", status))
        response.force_close()
        return response


def _write(request: web.BaseRequest, serving: Serving, status: int, seconds: float) -> None:
    """A line of its own, by the endpoint: a path may be as long as somebody likes, and a query hold a token."""
    logger.debug("%s %s: %d, %.1f ms", request.method, serving.endpoint or "(no endpoint)", status, seconds * 1000)


_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PREFIX = secrets.token_hex(4)
_numbers = itertools.count(1)


def _namer(listener: Listener) -> Callable[[web.BaseRequest], str]:
    """What names requests: our own proxy, if it is to and does, or we do."""
    header = listener.request_id_header

    def name(request: web.BaseRequest) -> str:
        given = None if header is None else request.headers.get(header)
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return f"{_PREFIX}-{next(_numbers):x}"

    return name


def _with_forwarded_address(request: web.BaseRequest) -> web.BaseRequest:
    """The request as from the address that our own proxy added last."""
    forwarded = request.headers.getall("X-Forwarded-For", [])
    address = forwarded[-1].rpartition(",")[2].strip() if forwarded else ""
    return request.clone(remote=address) if address else request


def _ssl_context(listener: Listener) -> ssl.SSLContext | None:
    if listener.tls_certificate is None or listener.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(listener.tls_certificate, listener.tls_key)
    return context
