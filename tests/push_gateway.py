"""A push gateway on loopback, with TLS, for tests of pushes; and users who have a pusher that leads there.

async with pushing_server(maintenance_conninfo, tmp_path) as pushing:
    pushkey = await set_pusher(bob, pushing.gateway)
    ...
    push = await pushing.gateway.next(pushkey)
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from aiohttp import web
from psycopg.conninfo import make_conninfo

from homeserver.config import ExistingFile, Federation
from tests.client import Client, Server, unique
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.federation.authority import Authority
from tests.servers import running

PATH = "/_matrix/push/v1/notify"
PATIENCE_SECONDS = 30.0


@dataclass(slots=True)
class Gateway:
    """What it was told, by pushkey; and what it answers."""

    port: int
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Whole bodies, whatever the answer was."""
    rejects: set[str] = field(default_factory=set)
    """Pushkeys."""
    statuses: dict[str, int] = field(default_factory=dict)
    """What it answers for a pushkey, where that is not 200."""
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    """While this is not set, requests wait."""
    delay_seconds: float = 0.0
    """Before each answer."""
    holds: set[str] = field(default_factory=set)
    """Pushkeys whose requests wait for that."""
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _read: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """For `data.url`."""
        return f"https://127.0.0.1:{self.port}{PATH}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Take a notification."""
        body = await request.json()
        pushkey = body["notification"]["devices"][0]["pushkey"]
        self.requests.append(body)
        async with self._news:
            self._news.notify_all()
        if pushkey in self.holds:
            await self.is_open.wait()
        await asyncio.sleep(self.delay_seconds)
        status = self.statuses.get(pushkey, 200)
        if status != 200:
            return web.json_response({"errcode": "M_UNKNOWN"}, status=status)
        if pushkey in self.rejects:
            return web.json_response({"rejected": [pushkey]})
        async with self._news:
            self.told.setdefault(pushkey, []).append(body["notification"])
            self._news.notify_all()
        return web.json_response({"rejected": []})

    async def next(self, pushkey: str) -> dict[str, Any]:
        """The next notification that was taken for this key."""
        at = self._read.get(pushkey, 0)
        await self.until(lambda: len(self.told.get(pushkey, ())) > at)
        self._read[pushkey] = at + 1
        return self.told[pushkey][at]

    async def until_event(self, pushkey: str, event_id: str) -> list[str]:
        """The events of which this key was told, since it was last looked at, up to this one; counts alone are
        passed over."""
        found: list[str] = []
        while event_id not in found:
            notification = await self.next(pushkey)
            told = notification.get("event_id")
            if told is not None and told not in found:  # twice where a slow machine lost a lease meanwhile
                found.append(told)
        return found

    async def until(self, is_so: Any) -> None:
        """Wait until something is so, looking after each request."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._news:
            await self._news.wait_for(is_so)


@asynccontextmanager
async def a_gateway(authority: Authority, port: int = 0) -> AsyncIterator[Gateway]:
    """A gateway that listens until the end of the block."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    gateway = Gateway(port)
    application = web.Application()
    application.router.add_post(PATH, gateway.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    assert runner.addresses
    gateway.port = runner.addresses[0][1]
    try:
        yield gateway
    finally:
        gateway.is_open.set()
        await runner.cleanup()


def pusher(gateway: Gateway, pushkey: str, **changes: Any) -> dict[str, Any]:
    """The body of `POST /pushers/set`; `data` adds to the pusher's."""
    data = {"url": gateway.url, **changes.pop("data", {})}
    return {
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": data,
        **changes,
    }


async def set_pusher(client: Client, gateway: Gateway, **changes: Any) -> str:
    """Give a user a pusher that leads to a gateway; its pushkey."""
    pushkey: str = changes.pop("pushkey", None) or unique("key")
    await client.ok("POST", "/v3/pushers/set", pusher(gateway, pushkey, **changes))
    return pushkey


@dataclass(slots=True)
class Pushing:
    """A server that may reach a gateway."""

    server: Server
    gateway: Gateway
    authority: Authority


@asynccontextmanager
async def pushing_server(maintenance_conninfo: str, directory: Path, **changes: Any) -> AsyncIterator[Pushing]:
    """A server on a database of its own, and a gateway that it trusts and may reach."""
    authority = Authority(directory)
    database = f"hearth_push_{unique('db').replace('-', '_')}"
    create_database(maintenance_conninfo, database, TEMPLATE)
    try:
        async with (
            a_gateway(authority) as gateway,
            running(
                make_conninfo(maintenance_conninfo, dbname=database), federation=reaching(authority), **changes
            ) as server,
        ):
            yield Pushing(server, gateway, authority)
            gateway.is_open.set()
    finally:
        drop_database(maintenance_conninfo, database)


def reaching(authority: Authority) -> Federation:
    """Settings of a server that may reach loopback, and trusts the authority."""
    return Federation(
        allowed_ranges=(ip_network("127.0.0.0/8"),),
        certificate_authorities=(ExistingFile(authority.certificate),),
        notary_servers=(),
    )
