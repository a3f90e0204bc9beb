"""Signed requests from one running server to another: what the other sees, and what is made of its answers."""

import pytest

from federation.outbound.client import FederationClient, path_of
from federation.protocol.errors import PeerRefused, PeerUnreachable
from federation.protocol.types import ServerName
from tests.clients import Server
from tests.federation.servers import Pair, free_port


def client_of(server: Server) -> FederationClient:
    """What the server asks others with."""
    return server.application.outbound.client


async def test_another_server_tells_its_version(pair: Pair) -> None:
    answer = await client_of(pair.near).get(ServerName(pair.far.name), "/_matrix/federation/v1/version")

    assert answer["server"]["name"] == "Hearth"


async def test_an_unknown_path_is_refused_with_the_error_of_the_other_server(pair: Pair) -> None:
    with pytest.raises(PeerRefused) as raised:
        await client_of(pair.near).get(ServerName(pair.far.name), "/_matrix/federation/v1/nothing")

    assert (raised.value.status, raised.value.errcode, raised.value.http_status) == (404, "M_UNRECOGNIZED", 502)


async def test_a_server_that_does_not_listen_is_left_alone_for_a_while(pair: Pair) -> None:
    nobody = ServerName(f"127.0.0.1:{free_port()}")
    client = client_of(pair.near)

    with pytest.raises(PeerUnreachable, match="onnect"):
        await client.get(nobody, "/_matrix/federation/v1/version")
    with pytest.raises(PeerUnreachable, match="left alone"):
        await client.get(nobody, "/_matrix/federation/v1/version")
    with pytest.raises(PeerUnreachable, match="onnect"):
        await client.get(nobody, "/_matrix/federation/v1/version", patient=True)


def test_segments_of_a_path_are_percent_encoded() -> None:
    assert path_of("/event/{}/{}", "$a/b?c", "ä") == "/event/%24a%2Fb%3Fc/%C3%A4"
