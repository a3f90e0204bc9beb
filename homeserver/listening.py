"""Listening: what arrives on each configured address is answered by the APIs that it serves."""

import logging
import ssl
from collections.abc import Mapping, Sequence

from aiohttp import web

from federation.protocol.errors import MatrixError
from federation.web import Route, Router, error_response, respond
from homeserver.config import API, Listener

logger = logging.getLogger(__name__)

IDLE_SECONDS = 120
"""How long a connection may stay without a whole request: longer than proxies keep theirs, so that they close first."""
SHUTDOWN_SECONDS = 5
"""What requests under way get to finish; aiohttp takes it twice."""


class Listening:
    """The open ports of this process."""

    def __init__(self, routes: Mapping[API, Sequence[Route]]) -> None:
        self.routes = routes
        """Every endpoint, by the API that it belongs to."""
        self._runners: list[web.ServerRunner] = []
        self.ports: list[int] = []
        """Of the listeners in their order, as bound."""

    async def start(self, listeners: Sequence[Listener]) -> None:
        """Answer on all of them; raises OSError."""
        for listener in listeners:
            await self._listen(listener)

    async def stop(self) -> None:
        """Take no more connections, and give the requests under way some time to finish."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, listener: Listener) -> None:
        router = Router(route for api in listener.apis for route in self.routes[api])

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if listener.behind_proxy:
                request = _with_forwarded_address(request)
            return await respond(router, request)

        server = _Server(handle, access_log=None, keepalive_timeout=IDLE_SECONDS)
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(
            runner, listener.address, listener.port, ssl_context=_ssl_context(listener), reuse_address=True
        )
        await site.start()
        self.ports.append(runner.addresses[0][1])


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """What anybody may send is nothing that the log's errors tell of."""

    __slots__ = ()

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
        logger.debug("no HTTP request from %s: %s", request.remote, exc)
        response = error_response(MatrixError("M_UNKNOWN", "The request is not valid HTTP", status))
        response.force_close()
        return response


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
