"""A Synapse and a Hearth beside one another, each a process with a database of its own, that speak over TLS."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks import synapse
from benchmarks.cluster import Databases
from benchmarks.hearth import Hearth
from benchmarks.peering import Peering
from benchmarks.server import Server
from benchmarks.synapse import Synapse
from tests.clients import Client
from tests.federation.authority import Authority
from tests.interop.people import Person
from tests.scenarios.hearth_process import free_port


class Border:
    """Servers of one authority on one cluster; each is started when somebody first asks for it."""

    def __init__(self, directory: Path, maintenance_conninfo: str, session: aiohttp.ClientSession) -> None:
        self._databases = Databases(directory, maintenance_conninfo)
        self._authority = Authority(directory)
        self._session = session
        self._servers: dict[str, Server] = {}

    async def hearth(self, name: str = "hearth") -> Server:
        """A Hearth that runs; any name but its own is one more of them."""
        if name not in self._servers:
            peering = Peering.of(self._authority, free_port())
            await self._add(Hearth(self._databases, name=name, peering=peering, log="info"))
        return self._servers[name]

    async def synapse(self) -> Server:
        """The Synapse, which runs."""
        if "synapse" not in self._servers:
            peering = Peering.of(self._authority, free_port())
            await self._add(Synapse(self._databases, synapse.install(), peering=peering))
        return self._servers["synapse"]

    async def _add(self, server: Server) -> None:
        server.database = f"interop_{server.name}"
        self._databases.create_database(server.database, "template0")
        self._servers[server.name] = server
        await server.start()

    async def person(self, server: Server, name: str) -> Person:
        """A new user; their name gets a number."""
        is_ours = isinstance(server, Hearth)
        visitor = Client(f"http://127.0.0.1:{server.port}", self._session, is_held_to_specification=is_ours)
        return Person(await visitor.register(name), server.server_name)

    def log_sizes(self) -> dict[Path, int]:
        """How long each server's log is by now."""
        return {server.log_file: server.log_file.stat().st_size for server in self._servers.values()}

    async def close(self) -> None:
        """Stop them and remove their databases."""
        for server in self._servers.values():
            await server.stop()
            self._databases.drop_database(server.database)


@asynccontextmanager
async def a_border(maintenance_conninfo: str) -> AsyncIterator[Border]:
    """Gone with all that belongs to it at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-interop-"))
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            border = Border(directory, maintenance_conninfo, session)
            try:
                yield border
            finally:
                await border.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
