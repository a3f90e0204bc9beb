"""Who may say that they type, and where (Client-Server API, "Typing Notifications")."""

from federation.protocol import edu
from federation.protocol.errors import Forbidden
from federation.protocol.types import UserID
from storage import memberships, rooms
from storage.database import Database
from storage.exchange import Exchange
from storage.memberships import Membership

REMOTE_TIMEOUT_MS = 30_000
"""How long a user of another server types at most, if that server does not say that they stopped."""


class TypingService:
    """Takes notice of typing; `storage.ephemeral.Typing` holds who types now."""

    def __init__(self, database: Database, exchange: Exchange) -> None:
        self._database = database
        self._exchange = exchange

    async def put(self, user_id: UserID, room_id: str, timeout_ms: int) -> None:
        """A local user types for so long, or with 0 no longer; raises Forbidden for who is not in the room."""
        room = await self._joined_room(user_id, room_id)
        if room is None:
            raise Forbidden("You are not in this room")
        await self._exchange.announce_typing(room, user_id, timeout_ms)

    async def receive(self, typing: edu.Typing) -> None:
        """Another server tells of its user; dropped where they are not in the room."""
        room = await self._joined_room(typing.user_id, typing.room_id)
        if room is not None:
            await self._exchange.announce_typing(room, typing.user_id, REMOTE_TIMEOUT_MS if typing.typing else 0)

    async def _joined_room(self, user_id: UserID, room_id: str) -> int | None:
        async with self._database.read() as tx:
            room = await rooms.find(tx, room_id)
            if room is None or await memberships.membership_of(tx, room.number, user_id) is not Membership.JOIN:
                return None
        return room.number
