"""A server that reaches others, and a peer that listens and has a user in a room of the server's."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.client import Client, Server
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer, listening
from tests.federation.resident_rooms import SharedRoom
from tests.federation.servers import federating


@pytest_asyncio.fixture(scope="module")
async def server(maintenance_conninfo: str, authority: Authority) -> AsyncIterator[Server]:
    """The server. Tests use users and rooms of their own."""
    async with federating(maintenance_conninfo, authority) as running:
        yield running


@pytest_asyncio.fixture
async def peer(server: Server, authority: Authority) -> AsyncIterator[ListeningPeer]:
    """The other server."""
    async with listening(server, authority) as found:
        yield found


@pytest_asyncio.fixture
async def room(server: Server, alice: Client, peer: ListeningPeer) -> SharedRoom:
    """A room that Alice made and a user of the peer is in."""
    shared = await SharedRoom.made(server, alice, peer)
    await shared.join(peer.user())
    return shared
