"""One server and one process of clients for the run: tests/scheduling.py has everything here run in one worker."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from homeserver.config import Listener, RateLimit, RateLimits, Secret, Turn
from tests.client import Server
from tests.clients.storyteller import Storyteller, a_storyteller
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.scenarios.hearth_process import free_port
from tests.servers import running

_HERE = Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    """Everything here is software of other people."""
    if _HERE in item.path.parents:
        item.add_marker(pytest.mark.interoperability)


@pytest_asyncio.fixture(scope="session")
async def server(maintenance_conninfo: str, worker_id: str) -> AsyncIterator[Server]:
    """A server for people with clients."""
    name = f"hearth_{worker_id}_clients"
    create_database(maintenance_conninfo, name, TEMPLATE)
    port = free_port()
    settings: dict[str, Any] = {
        "listeners": (Listener(address="127.0.0.1", port=port),),
        "public_base_url": f"http://127.0.0.1:{port}",  # clients in browsers go where /.well-known says
        # People come one after another from one address; what each of them does stays within the limits.
        "rate_limits": RateLimits(
            registration=RateLimit(100.0, 1000), login=RateLimit(100.0, 1000), authentication=RateLimit(100.0, 1000)
        ),
        "turn": Turn(uris=("turn:turn.hearth.test?transport=udp",), shared_secret=Secret("between the two servers")),
    }
    async with running(make_conninfo(maintenance_conninfo, dbname=name), **settings) as server:
        yield server
    drop_database(maintenance_conninfo, name)


@pytest_asyncio.fixture(scope="session")
async def storyteller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Storyteller]:
    """The process that the clients run in."""
    async with a_storyteller(tmp_path_factory.mktemp("clients")) as storyteller:
        yield storyteller
