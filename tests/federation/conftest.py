"""One server that the tests of a worker share, with peers of their own (`peer.py`), and two that reach each other."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.client import Server
from tests.federation.authority import Authority
from tests.federation.peer import Peer
from tests.federation.policy_peer import PolicyPeer
from tests.federation.servers import Pair, two_servers
from tests.federation.specified import NOTED
from tests.homeserver.conftest import alice, bob, server

__all__ = ["alice", "authority", "bob", "pair", "server"]


@pytest.fixture(autouse=True)
def requests_are_specified() -> Iterator[None]:
    """Every request to other servers that a test leads to is one that the specification has (`specified.py`)."""
    NOTED.clear()
    yield
    assert not NOTED, "\n".join(NOTED)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signs certificates for tests."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_asyncio.fixture(scope="session")
async def pair(maintenance_conninfo: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two servers that reach each other. Tests use users and rooms of their own."""
    async with two_servers(maintenance_conninfo, tmp_path_factory.mktemp("pair")) as servers:
        yield servers


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    """Another server, of which ours knows the key."""
    return await Peer(server).trust()


@pytest_asyncio.fixture
async def policy(pair: Pair) -> AsyncIterator[PolicyPeer]:
    peer = PolicyPeer(pair.near, pair.authority)
    await peer.trust()
    await peer.start()
    yield peer
    await peer.stop()
