"""Who an OpenID token belongs to (Server-Server API, "OpenID"): asked by services, without a signature."""

from federation.protocol.errors import Unauthorized
from federation.web import Answer, Call, Route
from storage import short_lived_tokens
from storage.database import Database
from storage.short_lived_tokens import Purpose


class OpenIDAPI:
    """GET /_matrix/federation/v1/openid/userinfo."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        """Its one route."""
        return [Route("GET", "/_matrix/federation/v1/openid/userinfo", self.get_user_info)]

    async def get_user_info(self, call: Call) -> Answer:
        """The user of the token in the query."""
        token = call.query_text("access_token")
        if token is None:
            raise Unauthorized("An access token is required", "M_MISSING_TOKEN")
        async with self._database.read() as tx:
            user_id = await short_lived_tokens.find_user(tx, Purpose.OPENID, token, self._database.now_ms())
        if user_id is None:
            raise Unauthorized("Access token unknown or expired")
        return {"sub": user_id}
