"""What other servers ask about devices of this server's users (Server-Server API v1.18, "Device Management",
"End-to-End Encryption")."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from federation.inbound.authentication import FederationCall
from federation.protocol.identifiers import check_user_id
from federation.protocol.types import JsonObject, UserID
from federation.web import Answer


class DeviceAnswers(Struct, frozen=True, kw_only=True):
    """What knows, of this server's users alone; bodies are as they came."""

    devices: Callable[[UserID], Awaitable[JsonObject]]
    """Raises NotFound."""
    query: Callable[[JsonObject], Awaitable[JsonObject]]
    claim: Callable[[JsonObject], Awaitable[JsonObject]]


class DevicesAPI:
    """Devices and their keys."""

    def __init__(self, answers: DeviceAnswers) -> None:
        self._answers = answers

    async def get_devices(self, call: FederationCall) -> Answer:
        """GET /user/devices/{userId}."""
        return await self._answers.devices(check_user_id(call.path["user_id"]))

    async def query_keys(self, call: FederationCall) -> Answer:
        """POST /user/keys/query."""
        return await self._answers.query(call.json)

    async def claim_keys(self, call: FederationCall) -> Answer:
        """POST /user/keys/claim."""
        return await self._answers.claim(call.json)
