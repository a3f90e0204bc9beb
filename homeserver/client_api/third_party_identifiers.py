"""E-mail addresses and phone numbers of accounts (Client-Server API, "Adding Account Administrative Contact
Information")."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, UserID
from federation.web import Answer, Call, Endpoint
from homeserver.client_api import fields
from homeserver.client_api.identifiers import canonical
from homeserver.client_api.interactive_auth import PASSWORD, InteractiveAuth
from homeserver.client_api.routing import requester
from homeserver.services.identifiers import EmailRequest, IdentifierService, PhoneRequest
from homeserver.services.identity_servers import IdentityServers
from storage.identifier_validations import Purpose
from storage.identifiers import Identifier

MAX_BODY = 64 * 1024
"""Of who may not have said yet who they are."""


class ThirdPartyIdentifiersAPI:
    """Proving, adding, listing and removing them."""

    def __init__(
        self, identifiers: IdentifierService, identity_servers: IdentityServers, interactive_auth: InteractiveAuth
    ) -> None:
        self._identifiers = identifiers
        self._identity_servers = identity_servers
        self._interactive_auth = interactive_auth

    def email_request(self, purpose: Purpose) -> Endpoint:
        """POST /{register,account/password,account/3pid}/email/requestToken."""

        async def request_token(call: Call) -> Answer:
            body = await call.body(max_bytes=MAX_BODY)
            request = EmailRequest(
                client_secret=fields.get_text(body, "client_secret"),
                email=fields.get_text(body, "email"),
                send_attempt=_send_attempt(body),
                next_link=fields.find_text(body, "next_link"),
            )
            sid = await self._identifiers.request_email(purpose, request, asker=call.request.remote or "")
            return {"sid": sid}

        return request_token

    def phone_request(self, purpose: Purpose) -> Endpoint:
        """POST /{register,account/password,account/3pid}/msisdn/requestToken."""

        async def request_token(call: Call) -> Answer:
            body = await call.body(max_bytes=MAX_BODY)
            request = PhoneRequest(
                client_secret=fields.get_text(body, "client_secret"),
                country=fields.get_text(body, "country"),
                phone_number=fields.get_text(body, "phone_number"),
                send_attempt=_send_attempt(body),
            )
            sid = await self._identifiers.request_phone(purpose, request, asker=call.request.remote or "")
            return {"sid": sid, "submit_url": self._identifiers.submit_url}

        return request_token

    async def submit_code(self, call: Call) -> Answer:
        """POST to `submit_url`: as the Identity Service API's /validate/msisdn/submitToken."""
        body = await call.body(max_bytes=MAX_BODY)
        await self._identifiers.submit_code(
            *(fields.get_text(body, name) for name in ("sid", "client_secret", "token"))
        )
        return {"success": True}

    async def list_identifiers(self, call: Call) -> Answer:
        """GET /account/3pid."""
        return {
            "threepids": [
                {
                    "medium": own.identifier.medium,
                    "address": own.identifier.address,
                    "validated_at": own.validated_ts,
                    "added_at": own.added_ts,
                }
                for own in await self._identifiers.list_of_user(requester(call).user_id)
            ]
        }

    async def add(self, call: Call) -> Answer:
        """POST /account/3pid/add."""
        who = requester(call)
        attempt = await self._interactive_auth.begin(call, await call.body(max_bytes=MAX_BODY), who)
        sid, client_secret = fields.get_text(attempt.body, "sid"), fields.get_text(attempt.body, "client_secret")
        if who.application_service is None:  # these vouch for their users
            await self._interactive_auth.complete(attempt, [[PASSWORD]])
        await self._identifiers.add(who.user_id, sid, client_secret)
        return {}

    async def bind(self, call: Call) -> Answer:
        """POST /account/3pid/bind."""
        await self._bind(requester(call).user_id, await call.body(max_bytes=MAX_BODY))
        return {}

    async def bind_as_before(self, call: Call) -> Answer:
        """POST /account/3pid, which is the same in another shape."""
        body = await call.body(max_bytes=MAX_BODY)
        credentials = fields.get_object(body, "three_pid_creds") or fields.get_object(body, "threePidCreds")
        await self._bind(requester(call).user_id, credentials)
        return {}

    async def _bind(self, user_id: UserID, credentials: JsonObject) -> None:
        await self._identity_servers.bind(
            user_id,
            fields.get_text(credentials, "id_server"),
            fields.get_text(credentials, "id_access_token"),
            sid=fields.get_text(credentials, "sid"),
            client_secret=fields.get_text(credentials, "client_secret"),
        )

    async def delete(self, call: Call) -> Answer:
        """POST /account/3pid/delete."""
        who, (identifier, id_server) = requester(call), await _removed(call)
        await self._identifiers.remove(who.user_id, identifier)
        return await self._unbind(who.user_id, identifier, id_server)

    async def unbind(self, call: Call) -> Answer:
        """POST /account/3pid/unbind."""
        identifier, id_server = await _removed(call)
        return await self._unbind(requester(call).user_id, identifier, id_server)

    async def _unbind(self, user_id: UserID, identifier: Identifier, id_server: str | None) -> Answer:
        is_unbound = await self._identity_servers.unbind(user_id, identifier, id_server)
        return {"id_server_unbind_result": "success" if is_unbound else "no-support"}


async def _removed(call: Call) -> tuple[Identifier, str | None]:
    body = await call.body(max_bytes=MAX_BODY)
    identifier = canonical(fields.get_text(body, "medium"), fields.get_text(body, "address"))
    return identifier, fields.find_text(body, "id_server")


def _send_attempt(body: JsonObject) -> int:
    found = fields.find_int(body, "send_attempt")
    if found is None:
        raise InvalidInput("send_attempt is required", "M_MISSING_PARAM")
    return found
