"""Appending the event by which a user of ours joins a room that nobody of ours is in (`joining.py`).

A resident server gave the state before the join; it is what counts from here on. Of what the room had here from an
earlier stay only what differs is written, and its forward extremities end: the join stands beyond a gap.

The state gets a version of the trunk of its own, so that readers find it before their timeline begins. The version
after that is left out: by that `storage/event_following.py` sees that more came than the event.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from federation.protocol.errors import NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, ServerName, StateKey, UserID
from federation.rooms.append_remote import Outcome, Received
from federation.rooms.contention import Contention
from storage import events, room_state, rooms
from storage.append_events import DuplicateEvent, RoomEvents
from storage.database import Database, Tx
from storage.events import Flag, NewEvent, StateWrite
from storage.history import HOLE
from storage.log import Conflict, Entry, Log
from storage.memberships import Membership
from storage.room_state import TRUNK


@dataclass(frozen=True, slots=True)
class GivenEntry:
    """One entry of the state before the join."""

    key: StateKey
    event_id: EventID
    membership: object
    """The content's `membership`, of a member event."""


class JoinAppender:
    """Puts joins by way of other servers into the log."""

    def __init__(self, *, database: Database, log: Log, server_name: ServerName) -> None:
        self._database = database
        self._log = log
        self._server_name = server_name

    async def append(self, pdu: VerifiedPDU, state_before: Sequence[GivenEntry]) -> Received:
        """See `RoomWriter.append_join`."""
        contention = Contention()
        while True:
            async with self._database.read() as tx:
                change = await self._change(tx, pdu, state_before)
            if change is None:
                return Received(pdu.event_id, Outcome.DUPLICATE, 0)
            try:
                appended = await self._log.append(Entry(changes=[change]))
            except DuplicateEvent:
                return Received(pdu.event_id, Outcome.DUPLICATE, 0)
            except Conflict as error:
                await contention.give_way(error)
                continue
            return Received(pdu.event_id, Outcome.ACCEPTED, appended.position)

    async def _change(self, tx: Tx, pdu: VerifiedPDU, state_before: Sequence[GivenEntry]) -> RoomEvents | None:
        """The change that appends the join; None where it is here already."""
        room = await rooms.find(tx, pdu.room_id)
        if room is None:
            raise NotFound("There is no such room")
        held = await events.by_id(tx, {pdu.event_id, *pdu.prev_event_ids})
        if pdu.event_id in held:
            return None
        row = (await rooms.rows(tx, [room.number]))[room.number]
        positions = await events.positions_of(tx, room.number, [entry.event_id for entry in state_before])
        ours = await room_state.current_whole(tx, room.number) if row.state_version else {}
        version = row.state_version + 1
        given = {entry.key: entry for entry in state_before}
        writes = [_write(key, version, None, None) for key in ours if key not in given]
        for key, entry in given.items():
            if ours.get(key) != positions[entry.event_id]:
                write = _write(key, version, positions[entry.event_id], entry.membership)
                write.is_first = row.state_version == 0
                writes.append(write)
        concerned = self._concerned(pdu, writes)
        placed = {each for each, stored in held.items() if not stored.flags & Flag.OUTLIER}
        join = _write(pdu.state_pair, version + 2, None, pdu.membership)
        join.event_id = pdu.event_id
        missing = [each for each in pdu.prev_event_ids if each not in placed]
        return RoomEvents(
            room=room,
            new=[
                NewEvent(
                    pdu=pdu,
                    line=TRUNK,
                    version=version,
                    trunk_version=version + 2,
                    is_local=True,
                    missing=missing,
                    covers=frozenset(row.extremities),
                )
            ],
            expected_version=row.state_version,
            expected_extremities=frozenset(row.extremities),
            new_version=version + 2,
            state=[*writes, join],
            may_be_duplicate=True,
            hole=HOLE if missing else 0,
            concerned=concerned,
        )

    def _concerned(self, pdu: VerifiedPDU, writes: Sequence[StateWrite]) -> tuple[UserID, ...]:
        """Whose membership here is another now: the user, and others of ours of whom we learn what became of them."""
        users = [pdu.sender]
        for write in writes:
            if write.type == "m.room.member" and is_user_id(write.state_key):
                user_id = write.state_key
                if server_name_of(user_id) == self._server_name:
                    users.append(user_id)
        return tuple(dict.fromkeys(users))


def _write(key: StateKey, version: int, position: int | None, membership: object) -> StateWrite:
    return StateWrite(
        line=TRUNK,
        type=key[0],
        state_key=key[1],
        event_id=None,
        since=version,
        membership=Membership.of(membership) if key[0] == "m.room.member" else None,
        position=position,
    )
