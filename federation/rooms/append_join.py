"""Appending the event by which a user of ours joins a room that nobody of ours is in (`joining.py`).

A resident server gave the state before the join; it is what counts from here on. Of what the room had here from an
earlier stay only what differs is written, and its forward extremities end: the join stands beyond a gap.

The state gets a version of the trunk of its own, so that readers find it before their timeline begins. The version
after that is left out: by that `storage/event_following.py` sees that more came than the event.

The log is not held up by a large state: it is written before, in parts that nobody has to wait for, and counts once
the entry has brought the room to its version (`storage/state_ahead.py`). What concerns our own users, who might look,
is written by the entry itself.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence

from msgspec import Struct, field

from federation.protocol.errors import NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, ServerName, StateKey, UserID
from federation.rooms.append_remote import Outcome, Received
from federation.rooms.contention import Contention
from storage import events, room_state, rooms, state_ahead
from storage.append_events import DuplicateEvent, RoomEvents, trunk_change
from storage.database import Database, Tx
from storage.events import Flag, NewEvent, StateWrite, StoredEvent, TrunkChange
from storage.history import HOLE
from storage.log import Log
from storage.log_entries import Conflict, Entry
from storage.memberships import Membership
from storage.room_completeness import RoomCompleteness
from storage.room_state import TRUNK
from storage.rooms import Room, RoomRow
from storage.state_writes import Standing
from storage.strings import remember_committed

AT_ONCE = 250
"""Entries of the state that the log's entry may write; of more, all are written before that can be."""
CHUNK = 500
"""Entries that are written before in one transaction."""
_VERSIONS_APART = 1_000
"""How far ahead of the room's version: should the room change meanwhile, what is ahead still stands above it."""

Guard = Callable[[Tx], Awaitable[None]]
"""Raises where the caller may not write any longer, and keeps that so until the transaction ends."""


class Awaited(Struct, frozen=True):
    """Members of the state before the join who are still to come."""

    count: int
    note: Callable[[Tx, int, int, int], Awaitable[None]]
    """Called as the join is written, with the version of the state before it, and how many of that state are counted
    as joined and as invited."""


class GivenEntry(Struct, frozen=True):
    """One entry of the state before the join."""

    key: StateKey
    event_id: EventID
    membership: object
    """The content's `membership`, of a member event."""


class _Attempt(Struct):
    """What one attempt found, and is about to write."""

    room: Room
    row: RoomRow
    held: dict[EventID, StoredEvent]
    changed: dict[StateKey, GivenEntry | None]
    """What the state before the join has and we have not; None: what we have and it has not."""
    positions: dict[EventID, int]
    version: int
    """Of the state before the join."""
    ahead: list[TrunkChange] = field(default_factory=list)
    members: Standing = field(default_factory=lambda: Standing(0, [], 0, 0, 0, 0, 0))
    """How many more members what is ahead makes."""

    def writes(self, keys: Sequence[StateKey]) -> list[StateWrite]:
        """These of the entries that changed, as they are written."""
        return [self._write(key, self.changed[key]) for key in keys]

    def _write(self, key: StateKey, entry: GivenEntry | None) -> StateWrite:
        if entry is None:
            return _write(key, self.version, None, None)
        write = _write(key, self.version, self.positions[entry.event_id], entry.membership)
        write.is_first = self.row.state_version == 0
        return write


class JoinAppender:
    """Puts joins by way of other servers into the log."""

    def __init__(self, *, database: Database, log: Log, server_name: ServerName) -> None:
        self._database = database
        self._log = log
        self._server_name = server_name

    async def append(
        self,
        pdu: VerifiedPDU,
        state_before: Sequence[GivenEntry],
        guard: Guard | None = None,
        awaited: Awaited | None = None,
    ) -> Received:
        """See `RoomWriter.append_join`."""
        contention = Contention()
        while True:
            async with self._database.transaction() as tx:
                if guard is not None:
                    await guard(tx)
                attempt = await self._look(tx, pdu, state_before)
            if attempt is None:
                return Received(pdu.event_id, Outcome.DUPLICATE, 0)
            at_once = list(attempt.changed)
            if len(at_once) > AT_ONCE:
                attempt.version += _VERSIONS_APART
                at_once = [key for key in attempt.changed if self._concerns_ours(key)]
                await self._write_ahead(attempt, guard)
            change = self._change(pdu, attempt, attempt.writes(at_once))
            entry = Entry(changes=[change], work=guard if attempt.ahead else None)
            if awaited is not None:
                entry = _incomplete(change, attempt, awaited)
            elif attempt.row.lacks_members:
                entry = _complete(change, guard)
            try:
                appended = await self._log.append(entry)
            except DuplicateEvent:
                return Received(pdu.event_id, Outcome.DUPLICATE, 0)
            except Conflict as error:
                await contention.give_way(error)
                continue
            return Received(pdu.event_id, Outcome.ACCEPTED, appended.position)

    async def _look(self, tx: Tx, pdu: VerifiedPDU, state_before: Sequence[GivenEntry]) -> _Attempt | None:
        """Where the room stands, without what an earlier attempt wrote; None where the join is here already."""
        room = await rooms.find(tx, pdu.room_id)
        if room is None:
            raise NotFound("There is no such room")
        await state_ahead.discard(tx, room.number)
        held = await events.by_id(tx, {pdu.event_id, *pdu.prev_event_ids})
        if pdu.event_id in held:
            return None
        row = (await rooms.rows(tx, [room.number]))[room.number]
        positions = await events.positions_of(tx, room.number, [entry.event_id for entry in state_before])
        ours = await room_state.current_whole(tx, room.number) if row.state_version else {}
        given = {entry.key: entry for entry in state_before}
        changed: dict[StateKey, GivenEntry | None] = {key: None for key in ours if key not in given}
        changed.update((key, entry) for key, entry in given.items() if ours.get(key) != positions[entry.event_id])
        return _Attempt(room, row, held, changed, positions, row.state_version + 1)

    async def _write_ahead(self, attempt: _Attempt, guard: Guard | None) -> None:
        """Write what concerns nobody of ours, a part at a time."""
        for keys in _chunks([key for key in attempt.changed if not self._concerns_ours(key)]):
            writes = attempt.writes(keys)
            async with self._database.transaction() as tx:
                if guard is not None:
                    await guard(tx)
                numbers = await state_ahead.write(tx, attempt.room.number, writes, attempt.members)
            remember_committed(self._database.memory, numbers)
            attempt.ahead += [trunk_change(write) for write in writes]

    def _change(self, pdu: VerifiedPDU, attempt: _Attempt, writes: list[StateWrite]) -> RoomEvents:
        """The change that appends the join."""
        row, version = attempt.row, attempt.version
        concerned = self._concerned(pdu, writes)
        placed = {each for each, stored in attempt.held.items() if not stored.flags & Flag.OUTLIER}
        join = _write(pdu.state_pair, version + 2, None, pdu.membership)
        join.event_id = pdu.event_id
        missing = [each for each in pdu.prev_event_ids if each not in placed]
        return RoomEvents(
            room=attempt.room,
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
            ahead=attempt.ahead,
            members_ahead=(attempt.members.joined, attempt.members.invited),
            may_be_duplicate=True,
            hole=HOLE if missing else 0,
            concerned=concerned,
        )

    def _concerned(self, pdu: VerifiedPDU, writes: Sequence[StateWrite]) -> tuple[UserID, ...]:
        """Whose membership here is another now: the user, and others of ours of whom we learn what became of them."""
        users = [UserID(write.state_key) for write in writes if self._concerns_ours((write.type, write.state_key))]
        return tuple(dict.fromkeys([pdu.sender, *users]))

    def _concerns_ours(self, key: StateKey) -> bool:
        event_type, state_key = key
        return (
            event_type == "m.room.member" and is_user_id(state_key) and server_name_of(state_key) == self._server_name
        )


def _incomplete(change: RoomEvents, attempt: _Attempt, awaited: Awaited) -> Entry:
    """The entry by which a join counts although members are still to come. Before that nothing is known of the room."""
    if attempt.row.state_version:
        raise Conflict("The room came to be known meanwhile")
    given = [entry.membership for entry in attempt.changed.values() if entry is not None]
    joined, invited = given.count("join") + awaited.count, given.count("invite")
    change.members_ahead = (change.members_ahead[0] + awaited.count, change.members_ahead[1])
    return Entry(
        changes=[RoomCompleteness(change.room.number, is_complete=False), change],
        work=lambda tx: awaited.note(tx, attempt.version, joined, invited),
    )


def _complete(change: RoomEvents, guard: Guard | None) -> Entry:
    """The entry by which a whole state ends what a join before it left open."""

    async def work(tx: Tx) -> None:
        if guard is not None:
            await guard(tx)
        await rooms.note_complete(tx, change.room.number)

    return Entry(changes=[RoomCompleteness(change.room.number, is_complete=True), change], work=work)


def _chunks(keys: Sequence[StateKey]) -> Iterator[Sequence[StateKey]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


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
