"""Several whole servers in one process that reach each other over TLS on loopback.

    async def test_something(pair: Pair) -> None:
        alice = await pair.near.register("alice")  # a tests.client.Client
        bob = await pair.far.register("bob")

`pair` (tests/federation/conftest.py) is shared by all tests of a worker: they use users and rooms of their own. A test
that stops a server or changes settings makes its own by `two_servers`.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from federation.protocol.signatures import SigningKey
from homeserver.app import Application
from homeserver.config import ExistingFile, Federation, Listener
from homeserver.signing_keys import OwnKeys
from tests import fellows
from tests.client import Client, Server
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.federation.authority import Authority
from tests.federation.specified import watch
from tests.servers import TEST_CONFIG

PATIENCE_SECONDS = 600.0
"""However long a join takes on a busy machine: its room has all members as soon as the user is in it."""

_numbers = itertools.count(1)


@dataclasses.dataclass(slots=True)
class Pair:
    """Two servers; neither is special. `Server.name` is what the other knows it by."""

    near: Server
    far: Server
    authority: Authority


@asynccontextmanager
async def two_servers(maintenance_conninfo: str, directory: Path, **changes: Any) -> AsyncIterator[Pair]:
    """Two servers with databases of their own (fixture `maintenance_conninfo`); the directory (`tmp_path`) is for
    certificates. `changes` are to `TEST_CONFIG`, for both."""
    authority = Authority(directory)
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(federating(maintenance_conninfo, authority, **changes)) for _ in range(2)
        ]
        yield Pair(servers[0], servers[1], authority)


@asynccontextmanager
async def federating(
    maintenance_conninfo: str, authority: Authority, *, host: str = "127.0.0.1", **changes: Any
) -> AsyncIterator[Server]:
    """A server on a new database that trusts the authority; its name is `host:PORT`, where it listens with TLS.

    `host` is an address of loopback or `localhost`. Its own clients speak to a second port without TLS.
    """
    database = f"hearth_peer_{os.getpid()}_{next(_numbers)}"
    create_database(maintenance_conninfo, database, TEMPLATE)
    try:
        async with federating_on(
            make_conninfo(maintenance_conninfo, dbname=database), authority, host, changes
        ) as server:
            yield server
    finally:
        drop_database(maintenance_conninfo, database)


def _prepare(application: Application) -> None:
    watch(application.outbound.egress)
    application.handshaking.joins.patience_seconds = PATIENCE_SECONDS


def free_port() -> int:
    """A port on loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def federating_on(
    conninfo: str, authority: Authority, host: str, changes: dict[str, Any]
) -> AsyncIterator[Server]:
    """As `federating`, on a database that is there and stays."""
    certificate, key = authority.issue(host)
    port = free_port()
    tls = Listener(
        address="127.0.0.1" if host == "localhost" else host,
        port=port,
        tls_certificate=ExistingFile(certificate),
        tls_key=ExistingFile(key),
    )
    settings: dict[str, Any] = {
        "server_name": f"{host}:{port}",
        "listeners": (tls, Listener(address="127.0.0.1", port=0)),
        "federation": Federation(
            allowed_ranges=(ip_network("127.0.0.0/8"),),
            certificate_authorities=(ExistingFile(authority.certificate),),
            notary_servers=(),
            publish_rooms=True,
        ),
        **changes,
    }
    config = dataclasses.replace(TEST_CONFIG, **settings)
    seed = hashlib.sha256(config.server_name.encode()).digest()
    keys = OwnKeys(SigningKey.from_seed("test", seed))
    async with (
        fellows.started(config, conninfo, keys, _prepare) as application,
        fellows.a_session(application) as session,
    ):
        yield Server(application, Client(f"http://127.0.0.1:{application.ports[1]}", session))
