"""Requests to application services (Application Service API v1.19)."""

import time

import orjson
from msgspec import Struct

from federation.outbound.egress import Egress, EgressError, EgressRequest
from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.types import JsonObject
from homeserver.services.application_services import ApplicationService

PING_SECONDS = 10.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_TOLD_BYTES = 4096
"""Of a body that is no answer, for whoever runs the service to see."""


class ApplicationServiceClient(Struct, frozen=True):
    """Asks application services; `egress` goes to any address, since the operator names them."""

    egress: Egress

    async def ping(self, service: ApplicationService, transaction_id: str | None) -> int:
        """Ask whether the service hears this server, and knows it by its token; milliseconds until it said so.

        Raises M_URL_NOT_SET, M_CONNECTION_FAILED, M_CONNECTION_TIMEOUT or M_BAD_STATUS.
        """
        if service.url is None:
            raise InvalidInput("The application service has no URL", "M_URL_NOT_SET")
        body: JsonObject = {} if transaction_id is None else {"transaction_id": transaction_id}
        request = EgressRequest(
            method="POST",
            url=f"{service.url.rstrip('/')}/_matrix/app/v1/ping",
            headers={"Authorization": f"Bearer {service.hs_token}", "Content-Type": "application/json"},
            body=orjson.dumps(body),
            max_bytes=MAX_ANSWER_BYTES,
            timeout=PING_SECONDS,
            allows_http=True,
        )
        began = time.monotonic()
        try:
            answer = await self.egress.fetch(request)
        except EgressError as error:
            if time.monotonic() - began >= PING_SECONDS:
                raise MatrixError("M_CONNECTION_TIMEOUT", "The application service takes too long", 504) from error
            raise MatrixError("M_CONNECTION_FAILED", f"There is no answer: {error}", 502) from error
        if not 200 <= answer.status < 300:
            text = answer.body[:MAX_TOLD_BYTES].decode(errors="replace")
            fields: JsonObject = {"status": answer.status, "body": text}
            raise MatrixError("M_BAD_STATUS", f"The application service answered {answer.status}", 502, fields)
        return round((time.monotonic() - began) * 1000)
