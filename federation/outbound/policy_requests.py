"""Asking a room's policy server for its signature (Server-Server API v1.18, "Asking for a Policy Server signature")."""

from federation.outbound.client import FederationClient
from federation.protocol.errors import OF_SESSIONS, MatrixError, PeerRefused
from federation.protocol.types import JsonObject, ServerName

PATH = "/_matrix/policy/v1/sign"
SECONDS = 10.0
"""For as long a client waits for what it sends."""
MAX_BYTES = 64 * 1024

_ITS_ANSWERS = frozenset((400, 403, 404, 429))


class PolicyRequests:
    """Questions to policy servers, which may be this server's own name: what serves it there is not our matter."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def sign(self, destination: ServerName, event: JsonObject, *, patient: bool) -> JsonObject:
        """The answer, signatures by server and key, of which nothing is checked.

        Raises what it refused with, as a client is to be told, or PeerFailed. Who is `patient` asks a server that did
        not answer lately.
        """
        try:
            return await self._client.post(
                destination, PATH, event, timeout=SECONDS, max_bytes=MAX_BYTES, patient=patient, may_be_us=True
            )
        except PeerRefused as error:
            raise _passed_on(error) from None


def _passed_on(error: PeerRefused) -> MatrixError:
    """The refusal with the policy server's own words and status, as far as it may use them."""
    if error.status not in _ITS_ANSWERS:
        return error
    told = error.answer.get("error")
    fields = {name: value for name, value in error.answer.items() if name not in ("errcode", "error", "soft_logout")}
    pause = fields.get("retry_after_ms")
    if not isinstance(pause, int) or isinstance(pause, bool) or pause < 0:
        fields.pop("retry_after_ms", None)
    errcode = "M_FORBIDDEN" if error.errcode in OF_SESSIONS else error.errcode
    return MatrixError(errcode, told if isinstance(told, str) else error.error, error.status, fields)
