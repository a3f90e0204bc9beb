"""Keys of devices and users (Client-Server API, "Key management API", "Cross-signing")."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.interactive_auth import PASSWORD, InteractiveAuth
from homeserver.client_api.routing import requester
from homeserver.services.cross_signing import AuthenticationNeeded, CrossSigningService
from homeserver.services.device_keys import DeviceKeysService
from homeserver.tokens import parse_stream_token

MAX_POSITION = 2**63 - 1


class EndToEndEncryptionAPI:
    """Publishing, looking up and claiming keys."""

    def __init__(
        self, device_keys: DeviceKeysService, cross_signing: CrossSigningService, interactive_auth: InteractiveAuth
    ) -> None:
        self._device_keys = device_keys
        self._cross_signing = cross_signing
        self._interactive_auth = interactive_auth

    async def upload_keys(self, call: Call) -> Answer:
        """POST /keys/upload."""
        return {"one_time_key_counts": await self._device_keys.upload(requester(call), await call.body())}

    async def query_keys(self, call: Call) -> Answer:
        """POST /keys/query."""
        return await self._device_keys.query(requester(call), await call.body())

    async def claim_keys(self, call: Call) -> Answer:
        """POST /keys/claim."""
        return await self._device_keys.claim(await call.body())

    async def get_changes(self, call: Call) -> Answer:
        """GET /keys/changes, between two tokens of /sync."""
        token = call.query_text("from")
        if token is None:
            raise InvalidInput("from is missing", "M_MISSING_PARAM")
        after = parse_stream_token(token).position
        token = call.query_text("to")  # clients leave it out, and then mean now
        upto = MAX_POSITION if token is None else parse_stream_token(token).position
        return await self._device_keys.changes(requester(call), after, upto)

    async def upload_cross_signing_keys(self, call: Call) -> Answer:
        """POST /keys/device_signing/upload: what replaces keys needs the user's password, the first keys do not."""
        who = requester(call)
        attempt = await self._interactive_auth.begin(call, await call.body(), who)
        is_application_service = who.application_service is not None
        try:
            await self._cross_signing.upload_keys(who, attempt.body, is_authenticated=is_application_service)
        except AuthenticationNeeded:
            await self._interactive_auth.complete(attempt, [[PASSWORD]])
            await self._cross_signing.upload_keys(who, attempt.body, is_authenticated=True)
        return {}

    async def upload_signatures(self, call: Call) -> Answer:
        """POST /keys/signatures/upload: each key's signatures succeed or fail for themselves."""
        failures: JsonObject = await self._cross_signing.upload_signatures(requester(call), await call.body())
        return {"failures": failures}
