"""The members of a room that was joined without them, once they are here (`joining.py`, `incomplete_rooms.py`).

They are written at the version of the state before the join, in parts that nobody has to wait for. Then one small entry
of the log says that the room is complete, and everybody who is in it gets it anew.
"""

import logging
import time
from collections.abc import Collection, Sequence
from functools import partial

from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, ServerName, StateKey, UserID
from federation.rooms.append_join import CHUNK, GivenEntry
from federation.rooms.early_joins import check_join
from federation.rooms.received_state import ReceivedState
from storage import dead_letters, events, late_members, remote_joins, room_state, rooms
from storage.database import Database, Tx
from storage.late_members import LateMember
from storage.log import Log
from storage.log_entries import Entry
from storage.memberships import Membership
from storage.remote_joins import Placed, RemoteJoin
from storage.room_completeness import OwnMember, RoomCompleteness
from storage.rooms import Room
from storage.strings import remember_committed

logger = logging.getLogger(__name__)


class RoomCompletion:
    """Brings the members into rooms that lack them."""

    def __init__(self, database: Database, log: Log, server_name: ServerName) -> None:
        self._database = database
        self._log = log
        self._server_name = server_name

    async def complete(
        self, join: RemoteJoin, pdu: VerifiedPDU, state: ReceivedState, ids: Collection[EventID]
    ) -> None:
        """Take the whole state before a join that was placed; its events have just these IDs, but for invalid ones.

        Raises InvalidInput where it is another state, TakenOver where somebody else is at work on the join.
        """
        placed = join.placed
        if placed is None:
            raise RuntimeError("the join was not placed")
        if not state.is_all_valid_of(ids):
            raise InvalidInput("The room's state is not the one whose IDs were given", "M_BAD_JSON")
        async with self._database.read() as tx:
            room = await rooms.find(tx, join.room_id)
        if room is None:
            raise NotFound("There is no such room")
        await state.judge(self._database, room)
        try:
            check_join(state, pdu)
        except InvalidInput as error:  # what has come of it cannot be undone
            logger.error("%s has joined %s, and may not have: %s", join.user_id, join.room_id, error.message)
        entries = await state.store(self._database, room)
        members = await self._members(room, entries)
        own: list[LateMember] = []
        for start in range(0, len(members), CHUNK):
            async with self._database.transaction() as tx:
                await remote_joins.check_held(tx, join)
                numbers, new = await late_members.write(tx, room.number, placed.version, members[start : start + CHUNK])
            remember_committed(self._database.memory, numbers)
            own += [member for member in new if server_name_of(member.user_id) == self._server_name]
        await self._check(room, placed, entries)
        told = RoomCompleteness(
            room.number,
            is_complete=True,
            own=tuple(
                OwnMember(member.user_id, member.membership, member.position)
                for member in own
                if member.membership is not None
            ),
        )
        given = [entry.membership for entry in entries]
        work = partial(_finish, join=join, joined=given.count("join"), invited=given.count("invite"))
        await self._log.append(Entry(changes=[told], work=work))

    async def abandon(self, join: RemoteJoin) -> None:
        """Nobody of ours is in the room any longer: who joins it begins anew."""
        await self._log.append(Entry(work=partial(remote_joins.abandon, join=join)))

    async def _members(self, room: Room, entries: Sequence[GivenEntry]) -> list[LateMember]:
        wanted = [entry for entry in entries if entry.key[0] == "m.room.member" and is_user_id(entry.key[1])]
        async with self._database.read() as tx:
            positions = await events.positions_of(tx, room.number, [entry.event_id for entry in wanted])
        return [
            LateMember(UserID(entry.key[1]), positions[entry.event_id], Membership.of(entry.membership))
            for entry in wanted
        ]

    async def _check(self, room: Room, placed: Placed, entries: Sequence[GivenEntry]) -> None:
        """Say so where what was known before is not what is known now: nothing else can have been accepted by it."""
        async with self._database.read() as tx:
            written = (await room_state.at_versions(tx, {room.number: placed.version}))[room.number]
            positions = await events.positions_of(tx, room.number, [entry.event_id for entry in entries])
        expected: dict[StateKey, int] = {entry.key: positions[entry.event_id] for entry in entries}
        different = [key for key in written.keys() | expected.keys() if written.get(key) != expected.get(key)]
        if different:
            logger.error("%s was joined with another state than it has: %s", room.room_id, different[:10])


async def _finish(tx: Tx, join: RemoteJoin, joined: int, invited: int) -> None:
    await remote_joins.note_complete(tx, join, joined=joined, invited=invited)
    await dead_letters.retry_room(tx, join.room_id, time.time_ns() // 1_000_000)
