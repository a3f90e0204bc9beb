"""What a server needs to speak with others on this machine."""

from dataclasses import dataclass
from pathlib import Path

from tests.federation.authority import Authority


@dataclass(frozen=True, slots=True)
class Peering:
    """Where others reach it, what it shows them, and whom it trusts."""

    host: str
    port: int
    certificate: Path
    key: Path
    authority: Path
    """The certificate of the authority that signed everybody's."""
    own_port: int
    """Where it listens: `port`, unless something stands in between."""

    @classmethod
    def of(cls, authority: Authority, port: int, host: str = "localhost", own_port: int | None = None) -> "Peering":
        """With a certificate for the host, which is this machine or one of its own addresses."""
        certificate, key = authority.issue(host)
        return cls(host, port, certificate, key, authority.certificate, port if own_port is None else own_port)

    @property
    def server_name(self) -> str:
        """The name that leads to it."""
        return f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """Where it listens."""
        return "127.0.0.1" if self.host == "localhost" else self.host
