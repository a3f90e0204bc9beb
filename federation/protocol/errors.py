"""Every failure that a client or a peer is told of (Client-Server API, "Standard error response").

One small tree: a `MatrixError` knows the error code, the text and the HTTP status; only `federation/web.py`
turns it into a response.
"""

from collections.abc import Mapping
from typing import Any

from federation.protocol.types import ServerName

OF_SESSIONS = frozenset(
    (
        "M_CONSENT_NOT_GIVEN",
        "M_MISSING_TOKEN",
        "M_UNKNOWN_TOKEN",
        "M_USER_DEACTIVATED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
    )
)
"""What tells a client of its own session or account: no other server may say that."""


class MatrixError(Exception):
    """A failure with the code and status that the specification gives it."""

    def __init__(
        self, errcode: str, message: str, http_status: int = 400, fields: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.message = message
        self.http_status = http_status
        self.fields = dict(fields or {})
        """Further members of the error's JSON object, such as `retry_after_ms`."""

    def body(self) -> dict[str, Any]:
        """The error's JSON object."""
        return {"errcode": self.errcode, "error": self.message, **self.fields}


class InvalidInput(MatrixError):
    """What was sent is malformed or means nothing: 400 unless a section says otherwise."""

    def __init__(self, message: str, errcode: str = "M_INVALID_PARAM", http_status: int = 400) -> None:
        super().__init__(errcode, message, http_status)


class Unauthorized(MatrixError):
    """There is no usable access token: 401."""

    def __init__(self, message: str, errcode: str = "M_UNKNOWN_TOKEN", *, soft_logout: bool | None = None) -> None:
        super().__init__(errcode, message, 401, {} if soft_logout is None else {"soft_logout": soft_logout})


class Forbidden(MatrixError):
    """Who asks is known and may not do this: 403."""

    def __init__(self, message: str, errcode: str = "M_FORBIDDEN") -> None:
        super().__init__(errcode, message, 403)


class NotFound(MatrixError):
    """There is no such thing, or none that this reader may know of: 404."""

    def __init__(self, message: str) -> None:
        super().__init__("M_NOT_FOUND", message, 404)


class LimitExceeded(MatrixError):
    """Too many requests; `retry_after_ms` says when the next one may succeed: 429."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("M_LIMIT_EXCEEDED", "Too many requests", 429, {"retry_after_ms": retry_after_ms})
        self.retry_after_ms = retry_after_ms


class AuthRuleViolated(Forbidden):
    """The authorisation rules of the room's version do not allow the event."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        """The rule's number in the room version's "Authorization rules", such as `5.3.1`."""


class InvalidEvent(InvalidInput):
    """The JSON is not an event of the room's version, or a signature or hash does not hold: it is dropped."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "M_BAD_JSON")


class KeyNotKnown(InvalidEvent):
    """An event is signed with a key that is not at hand: it may be once its server answers."""


class TooLarge(MatrixError):
    """More bytes than the section allows: 413."""

    def __init__(self, message: str) -> None:
        super().__init__("M_TOO_LARGE", message, 413)


class Unavailable(MatrixError):
    """The server cannot answer now, though it may soon: 503 with a retry hint."""

    def __init__(self, message: str, retry_after_ms: int = 1000) -> None:
        super().__init__("M_UNKNOWN", message, 503, {"retry_after_ms": retry_after_ms})


class RemoteServerError(MatrixError):
    """Another server failed to answer, or answered with an error: 502."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__("M_UNKNOWN", message, 502)
        self.is_transient = is_transient


class PeerFailed(MatrixError):
    """Another server did not do what we asked of it: 502 for the client that waits."""

    def __init__(self, destination: ServerName, message: str, errcode: str = "M_UNKNOWN") -> None:
        super().__init__(errcode, message, 502)
        self.destination = destination


class PeerUnreachable(PeerFailed):
    """It gave no answer that can be used: no address, no connection, too slow, malformed, or it is in back-off."""

    def __init__(self, destination: ServerName, reason: str) -> None:
        super().__init__(destination, f"The server {destination} cannot be reached")
        self.reason = reason
        """For the log: it may tell of addresses, which are nothing that a client learns."""

    def __str__(self) -> str:
        return f"{self.message}: {self.reason}"


class PeerRefused(PeerFailed):
    """It answered, with an error."""

    def __init__(
        self, destination: ServerName, status: int, errcode: str, error: str, answer: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(destination, f"The server {destination} refused: {error}", errcode)
        self.status = status
        self.answer = dict(answer or {})
        """The whole of its error object; nothing in it is checked."""
        self.error = error
        """What it said, as it said it."""
