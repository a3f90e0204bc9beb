"""`errors`: what is told to whom."""

from federation.protocol.errors import PeerUnreachable
from federation.protocol.types import ServerName


def test_why_a_server_cannot_be_reached_is_for_the_log_alone() -> None:
    error = PeerUnreachable(ServerName("peer.example"), "no connection to 192.0.2.1")
    assert str(error) == "The server peer.example cannot be reached: no connection to 192.0.2.1"
    assert error.message == "The server peer.example cannot be reached"
    assert "192.0.2.1" not in str(error.body())
