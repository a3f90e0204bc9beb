"""Rooms put straight into the database: members and messages without the events that would have led there.

For what only asks who is where and in which order events came; the rules of rooms have tests of their own.
"""

import itertools
from dataclasses import dataclass, field

from federation.protocol.types import EventID, UserID
from homeserver.app import Application
from storage import strings
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Entry
from storage.memberships import Membership

_numbers = itertools.count(1)


@dataclass(slots=True)
class BareRoom:
    """A room of version 11, with what was added to it."""

    database: Database
    log: Log
    number: int
    room_id: str
    positions: dict[EventID, int] = field(default_factory=dict)

    async def add_member(self, user_id: str, membership: Membership = Membership.JOIN) -> None:
        """Somebody is in the room now, or no longer."""
        async with self.database.transaction() as tx:
            (state_key,) = (await strings.intern(tx, [user_id])).values()
            await tx.execute(
                "update room_state set until_version = since_version + 1"
                " where room = %s and state_key = %s and until_version is null",
                (self.number, state_key),
            )
            await tx.execute(
                "insert into room_state (event, room, line, since_version, type, state_key, membership)"
                " values (1, %s, 0, %s, %s, %s, %s)",
                (self.number, next(_numbers), strings.MEMBER, state_key, int(membership)),
            )

    async def add_message(self, *, thread: str | None = None, counts: tuple[int, int] = (0, 0)) -> EventID:
        """An event, with the room's running counts after it."""
        event_id = EventID(f"$bare{next(_numbers)}:hearth.test")

        async def work(tx: Tx) -> int:
            row = await tx.fetch_one("select position from log_head")
            assert row is not None
            await tx.execute(
                "insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender,"
                " notify_total, highlight_total, flags, event_id, thread, json)"
                " values (%s, 0, %s, 0, 0, 0, 7, 1, %s, %s, 0, %s, %s, '{}')",
                (row[0], self.number, *counts, event_id, thread),
            )
            return int(row[0])

        # By the log, so that no tail comes to read it.
        self.positions[event_id] = (await self.log.append(Entry(work=work))).result
        return event_id

    async def mark_of(self, user_id: str, thread: str = "") -> tuple[int, int, int] | None:
        """Up to which position the user has read, with the counts there."""
        async with self.database.read() as tx:
            row = await tx.fetch_one(
                "select position, notify_total, highlight_total from read_marks"
                " where user_id = %s and room = %s and thread = %s",
                (user_id, self.number, thread),
            )
        return None if row is None else (row[0], row[1], row[2])


async def a_bare_room(application: Application, *members: str) -> BareRoom:
    """A room with these members and no events."""
    async with application.database.transaction() as tx:
        room_id = f"!bare{next(_numbers)}:hearth.test"
        row = await tx.fetch_one(
            "insert into rooms (room_id, room_version) values (%s, '11') returning room", (room_id,)
        )
        assert row is not None
    room = BareRoom(application.database, application.log, row[0], room_id)
    for member in members:
        await room.add_member(UserID(member))
    return room
