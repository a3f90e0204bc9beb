"""Identity servers, which tell others whose an e-mail address is (Identity Service API), asked on a user's behalf.

The user names the server and gives us a token for it. What was bound through us is remembered, to be unbound.
"""

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from federation.outbound.egress import Egress, EgressError, EgressRequest, EgressResponse
from federation.protocol import canonical_json
from federation.protocol.errors import OF_SESSIONS, InvalidInput, MatrixError
from federation.protocol.identifiers import fits, is_server_name, is_user_id
from federation.protocol.request_signing import SignedRequest, make_header
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import identifiers
from storage.database import Database
from storage.identifiers import Identifier

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
SECONDS = 20.0
MAX_TOKEN = 2000
MAX_BINDINGS = 50
"""Of one user that are remembered: an identity server may say that it has bound anything."""


class Identity(Struct, frozen=True, kw_only=True):
    """Who this server is to others."""

    server_name: ServerName
    signing_key: SigningKey


class IdentityServers:
    """Those that the settings trust."""

    def __init__(
        self, database: Database, egress: Egress, identity: Identity, *, trusts: Callable[[ServerName], bool]
    ) -> None:
        self._database = database
        self._egress = egress
        self._identity = identity
        self._trusts = trusts

    async def bind(self, user_id: UserID, id_server: str, token: str, *, sid: str, client_secret: str) -> None:
        """Have the identity server tell that what was proven to it is this user's; raises what it answers."""
        name = self._checked(id_server)
        body = {"sid": sid, "client_secret": client_secret, "mxid": user_id}
        answer = await self._ask(name, "POST", "3pid/bind", body, token=token)
        medium, address = answer.get("medium"), answer.get("address")
        if isinstance(medium, str) and isinstance(address, str) and len(medium) + len(address) < 1000:
            async with self._database.transaction() as tx:
                await identifiers.insert_binding(tx, user_id, Identifier(medium, address), name, at_most=MAX_BINDINGS)

    async def unbind(self, user_id: UserID, identifier: Identifier, id_server: str | None) -> bool:
        """Have it told no longer, where it was bound through us or at the server that is named; whether that is so."""
        if id_server is not None:
            return await self._unbind(user_id, identifier, ServerName(id_server))
        async with self._database.read() as tx:
            bindings = await identifiers.list_bindings(tx, user_id)
        results = [
            await self._unbind(user_id, bound, ServerName(name)) for bound, name in bindings if bound == identifier
        ]
        return bool(results) and all(results)

    async def unbind_all(self, user_id: UserID, id_server: str | None) -> bool:
        """The same for all that a user has bound, whose account ends; whether nothing is left."""
        named = None if id_server is None else ServerName(id_server)
        async with self._database.read() as tx:
            bindings = await identifiers.list_bindings(tx, user_id)
        results = [await self._unbind(user_id, bound, named or ServerName(name)) for bound, name in bindings]
        return all(results)

    async def _unbind(self, user_id: UserID, identifier: Identifier, id_server: ServerName) -> bool:
        body = {"mxid": user_id, "threepid": {"medium": identifier.medium, "address": identifier.address}}
        try:
            await self._ask(self._checked(id_server), "POST", "3pid/unbind", body)
        except MatrixError as error:
            logger.info("the identity server %s does not unbind: %s", id_server, error.message)
            return False
        async with self._database.transaction() as tx:
            await identifiers.delete_binding(tx, user_id, identifier, id_server)
        return True

    async def find_user(self, id_server: str, token: str, identifier: Identifier) -> UserID | None:
        """Whose the address is, as the identity server has it ("Association lookup"); raises what it answers."""
        name = self._checked(id_server)
        details = await self._ask(name, "GET", "hash_details", token=token)
        pepper, algorithms = details.get("lookup_pepper"), details.get("algorithms")
        if not isinstance(pepper, str) or not isinstance(algorithms, list) or "sha256" not in algorithms:
            raise _unusable(name)
        text = f"{identifier.address} {identifier.medium} {pepper}"
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        hashed = digest.decode().rstrip("=")
        body = {"addresses": [hashed], "algorithm": "sha256", "pepper": pepper}
        found = (await self._ask(name, "POST", "lookup", body, token=token)).get("mappings")
        user_id = found.get(hashed) if isinstance(found, dict) else None
        return UserID(user_id) if is_user_id(user_id) else None

    async def store_invite(self, id_server: str, token: str, invite: JsonObject) -> JsonObject:
        """Have an invite kept, and mail sent, for who has no account yet: the event's content and its state key.

        The members are `token`, `display_name`, `public_keys`; raises what the identity server answers.
        """
        name = self._checked(id_server)
        answer = await self._ask(name, "POST", "store-invite", invite, token=token)
        keys = answer.get("public_keys")
        if (
            not isinstance(answer.get("token"), str)
            or not fits(answer["token"])
            or not isinstance(answer.get("display_name"), str)
            or not isinstance(keys, list)
            or not keys
            or not all(isinstance(key, dict) and _is_key(key) for key in keys)
        ):
            raise _unusable(name)
        return {
            "token": answer["token"],
            "display_name": answer["display_name"],
            "public_keys": [
                {"public_key": key["public_key"], "key_validity_url": key["key_validity_url"]} for key in keys
            ],
        }

    def _checked(self, id_server: str) -> ServerName:
        if not is_server_name(id_server):
            raise InvalidInput("id_server is no server name")
        if not self._trusts(id_server):
            raise InvalidInput("This server does not use that identity server", "M_SERVER_NOT_TRUSTED")
        return id_server

    async def _ask(
        self,
        id_server: ServerName,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        token: str | None = None,
    ) -> JsonObject:
        """The answer's object; with a token for a user, without signed by this server."""
        uri = f"/_matrix/identity/v2/{path}"
        content = None if body is None else canonical_json.encode(body)
        if token is None:
            signed = SignedRequest(
                method=method,
                uri=uri,
                origin=self._identity.server_name,
                destination=id_server,
                content=content,
            )
            authorization = make_header(signed, self._identity.signing_key)
        elif len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable():
            raise InvalidInput("id_access_token is no token")
        else:
            authorization = f"Bearer {token}"
        request = EgressRequest(
            method=method,
            url=f"https://{id_server}{uri}",
            headers={"Authorization": authorization, "Content-Type": "application/json"},
            body=content,
            max_bytes=MAX_BYTES,
            timeout=SECONDS,
        )
        try:
            answer = await self._egress.fetch(request)
        except EgressError as error:
            logger.info("the identity server %s does not answer: %s", id_server, error)
            raise MatrixError("M_UNKNOWN", f"The identity server {id_server} does not answer", 502) from None
        return _object_of(id_server, answer)


def _object_of(id_server: ServerName, answer: EgressResponse) -> JsonObject:
    """The answer's object; raises the error that it tells of, as it was told."""
    try:
        found: Any = canonical_json.loads(answer.body)
    except InvalidInput:
        found = None
    if not isinstance(found, dict):
        raise _unusable(id_server)
    if answer.status == 200:
        return found
    errcode, error = found.get("errcode"), found.get("error")
    if not isinstance(errcode, str) or not 400 <= answer.status < 500:
        raise _unusable(id_server)
    message = error if isinstance(error, str) else "The identity server refused"
    if errcode in OF_SESSIONS:
        errcode = "M_UNAUTHORIZED"
    raise MatrixError(errcode[:100], message[:500], 403 if answer.status == 401 else answer.status)


def _is_key(key: Mapping[str, object]) -> bool:
    return isinstance(key.get("public_key"), str) and isinstance(key.get("key_validity_url"), str)


def _unusable(id_server: ServerName) -> MatrixError:
    return MatrixError("M_UNKNOWN", f"The identity server {id_server} gives no answer that can be used", 502)
