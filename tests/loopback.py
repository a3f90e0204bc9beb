"""No test, and no server of a test, reaches beyond this machine."""

import socket
import sys
from typing import Any


def stay() -> None:
    """From now on, this process knows no other machine."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and not _is_here(str(arguments[0])):
        raise socket.gaierror(socket.EAI_NONAME, f"tests know no other machine than this, such as {arguments[0]}")
    if event not in ("socket.connect", "socket.sendto"):
        return
    endpoint, address = arguments[0], arguments[1]
    if endpoint.family == socket.AF_UNIX:
        return
    host = address[0] if isinstance(address, tuple) else str(address)
    if not _is_here(host):
        # As of a network that is down: a server that asks others, as it may, finds none.
        raise ConnectionRefusedError(f"tests reach no other machine, and this one tried {address}")


def _is_here(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0", "::", "None")  # noqa: S104  # a target here
