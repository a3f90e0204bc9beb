"""How processes tell each other who is typing and who is online (`ephemeral.py`): by the bus, and never twice."""

from collections.abc import Sequence

import orjson

from federation.protocol.types import UserID
from storage.bus import Bus
from storage.database import Database
from storage.ephemeral import PresenceBoard, PresenceState, Typing, UserPresence, now_ms, store_presence

CHANNEL = "hearth_ephemeral"
MAX_BYTES = 7_500
"""Of user IDs in one message: PostgreSQL takes less than 8,000."""


class Exchange:
    """Tells the other processes what happens here, and this one what happens there."""

    def __init__(self, database: Database, bus: Bus, typing: Typing, presence: PresenceBoard) -> None:
        self._database = database
        self._bus = bus
        self._typing = typing
        self._presence = presence
        self.strangers: set[UserID] = set()
        """Who syncs elsewhere, and of whose presence nothing is known here."""

    async def announce_typing(self, room: int, user_id: UserID, timeout_ms: int) -> None:
        """Somebody types for so long; 0 when they stopped."""
        is_known = True
        if timeout_ms:
            self._typing.start(room, user_id, timeout_ms)
        else:
            is_known = self._typing.stop(room, user_id)
        serial = self._typing.serial if is_known else 0
        await self._tell({"room": room, "user_id": user_id, "timeout_ms": timeout_ms, "serial": serial})

    async def announce_presence(
        self, presence: UserPresence, *, store: bool, asked: PresenceState | None = None
    ) -> bool:
        """Somebody's presence is now so; whether others see a change. `store` for local users.

        `asked` is what the user's syncs ask for from now on.
        """
        is_news = self._presence.put(presence)
        serial = self._presence.serial if is_news else 0
        is_unshared = self._presence.share(presence)
        if not is_news and not is_unshared and asked is None:
            return False
        if is_news and store:
            async with self._database.read() as tx:
                await store_presence(tx, presence)
        await self._tell(
            {
                "presence": presence.user_id,
                "state": presence.state,
                "ts": presence.last_active_ts,
                "status_msg": (presence.status_msg or "")[:1000],
                "serial": serial,
                "asked": asked,
            }
        )
        return is_news

    async def announce_syncing(self, users: Sequence[UserID]) -> None:
        """These users have synced here lately."""
        together: list[UserID] = []
        size = 0
        for user_id in users:
            needs = len(orjson.dumps(user_id)) + 1
            if size + needs > MAX_BYTES:
                await self._tell({"syncing": together})
                together, size = [], 0
            together.append(user_id)
            size += needs
        if together:
            await self._tell({"syncing": together})

    async def _tell(self, message: dict[str, object]) -> None:
        await self._bus.tell(CHANNEL, orjson.dumps(message))

    def hear(self, text: bytes) -> None:
        """What the bus brings from another process."""
        message = orjson.loads(text)
        if "room" in message:
            if message["timeout_ms"]:
                self._typing.start(message["room"], message["user_id"], message["timeout_ms"], message["serial"])
            else:
                self._typing.stop(message["room"], message["user_id"], message["serial"])
        elif "syncing" in message:
            self._hear_of_syncs(message["syncing"])
        else:
            status = message["status_msg"] or None
            presence = UserPresence(message["presence"], message["state"], message["ts"], status)
            self._hear_of_presence(presence, message["serial"], message["asked"])

    def _hear_of_syncs(self, users: Sequence[UserID]) -> None:
        now_ts = now_ms()
        for user_id in users:
            self._presence.synced_at[user_id] = now_ts
            if self._presence.find(user_id) is None:
                self.strangers.add(user_id)

    def _hear_of_presence(self, presence: UserPresence, serial: int, asked: PresenceState | None) -> None:
        before = self._presence.find(presence.user_id)
        is_alike = before is not None and (before.state, before.status_msg) == (presence.state, presence.status_msg)
        if is_alike and not serial:
            self._presence.put_quietly(presence)
        else:
            self._presence.put(presence, serial)
        self._presence.share(presence)
        if presence.state == "offline":
            self._presence.asked.pop(presence.user_id, None)
        elif asked is not None:
            self._presence.asked[presence.user_id] = asked
            self._presence.synced_at[presence.user_id] = now_ms()
