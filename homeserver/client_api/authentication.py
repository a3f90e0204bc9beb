"""Access token to `Requester` (Client-Server API, "Client Authentication", "Using access tokens")."""

from federation.protocol.errors import Unauthorized
from federation.protocol.types import DeviceID, UserID
from federation.web import Call
from homeserver.services.application_services import ApplicationService, ApplicationServices
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.impersonation import Impersonation
from homeserver.services.requester import Requester
from homeserver.services.sessions import SessionService
from storage.tail import Tail


class TokenAuthenticator:
    """Finds the token in a request and asks whom it stands for: a user's session, or an application service."""

    def __init__(
        self,
        sessions: SessionService,
        services: ApplicationServices,
        impersonation: Impersonation,
        activity: DeviceActivity,
        tail: Tail,
        *,
        query_string_tokens: bool,
    ) -> None:
        self._sessions = sessions
        self._services = services
        self._impersonation = impersonation
        self._activity = activity
        self._tail = tail
        self._query_string_tokens = query_string_tokens

    async def requester(self, call: Call, *, while_locked: bool) -> Requester:
        """Who asks; raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN or M_USER_LOCKED."""
        who = await self._find(call, while_locked=while_locked)
        if who.device is not None:
            self._activity.note(who.device, call.request.remote or "", call.request.headers.get("User-Agent", ""))
        return who

    async def check_again(self, call: Call, *, while_locked: bool) -> None:
        """Raises what `requester` would by now: the session may have ended while the call waited."""
        await self._find(call, while_locked=while_locked)

    async def _find(self, call: Call, *, while_locked: bool) -> Requester:
        if self._tail.is_behind():  # whoever asks may know it from another process
            await self._tail.hear_neighbours()
        token = self._required_token(call)
        service = self._services.find_by_token(token)
        if service is None:
            return await self._sessions.authenticate(token, while_locked=while_locked)
        user_id = UserID(call.query_text("user_id") or service.sender)
        device_id = call.query_text("device_id") or call.query_text("org.matrix.msc3202.device_id") or None
        return await self._impersonation.requester(
            service, user_id, None if device_id is None else DeviceID(device_id), while_locked=while_locked
        )

    def service(self, call: Call) -> ApplicationService:
        """The application service that asks; raises M_MISSING_TOKEN or M_UNKNOWN_TOKEN."""
        service = self.find_service(call)
        if service is None:
            raise Unauthorized("This is not the token of an application service", soft_logout=False)
        return service

    def find_service(self, call: Call) -> ApplicationService | None:
        """The application service that asks; None for somebody else. Raises M_MISSING_TOKEN."""
        return self._services.find_by_token(self._required_token(call))

    def has_token(self, call: Call) -> bool:
        """Whether the call carries any token, usable or not."""
        return bool(self._token(call))

    def _required_token(self, call: Call) -> str:
        token = self._token(call)
        if not token:
            raise Unauthorized("An access token is required", "M_MISSING_TOKEN")
        return token

    def _token(self, call: Call) -> str | None:
        header = call.request.headers.get("Authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
        return call.query_text("access_token") if self._query_string_tokens else None
