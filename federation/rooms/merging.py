"""Merging rooms that are left with many forward extremities, by an event that refers to them.

After a gap or a partition a room may have many ends. Each event from elsewhere is then resolved against all of them,
until somebody here says something; where nobody does, an event without meaning says it for one of our users. Only
rooms whose graph forked since the last look are looked at, so an idle room costs nothing and gets no event.
"""

import asyncio
import logging

from federation.protocol.errors import MatrixError, Unavailable
from federation.protocol.pdu import Draft
from federation.protocol.types import ServerName
from federation.rooms.append import RoomWriter
from federation.rooms.own_members import OwnMembers
from storage import rooms
from storage.append_events import RoomEvents
from storage.database import Database
from storage.log_entries import Change
from storage.rooms import Room

logger = logging.getLogger(__name__)

EVENT_TYPE = "org.matrix.dummy_event"
"""What other servers send for the same purpose, and clients do not show."""
MANY = 10
"""Forward extremities that are worth an event: fewer are merged by the next thing that somebody says."""
INTERVAL_SECONDS = 60.0
"""Between two looks. A room gets at most one event a look."""
MAX_ROOMS = 20
"""Events in one look; the other rooms wait for the next."""
MAX_REMEMBERED = 20_000


class Merger:
    """Looks after rooms that fork."""

    def __init__(self, database: Database, writer: RoomWriter, server_name: ServerName) -> None:
        self._database = database
        self._writer = writer
        self._members = OwnMembers(database, writer, server_name)
        self._forked: dict[int, Room] = {}

    def apply(self, _position: int, change: Change) -> None:
        """A view of the log: note where this process has put an event beside the room's end."""
        if isinstance(change, RoomEvents) and change.may_be_duplicate and len(self._forked) < MAX_REMEMBERED:
            self._forked[change.room.number] = change.room

    async def run(self) -> None:
        """Look from time to time."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.merge()
            except Unavailable:  # logged where it arose
                continue
            except Exception:
                logger.exception("rooms with many forward extremities could not be merged")

    async def merge(self) -> int:
        """Send one event into each room that forked and has many ends still; how many were sent.

        A room where none of our users may is left until it forks again.
        """
        forked, self._forked = self._forked, {}
        if not forked:
            return 0
        async with self._database.read() as tx:
            rows = await rooms.rows(tx, list(forked))
        waiting = {number for number, row in rows.items() if row.lacks_members}  # who may send there is not known
        many = [
            forked[number] for number, row in rows.items() if len(row.extremities) >= MANY and number not in waiting
        ]
        self._forked.update((number, forked[number]) for number in waiting)
        self._forked.update((room.number, room) for room in many[MAX_ROOMS:])
        sent = 0
        for room in many[:MAX_ROOMS]:
            if await self._merge(room):
                sent += 1
                self._forked[room.number] = room  # one event refers to some only, where there are very many
        return sent

    async def _merge(self, room: Room) -> bool:
        try:
            sender = await self._members.find(room, lambda levels: levels.to_send(EVENT_TYPE, is_state=False))
            if sender is None:
                return False
            await self._writer.append([Draft(room_id=room.room_id, type=EVENT_TYPE, sender=sender, content={})])
        except Unavailable:
            raise
        except MatrixError as error:
            logger.info("the ends of %s could not be merged: %s", room.room_id, error.message)
            return False
        logger.info("the ends of %s were merged for %s", room.room_id, sender)
        return True
