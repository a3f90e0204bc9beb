"""Keeps the index of messages: a follower of the log, and what fills the index with what was there before it."""

import logging
from collections.abc import Sequence

from homeserver.followers.backlog import Backlog
from storage import followers, search_documents, search_index, search_words
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.followers import Work
from storage.log_entries import Change

logger = logging.getLogger(__name__)

GATHERS_SECONDS = 0.5
"""What is written together costs less."""
REMOVED_AT_ONCE = 5_000


class MessageIndexer:
    """Indexes what is said, and forgets what is redacted."""

    name = search_index.FOLLOWER
    kinds = (RoomEvents,)
    gathers_seconds = GATHERS_SECONDS

    def __init__(self, database: Database, *, dictionary: str | None) -> None:
        self._database = database
        self._dictionary = dictionary
        self._backlog = Backlog(self._index_backlog)
        self.version = f"{search_words.VERSION} {dictionary}"
        """An index of any other is made anew."""

    async def begin(self, position: int) -> None:
        """Make the index, if there is none that this version can use."""
        async with self._database.transaction() as tx:
            await followers.hold(tx, search_index.FOLLOWER)
            if await search_index.prepare(tx, self.version, position):
                logger.info("the index of messages is made anew")
        self._backlog.look()

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        """Index what these changes hold."""
        told = [change for _, change in changes if isinstance(change, RoomEvents)]
        stored = [event for change in told for event in change.stored if event.type in search_index.SEARCHED]
        redacted = {event_id for change in told for event_id in change.redacted}
        encrypted = {
            change.room.number
            for change in told
            if any(each.type == "m.room.encryption" and each.event is not None for each in change.trunk)
        }
        while encrypted and await self._remove_rooms(encrypted):
            pass
        if not stored and not redacted:
            return None

        async def index(tx: Tx) -> None:
            await search_documents.index(tx, stored, self._dictionary, redacted=redacted)

        return index

    async def _remove_rooms(self, rooms: set[int]) -> bool:
        """Take some of what these rooms hold out of the index; whether there may be more."""
        async with self._database.transaction() as tx:
            await followers.hold(tx, search_index.FOLLOWER)
            return await search_index.remove_rooms(tx, rooms, limit=REMOVED_AT_ONCE) == REMOVED_AT_ONCE

    async def run(self) -> None:
        """Index what came before there was an index, and history as it comes, until cancelled.

        Any process may do so; while one does, others pass.
        """
        await self._backlog.run()

    async def _index_backlog(self) -> bool:
        """Index a part of what is left; whether there was any."""
        async with self._database.read() as tx:
            if not await search_index.has_backlog(tx):
                return False
        async with self._database.transaction() as tx:
            if not await followers.hold(tx, self.name, wait=False):
                return False
            backlog = await search_index.next_backlog(tx)
            if backlog is None:
                return False
            await search_documents.index_backlog(tx, backlog, self._dictionary)
            return True


async def forget_index(database: Database) -> None:
    """Leave no index where searching is turned off: nobody would take what is redacted out of it."""
    async with database.transaction() as tx:
        if await search_index.exists(tx):
            await followers.hold(tx, search_index.FOLLOWER)
            await search_index.clear(tx)
            await followers.forget(tx, search_index.FOLLOWER)
