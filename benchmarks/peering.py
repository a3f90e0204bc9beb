"""What a server needs to speak with others on this machine."""

from dataclasses import dataclass
from pathlib import Path

from tests.federation.authority import Authority


@dataclass(frozen=True, slots=True)
class Peering:
    """Where others reach it, what it shows them, and whom it trusts."""

    port: int
    certificate: Path
    key: Path
    authority: Path
    """The certificate of the authority that signed everybody's."""

    @classmethod
    def of(cls, authority: Authority, port: int) -> "Peering":
        """With a certificate for this machine's names."""
        certificate, key = authority.issue("localhost", "127.0.0.1")
        return cls(port, certificate, key, authority.certificate)

    @property
    def server_name(self) -> str:
        """The name that leads to it."""
        return f"localhost:{self.port}"
