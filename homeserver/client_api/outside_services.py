"""Credentials for services besides this server (Client-Server API, "OpenID", "Voice over IP")."""

import base64
import hmac
import time

from msgspec import Struct

from federation.protocol.errors import Forbidden
from federation.protocol.identifiers import server_name_of
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from storage import short_lived_tokens
from storage.database import Database
from storage.short_lived_tokens import Purpose

OPENID_LIFETIME_SECONDS = 3600


class TurnServers(Struct, frozen=True, kw_only=True):
    """Servers that relay calls, and how to be admitted: by a shared secret, or one name and password for all."""

    uris: tuple[str, ...] = ()
    shared_secret: str | None = None
    username: str | None = None
    password: str | None = None
    lifetime_ms: int = 86_400_000


class OutsideServicesAPI:
    """What a user shows to others."""

    def __init__(self, database: Database, turn: TurnServers) -> None:
        self._database = database
        self._turn = turn

    async def request_openid_token(self, call: Call) -> Answer:
        """POST /user/{userId}/openid/request_token."""
        who = requester(call)
        if call.path["user_id"] != who.user_id:
            raise Forbidden("You cannot have tokens for other users")
        await call.body()
        expires_ts = self._database.now_ms() + OPENID_LIFETIME_SECONDS * 1000
        async with self._database.transaction() as tx:
            token = await short_lived_tokens.make(tx, Purpose.OPENID, who.user_id, expires_ts)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "matrix_server_name": server_name_of(who.user_id),
            "expires_in": OPENID_LIFETIME_SECONDS,
        }

    async def get_turn_server(self, call: Call) -> Answer:
        """GET /voip/turnServer; an empty object where there is none, which clients know from other servers."""
        turn, seconds = self._turn, self._turn.lifetime_ms // 1000
        if not turn.uris:
            return {}
        if turn.shared_secret is not None:
            username = f"{int(time.time()) + seconds}:{requester(call).user_id}"
            # "A REST API For Access To TURN Services", as coturn implements it, uses SHA-1.
            digest = hmac.digest(turn.shared_secret.encode(), username.encode(), "sha1")
            password = base64.b64encode(digest).decode()
        else:
            username, password = turn.username or "", turn.password or ""
        return {"username": username, "password": password, "uris": list(turn.uris), "ttl": seconds}
