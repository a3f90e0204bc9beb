"""A server that all tests of a worker share."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from federation.protocol.types import UserID
from tests.client import Client, Server
from tests.push_gateway import Pushing, pushing_server
from tests.servers import running


@pytest_asyncio.fixture(scope="session")
async def server(worker_conninfo: str) -> AsyncIterator[Server]:
    """A server with open registration and without rate limits. Tests use users and rooms of their own."""
    async with running(worker_conninfo) as server:
        yield server


@pytest_asyncio.fixture
async def alice(server: Server) -> Client:
    """A user who is logged in."""
    return await server.register("alice")


@pytest_asyncio.fixture
async def bob(server: Server) -> Client:
    """Another user who is logged in."""
    return await server.register("bob")


@pytest_asyncio.fixture
async def admin(server: Server) -> Client:
    """An administrator of the server."""
    client = await server.register("admin")
    await server.application.accounts.service.set_admin(UserID(client.user_id), is_admin=True)
    return client


@pytest_asyncio.fixture(scope="session")
async def pushing(maintenance_conninfo: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pushing]:
    """A server that may reach a push gateway on loopback, and that gateway: tests use users of their own."""
    async with pushing_server(maintenance_conninfo, tmp_path_factory.mktemp("push")) as pushing:
        yield pushing
