"""Servers on loopback that are not Hearth and answer with whatever a test wants, and names for them.

async with https_server(authority, "well.test", answer=json_answer({"m.server": "far.test"})) as place:
    egress = an_egress(authority, {"well.test": ["127.0.0.1"]})
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import orjson

from federation.outbound.addresses import AddressPolicy
from federation.outbound.egress import PLACES, Egress
from federation.outbound.name_lookup import LookupFailed, Service
from federation.outbound.turns import Places
from homeserver.config import Federation
from tests.federation.authority import Authority

Write = Callable[[bytes], Awaitable[None]]
AnswerFunction = Callable[["Request", Write], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(slots=True)
class Place:
    """A listening server and what it has seen."""

    port: int
    requests: list[Request] = field(default_factory=list)
    tls_names: list[str | None] = field(default_factory=list)
    """Of each connection the name that it was asked to prove; None for an address."""
    connections: int = 0
    open_connections: int = 0
    most_connections: int = 0
    """At the same time."""


@asynccontextmanager
async def https_server(
    authority: Authority,
    *names: str,
    answer: AnswerFunction,
    address: str = "127.0.0.1",
    certificate: tuple[Path, Path] | None = None,
) -> AsyncIterator[Place]:
    """A server on a free port whose certificate is for the names; `answer` writes raw HTTP. One request at a time."""
    place, tasks = Place(0), list[asyncio.Task[object]]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*(certificate or authority.issue(*names)))
    context.sni_callback = lambda _socket, name, _context: place.tls_names.append(name)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        place.connections += 1
        place.open_connections += 1
        place.most_connections = max(place.most_connections, place.open_connections)
        try:
            while True:
                request = await _read(reader)
                place.requests.append(request)
                await answer(request, write)
                if request.headers.get("connection") == "close":
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
            pass
        finally:
            place.open_connections -= 1
            writer.close()

    server = await asyncio.start_server(serve, address, 0, ssl=context)
    place.port = server.sockets[0].getsockname()[1]
    try:
        yield place
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def whole_answer(
    body: bytes = b"", *, status: int = 200, content_type: str = "application/json", headers: Sequence[str] = ()
) -> AnswerFunction:
    """The same answer to every request; `headers` are whole lines."""
    lines = [f"HTTP/1.1 {status} Some", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def answer(_request: Request, write: Write) -> None:
        await write(data)

    return answer


def json_answer(body: object, *, status: int = 200, headers: Sequence[str] = ()) -> AnswerFunction:
    """The same JSON to every request."""
    return whole_answer(orjson.dumps(body), status=status, headers=headers)


def redirect_to(url: str) -> AnswerFunction:
    """302 to every request."""
    return whole_answer(status=302, headers=[f"Location: {url}"])


class Names:
    """A NameLookup of what a test says; counts what it is asked."""

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]] | None = None,
        services: Mapping[str, Sequence[Service] | None] | None = None,
    ) -> None:
        """`services` by whole name, such as `_matrix._tcp.far.test`; None is a name server that does not answer."""
        self._addresses = addresses or {}
        self._services = services or {}
        self.asked: list[str] = []

    async def addresses(self, host: str) -> Sequence[str]:
        """As NameLookup says."""
        self.asked.append(host)
        if host not in self._addresses:
            raise LookupFailed(f"there is no {host}")
        return self._addresses[host]

    async def services(self, name: str) -> Sequence[Service]:
        """As NameLookup says."""
        self.asked.append(name)
        found = self._services.get(name, ())
        if found is None:
            raise LookupFailed(f"nobody answers for {name}")
        return found


def loopback_policy(allowed: Sequence[str] = ("127.0.0.0/8",)) -> AddressPolicy:
    """As by default, with exceptions."""
    return AddressPolicy(Federation().denied_ranges, [ip_network(each) for each in allowed])


@asynccontextmanager
async def an_egress(
    authority: Authority | None,
    addresses: Mapping[str, Sequence[str]] | None = None,
    *,
    services: Mapping[str, Sequence[Service] | None] | None = None,
    policy: AddressPolicy | None = None,
    places: Places = PLACES,
) -> AsyncIterator[Egress]:
    """A client with these names that may reach loopback and trusts the authority."""
    authorities = [] if authority is None else [authority.certificate]
    egress = Egress(policy or loopback_policy(), Names(addresses, services), authorities, places=places)
    try:
        yield egress
    finally:
        await egress.close()
