"""What one process has of rooms: its own pool, log, tail, heads and writer, on a shared database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from federation.protocol.errors import PeerUnreachable
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import JsonObject, ServerName
from federation.rooms.append import RoomWriter
from federation.rooms.counting import NOT_COUNTED, Counted
from federation.rooms.heads import RoomHeads
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.policy_servers import PolicyServers
from federation.rooms.reader import RoomReader
from storage import carrying
from storage.announcements import Carrier
from storage.append_events import RoomEvents
from storage.bus import PostgresBus
from storage.database import Database
from storage.events import Flag
from storage.log import CHANNEL, Log
from storage.log_entries import Change
from storage.rooms import Room
from storage.tail import Tail
from tests.protocol.builders import HOME, HOME_KEY


class CountsNothing:
    """Unread counts are tested elsewhere."""

    async def settle(self) -> None:
        """It knows nothing."""

    def count(self, room: Room, pdu: VerifiedPDU, power_levels: PowerLevels | None, member_count: int) -> Counted:
        """Nothing."""
        return NOT_COUNTED


async def _asks_nobody(destination: ServerName, event: JsonObject, *, patient: bool) -> JsonObject:
    raise PeerUnreachable(destination, "there is no network")


@dataclass
class Picture:
    """What a follower of the log has seen of rooms, event by event."""

    events: list[tuple[int, str, int]] = field(default_factory=list)
    """Position, event ID, version of the room."""
    trunk: list[tuple[int, int, str, str, int | None, int | None]] = field(default_factory=list)
    """Room, version, type, state key, event, membership: in order of versions."""

    def apply(self, _position: int, change: Change) -> None:
        """Take what the tail brings."""
        if isinstance(change, RoomEvents):
            # Outliers are no news.
            self.events += [
                (event.position, event.event_id, event.trunk_version)
                for event in change.stored
                if not event.flags & Flag.OUTLIER
            ]
            self.trunk += sorted(
                (change.room.number, each.since, each.type, each.state_key, each.event, each.membership)
                for each in change.trunk
            )


class Process:
    """One process that serves rooms."""

    def __init__(self, conninfo: str, carrier: Carrier = carrying) -> None:
        self.database = Database(conninfo, max_connections=4)
        self.bus = PostgresBus(self.database, carries=True)
        self.tail = Tail(self.database, (RoomEvents,), carrier=carrier)
        self.log = Log(self.database, self.tail, self.bus, carrier)
        self.heads = RoomHeads(self.database, IncompleteRooms(), HOME)
        self.picture = Picture()
        self.tail.add_view(self.picture.apply)
        self.tail.add_view(self.heads.apply)
        self.reader = RoomReader(self.database)
        self.writer = RoomWriter(
            database=self.database,
            log=self.log,
            heads=self.heads,
            counter=CountsNothing(),
            policies=PolicyServers(self.database, _asks_nobody),
            signer=(HOME, HOME_KEY),
        )


@asynccontextmanager
async def a_process(conninfo: str, *, follows: bool = True, carrier: Carrier = carrying) -> AsyncIterator[Process]:
    """A process at work; without `follows` its tail reads only when told to."""
    process = Process(conninfo, carrier)
    await process.database.open()
    await process.tail.start()
    tasks = [asyncio.create_task(process.log.run())]
    if follows:
        tasks.append(asyncio.create_task(process.tail.run()))
        tasks.append(asyncio.create_task(process.bus.run({CHANNEL: process.tail.hear}, process.tail.look)))
    try:
        yield process
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await process.log.close()
        await process.database.close()
        for result in results:
            if isinstance(result, Exception):
                raise result
