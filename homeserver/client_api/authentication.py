"""Access token to `Requester` (Client-Server API, "Client Authentication", "Using access tokens")."""

from federation.protocol.errors import Unauthorized
from federation.web import Call
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.requester import Requester
from homeserver.services.sessions import SessionService


class TokenAuthenticator:
    """Finds the token in a request and asks whom it stands for."""

    def __init__(self, sessions: SessionService, activity: DeviceActivity, *, query_string_tokens: bool) -> None:
        self._sessions = sessions
        self._activity = activity
        self._query_string_tokens = query_string_tokens

    async def requester(self, call: Call, *, while_locked: bool) -> Requester:
        """Who asks; raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN or M_USER_LOCKED."""
        token = self._token(call)
        if not token:
            raise Unauthorized("An access token is required", "M_MISSING_TOKEN")
        who = await self._sessions.authenticate(token, while_locked=while_locked)
        if who.device is not None:
            self._activity.note(who.device, call.request.remote or "", call.request.headers.get("User-Agent", ""))
        return who

    def has_token(self, call: Call) -> bool:
        """Whether the call carries any token, usable or not."""
        return bool(self._token(call))

    def _token(self, call: Call) -> str | None:
        header = call.request.headers.get("Authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
        return call.query_text("access_token") if self._query_string_tokens else None
