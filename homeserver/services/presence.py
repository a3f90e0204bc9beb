"""Presence of local users, and what others may know of it (Client-Server API, "Presence")."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from msgspec.structs import replace

from federation.protocol import edu
from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.types import JsonObject, UserID
from storage import background, memberships
from storage.database import Database
from storage.ephemeral import (
    OFFLINE_AFTER_MS,
    PresenceBoard,
    PresenceState,
    UserPresence,
    load_presence,
    now_ms,
)
from storage.exchange import Exchange
from storage.tail import Listener, Tail

SWEEP_SECONDS = 5.0
SHARED_MS = 10_000
"""How often the processes tell each other who syncs."""


class PresenceService:
    """Who is online. Where presence is switched off, nothing is known of anybody and nothing is stored."""

    def __init__(
        self, database: Database, tail: Tail, board: PresenceBoard, exchange: Exchange, *, enabled: bool
    ) -> None:
        self.enabled = enabled
        self._database = database
        self._tail = tail
        self._board = board
        self._exchange = exchange
        self.observers: list[Callable[[UserID, JsonObject], None]] = []
        """Called with whose presence changed, and what others are told of it."""
        self._synced_here: dict[UserID, int] = {}
        """When users last synced in this process."""
        self._shared_at = 0

    # --- what happens

    async def set_status(self, user_id: UserID, state: PresenceState, status_msg: str | None) -> None:
        """A local user says how they are."""
        if self.enabled:
            self._note_sync(user_id, now_ms())
            await self._exchange.announce_presence(UserPresence(user_id, state, now_ms(), status_msg), store=True)

    async def synced(self, user_id: UserID, state: PresenceState) -> None:
        """A local user's client syncs, with this `set_presence`. Costs nothing while that is no change."""
        if not self.enabled:
            return
        now_ts = now_ms()
        known = self._board.find(user_id)
        if state == "offline":
            return
        self._note_sync(user_id, now_ts)
        if known is not None and known.state != "offline" and self._board.asked.get(user_id) == state:
            return  # so it is, or idle, or set by hand
        self._board.asked[user_id] = state
        if known is None:
            known = await self._load(user_id)
        last_active_ts = now_ts if state == "online" else known.last_active_ts or now_ts
        await self._exchange.announce_presence(
            replace(known, state=state, last_active_ts=last_active_ts), store=True, asked=state
        )

    def _note_sync(self, user_id: UserID, now_ts: int) -> None:
        self._synced_here[user_id] = self._board.synced_at[user_id] = now_ts

    async def acted(self, user_id: UserID) -> None:
        """A local user did something: sent a message, read one."""
        known = self._board.find(user_id)
        if self.enabled and known is not None and known.state != "offline":
            await self._exchange.announce_presence(replace(known, state="online", last_active_ts=now_ms()), store=False)

    async def receive(self, update: edu.UserPresence) -> None:
        """Another server tells of its user."""
        if self.enabled:
            ts = max(0, now_ms() - update.last_active_ago)
            await self._exchange.announce_presence(
                UserPresence(update.user_id, update.presence, ts, update.status_msg), store=False
            )

    # --- what is known

    async def get(self, reader: UserID, user_id: UserID) -> JsonObject:
        """A user's presence; raises Forbidden for who does not share a room with them."""
        if reader != user_id:
            async with self._database.read() as tx:
                if not await memberships.share_a_room(tx, reader, user_id):
                    raise Forbidden("You are not allowed to see their presence")
        if not self.enabled:
            return {"presence": "offline"}
        return content_of(self._board.find(user_id) or await self._load(user_id))

    def told(self, users: Collection[UserID]) -> dict[UserID, JsonObject]:
        """What others are told of those of these users who are not offline."""
        known = [self._board.find(user_id) for user_id in users]
        return {each.user_id: content_of(each) for each in known if each is not None and each.state != "offline"}

    async def _load(self, user_id: UserID) -> UserPresence:
        async with self._database.read() as tx:
            found = await load_presence(tx, (user_id,))
        return replace(found[0], state="offline") if found else UserPresence(user_id, "offline", 0)

    # --- time

    async def run(self) -> None:
        """Tell of changes, and note who went idle or away, until cancelled."""
        await background.run_together(self._tell_observers(), self._sweep_for_ever())

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with suppress(MatrixError):  # logged where it arose; the next turn tries again
                await self.sweep(now_ms())

    async def sweep(self, now_ts: int) -> None:
        """Users who did nothing for long become unavailable, those without a sync in progress offline."""
        for presence in self._board.idle(now_ts):
            await self._exchange.announce_presence(presence, store=False)
        await self._meet_strangers()
        if now_ts - self._shared_at >= SHARED_MS:
            self._shared_at = now_ts
            await self._share_syncs(now_ts)
        synced_at = self._board.synced_at
        for user_id in [user for user, at in synced_at.items() if now_ts - at > OFFLINE_AFTER_MS]:
            if self._waits(user_id):
                self._note_sync(user_id, now_ts)
                continue
            del synced_at[user_id]
            self._board.asked.pop(user_id, None)
            known = self._board.find(user_id)
            if known is not None:
                await self._exchange.announce_presence(replace(known, state="offline"), store=True)

    def _waits(self, user_id: UserID) -> bool:
        listener = self._tail.listener(user_id)
        return listener is not None and listener.is_waited_for

    async def _share_syncs(self, now_ts: int) -> None:
        """Tell the other processes who syncs here, so that none of them takes these users for offline."""
        for user_id, at in list(self._synced_here.items()):
            if self._waits(user_id):
                self._note_sync(user_id, now_ts)
            elif now_ts - at > SHARED_MS:
                del self._synced_here[user_id]
        await self._exchange.announce_syncing(list(self._synced_here))

    async def _meet_strangers(self) -> None:
        """Learn the presence of those who synced elsewhere before this process was there."""
        strangers, self._exchange.strangers = self._exchange.strangers, set()
        if strangers:
            async with self._database.read() as tx:
                found = await load_presence(tx, strangers)
            for presence in found:
                if self._board.find(presence.user_id) is None:
                    self._board.put(presence)

    async def _tell_observers(self) -> None:
        """Let the syncs of those who share a room with somebody find what changed."""
        while True:
            news = await self._board.wait_for_news()
            for user_id in news if self.observers else ():
                known = self._board.find(user_id)
                if known is not None:
                    for observe in self.observers:
                        observe(user_id, content_of(known))
            with suppress(MatrixError):
                for user_id, serial in news.items():
                    for observer in await self._observers_of(user_id):
                        observer.presence[user_id] = serial
                        observer.wake()
            self._board.told = max(self._board.told, *news.values())

    async def _observers_of(self, user_id: UserID) -> set[Listener]:
        own = self._tail.listener(user_id)
        observers: set[Listener] = set()
        if own is not None:
            rooms = own.rooms
            observers.add(own)
        else:
            async with self._database.read() as tx:
                rooms = set(await memberships.joined_rooms(tx, user_id))
        for room in rooms:
            observers |= self._tail.listeners_in(room)
        return observers


def content_of(presence: UserPresence) -> JsonObject:
    """What clients and servers are told of a presence."""
    now_ts = now_ms()
    content: JsonObject = {"presence": presence.state}
    if presence.last_active_ts:
        content["last_active_ago"] = max(0, now_ts - presence.last_active_ts)
    if presence.state == "online":
        content["currently_active"] = presence.is_currently_active(now_ts)
    if presence.status_msg:
        content["status_msg"] = presence.status_msg
    return content
