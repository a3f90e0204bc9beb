"""What application services ask of this server for themselves (Application Service API, "Pinging")."""

from federation.protocol.errors import Forbidden
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.authentication import TokenAuthenticator
from homeserver.services.application_service_client import ApplicationServiceClient


class ApplicationServicesAPI:
    """Endpoints for the tokens of application services alone."""

    def __init__(self, authenticator: TokenAuthenticator, client: ApplicationServiceClient) -> None:
        self._authenticator = authenticator
        self._client = client

    async def ping(self, call: Call) -> Answer:
        """POST /appservice/{appserviceId}/ping."""
        service = self._authenticator.find_service(call)
        if service is None or service.id != call.path["service_id"]:
            raise Forbidden("This is not the token of that application service")
        body = await call.body()
        transaction_id = fields.find_text(body, "transaction_id")
        return {"duration_ms": await self._client.ping(service, transaction_id)}
