"""A Synapse and a Hearth beside one another, each a process with a database of its own, that speak over TLS."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks import synapse
from benchmarks.cluster import Databases
from benchmarks.hearth import Hearth
from benchmarks.peering import Peering
from benchmarks.server import Server
from benchmarks.synapse import Synapse
from tests import fellows
from tests.client import Client
from tests.clusters import drop_database
from tests.federation.authority import Authority
from tests.interop.links import Links
from tests.interop.people import PATIENCE_SECONDS, Person
from tests.scenarios.hearth_process import free_port

_SYNAPSES_ONLY = "HEARTH_INTEROP_SYNAPSES_ONLY" in os.environ
"""To see whether a story is right: Synapses play all parts."""


class Border:
    """Servers of one authority on one cluster; each is started when somebody first asks for it.

    Their hosts differ, so that access lists, which know no ports, can name one of them.
    """

    def __init__(self, directory: Path, maintenance_conninfo: str, session: aiohttp.ClientSession) -> None:
        self._databases = Databases(directory, maintenance_conninfo)
        self._maintenance = maintenance_conninfo
        self._authority = Authority(directory)
        self._session = session
        self._servers: dict[str, Server] = {}
        self.links = Links()

    async def hearth(self, name: str = "hearth", host: str = "127.0.0.1") -> Server:
        """A Hearth that runs; any name and host but its own is one more of them."""
        if name not in self._servers:
            peering = self._peering(host)
            if _SYNAPSES_ONLY:
                await self._add(Synapse(self._databases, synapse.install(), name=name, peering=peering))
            else:
                server = Hearth(self._databases, name=name, peering=peering, log="debug")
                server.workers = fellows.COUNT if fellows.COUNT > 1 else 0
                await self._add(server)
        return self._servers[name]

    async def synapse(self) -> Server:
        """The Synapse, which runs."""
        if "synapse" not in self._servers:
            peering = self._peering()
            await self._add(Synapse(self._databases, synapse.install(), peering=peering, log="INFO"))
        return self._servers["synapse"]

    def _peering(self, host: str = "localhost") -> Peering:
        return Peering.of(self._authority, free_port(), host, free_port())

    async def _add(self, server: Server) -> None:
        server.database = f"interop_{server.name}"
        self._databases.create_database(server.database, "template0")
        self._servers[server.name] = server
        await server.start()
        await self.links.add(server)

    async def person(self, server: Server, name: str) -> Person:
        """A new user; their name gets a number."""
        is_ours = isinstance(server, Hearth)
        visitor = Client(f"http://127.0.0.1:{server.port}", self._session, is_held_to_specification=is_ours)
        return Person(await visitor.register(name), server.server_name, is_ours=is_ours)

    async def friend_of(self, person: Person) -> Person:
        """Another user of the same server."""
        return await self.person(self.server_of(person), "friend")

    def server_of(self, person: Person) -> Server:
        """Where they are registered."""
        return next(server for server in self._servers.values() if server.server_name == person.server_name)

    @staticmethod
    async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again until it is so."""
        for _ in range(int(10 * PATIENCE_SECONDS)):
            if await is_so():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("it has not come to be")

    async def somebody_third(self) -> Person:
        """A user of a second Hearth."""
        return await self.person(await self.hearth("third", "127.0.0.2"), "carol")

    def log_sizes(self) -> dict[Path, int]:
        """How long each server's log is by now."""
        files = [server.log_file for server in self._servers.values()]
        return {file: file.stat().st_size for file in files if file.exists()}

    async def close(self) -> None:
        """Stop them and remove their databases."""
        await self.links.close()
        for server in self._servers.values():
            await server.stop()
            drop_database(self._maintenance, server.database)


@asynccontextmanager
async def a_border(maintenance_conninfo: str) -> AsyncIterator[Border]:
    """Gone with all that belongs to it at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-interop-"))
    try:
        connector = aiohttp.TCPConnector(force_close=fellows.COUNT > 1)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
            border = Border(directory, maintenance_conninfo, session)
            try:
                yield border
            finally:
                await border.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def retry_all(server: Server) -> None:
    """As its operator does: have servers tried again that were left alone."""
    config = server.cluster.directory / f"{server.name}.yaml"
    command = [sys.executable, "-m", "homeserver", "federation", "retry", "--config", str(config)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
