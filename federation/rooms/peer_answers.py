"""Asking the servers that are in a room, one after the other, and what a client is told when none of them would."""

import logging
from collections.abc import Iterable

from federation.protocol.errors import Forbidden, MatrixError, NotFound, PeerFailed, PeerRefused, RemoteServerError
from federation.protocol.identifiers import is_server_name
from federation.protocol.types import ServerName

logger = logging.getLogger(__name__)

MAX_SERVERS = 10
"""Servers that are asked for one room."""

_PASSED_ON = {
    # The room's rules say no, and will elsewhere, most likely; yet another server may know better.
    "M_FORBIDDEN": 5,
    "M_INCOMPATIBLE_ROOM_VERSION": 4,
    "M_UNABLE_TO_AUTHORISE_JOIN": 3,
    "M_UNABLE_TO_GRANT_JOIN": 3,
}
_OURS = frozenset(("M_MISSING_PARAM", "M_INVALID_PARAM", "M_UNRECOGNIZED", "M_BAD_JSON", "M_NOT_JSON"))
"""Codes by which a server complains of our request, about which a client can do nothing."""


def candidates(servers: Iterable[str], *, besides: ServerName, at_most: int = MAX_SERVERS) -> list[ServerName]:
    """Whom to ask: each server once, in order, not ourselves, and not too many."""
    names = [ServerName(name) for name in dict.fromkeys(servers) if name != besides and is_server_name(name)]
    return names[:at_most]


class Refusals:
    """Why nothing came of asking, server by server."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._rank = -1
        self._error: MatrixError = NotFound("No server is known that is in the room")

    def note(self, destination: ServerName, error: MatrixError) -> None:
        """Another server that did not help."""
        logger.info("%s by way of %s failed: %s", self._purpose, destination, error)
        rank, told = _judged(error)
        if rank > self._rank:
            self._rank, self._error = rank, told

    @property
    def error(self) -> MatrixError:
        """What a client is told: what the server said that knew most."""
        return self._error


def is_unknown_endpoint(error: PeerRefused) -> bool:
    """Whether the server does not know this version of the endpoint; then an older one may do."""
    return error.errcode == "M_UNRECOGNIZED" or (error.status in (404, 405) and error.errcode != "M_NOT_FOUND")


def _judged(error: MatrixError) -> tuple[int, MatrixError]:
    if not isinstance(error, PeerRefused):
        if isinstance(error, PeerFailed):
            return 1, error
        if error.errcode in _PASSED_ON:  # what we found ourselves: a version that we do not know
            return _PASSED_ON[error.errcode], error
        message = f"No server in the room gave an answer that can be used: {error.message}"
        return 1, RemoteServerError(message, is_transient=True)
    code = error.errcode
    if error.status == 403:
        return _PASSED_ON["M_FORBIDDEN"], Forbidden(error.error or "The room does not permit this")
    if error.status == 400 and code in _PASSED_ON:
        version = error.answer.get("room_version")
        return _PASSED_ON[code], MatrixError(
            code, error.error, 400, {"room_version": version} if isinstance(version, str) else None
        )
    if error.status == 404 and code not in _OURS:
        return 0, NotFound("No server that was asked knows this room")
    if error.status == 400 and code not in _OURS:
        return 2, MatrixError(code, error.error, 400)
    return 1, error
