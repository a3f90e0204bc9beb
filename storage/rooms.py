"""The rooms that this server knows: their numbers, versions and heads (table `rooms`)."""

from collections.abc import Collection, Iterable

from msgspec import Struct

from federation.protocol.room_versions import RoomVersionRules, get_rules
from federation.protocol.types import EventID, RoomID
from storage.arrays import Int4
from storage.database import Memory, Row, Statement, Tx


class Room(Struct, frozen=True):
    """What never changes about a room."""

    number: int
    room_id: RoomID
    rules: RoomVersionRules


class RoomRow(Struct, frozen=True):
    """Where a room stands in the database."""

    state_version: int
    extremities: tuple[EventID, ...]
    last_line: int
    notify_total: int
    highlight_total: int
    joined_members: int
    invited_members: int
    completed_at: int | None = None
    """Where in the log members that a join had left out were all here; 0 while they are not, None where none were."""

    @property
    def lacks_members(self) -> bool:
        """Whether a member who has no entry in the state may have one all the same (`remote_joins.py`)."""
        return self.completed_at == 0


BUMPING = frozenset(
    {
        "m.room.create",
        "m.room.message",
        "m.room.encrypted",
        "m.sticker",
        "m.call.invite",
        "m.poll.start",
        "org.matrix.msc3381.poll.start",
        "m.beacon_info",
        "org.matrix.msc3672.beacon_info",
    }
)
"""What people do in a room, by which clients sort their rooms (MSC4186, `bump_stamp`)."""

_REMEMBERED = 50_000


class _Rooms:
    """What is remembered of a database's rooms."""

    __slots__ = ("by_id", "by_number")

    def __init__(self) -> None:
        self.by_id: dict[str, Room] = {}
        self.by_number: dict[int, Room] = {}

    def keep(self, room: Room) -> Room:
        if len(self.by_id) > _REMEMBERED:
            self.by_id.clear()
            self.by_number.clear()
        self.by_id[room.room_id] = room
        self.by_number[room.number] = room
        return room


async def find(tx: Tx, room_id: str) -> Room | None:
    """The room with this ID, if we know it."""
    memory = tx.memory.part(_Rooms)
    room = memory.by_id.get(room_id)
    if room is None:
        row = await tx.fetch_one("select room, room_version from rooms where room_id = %s", (room_id,))
        if row is None:
            return None
        room = Room(row[0], RoomID(room_id), get_rules(row[1]))
        if tx.reads_commits:
            memory.keep(room)
    return room


def known(memory: Memory, room_id: str) -> Room | None:
    """The room, if this process remembers it: saves a transaction on hot paths."""
    return memory.part(_Rooms).by_id.get(room_id)


def known_numbers(memory: Memory, numbers: Collection[int]) -> dict[int, Room]:
    """Those of these rooms that this process remembers."""
    remembered = memory.part(_Rooms).by_number
    return {number: remembered[number] for number in numbers if number in remembered}


def remember(memory: Memory, number: int, room_id: RoomID, version: str) -> Room:
    """The room, of which another process tells."""
    known = memory.part(_Rooms).by_number.get(number)
    return known or memory.part(_Rooms).keep(Room(number, room_id, get_rules(version)))


async def get_many(tx: Tx, numbers: Collection[int]) -> dict[int, Room]:
    """Rooms by number."""
    found = known_numbers(tx.memory, numbers)
    missing = [number for number in numbers if number not in found]
    if missing:
        rows = await tx.fetch("select room, room_id, room_version from rooms where room = any(%s::int[])", (missing,))
        for number, room_id, version in rows:
            found[number] = room = Room(number, RoomID(room_id), get_rules(version))
            if tx.reads_commits:
                tx.memory.part(_Rooms).keep(room)
    return found


async def find_many(tx: Tx, room_ids: Collection[str]) -> dict[RoomID, int]:
    """The numbers of those of these rooms that we know."""
    rows = await tx.fetch("select room_id, room from rooms where room_id = any(%s::text[])", (list(room_ids),))
    return {RoomID(room_id): number for room_id, number in rows}


async def create(tx: Tx, room_id: RoomID, rules: RoomVersionRules) -> Room:
    """Note a room without any event yet; nobody sees it before its first events are appended."""
    row = await tx.fetch_one(
        "insert into rooms (room_id, room_version) values (%s, %s)"
        " on conflict (room_id) do update set room_id = excluded.room_id returning room",
        (room_id, rules.version),
    )
    if row is None:
        raise RuntimeError("insert returned nothing")
    return Room(row[0], room_id, rules)


async def create_new(tx: Tx, room_id: RoomID, rules: RoomVersionRules) -> Room | None:
    """As `create`; None for a room that is there already."""
    row = await tx.fetch_one(
        "insert into rooms (room_id, room_version) values (%s, %s) on conflict do nothing returning room",
        (room_id, rules.version),
    )
    return None if row is None else Room(row[0], room_id, rules)


async def delete_empty(tx: Tx, number: int) -> None:
    """Forget a room that never got an event."""
    await tx.execute("delete from rooms where room = %s and state_version = 0", (number,))


async def note_complete(tx: Tx, number: int) -> None:
    """The room no longer lacks members; under the log's lock."""
    await tx.execute("update rooms set completed_at = (select position from log_head) where room = %s", (number,))


async def rows(tx: Tx, numbers: Collection[int]) -> dict[int, RoomRow]:
    """Where these rooms stand."""
    return from_rows(await tx.fetch(*rows_statement(numbers)))


async def newest_events(tx: Tx, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
    """Of each of these rooms the newest event that is shown, and the newest that people sent: positions, or 0."""
    rows = await tx.fetch("select room, last_event, last_bump from rooms where room = any(%s::int[])", (list(numbers),))
    return {room: (last_event, last_bump) for room, last_event, last_bump in rows}


async def member_counts(tx: Tx, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
    """How many are joined to each of these rooms, and invited."""
    rows = await tx.fetch(
        "select room, joined_members, invited_members from rooms where room = any(%s::int[])", (Int4(numbers),)
    )
    return {room: (joined, invited) for room, joined, invited in rows}


def rows_statement(numbers: Collection[int]) -> Statement:
    """The statement of `rows`, to be sent together with others; `from_rows` reads its answer."""
    return (
        "select room, state_version, extremities, last_line, notify_total, highlight_total, joined_members,"
        " invited_members, completed_at from rooms where room = any(%s::int[])",
        (Int4(numbers),),
    )


def from_rows(found: Iterable[Row]) -> dict[int, RoomRow]:
    """What `rows_statement` found."""
    return {row[0]: RoomRow(row[1], tuple(EventID(event_id) for event_id in row[2]), *row[3:]) for row in found}


async def row_and_position(tx: Tx, number: int) -> tuple[RoomRow, int]:
    """Where a room stands, and the position of the log at which it stood there."""
    row = await tx.fetch_one(
        "select state_version, extremities, last_line, notify_total, highlight_total, joined_members, invited_members,"
        " completed_at, (select position from log_head) from rooms where room = %s",
        (number,),
    )
    if row is None:
        raise RuntimeError("a room's row is gone")
    return RoomRow(row[0], tuple(EventID(event_id) for event_id in row[1]), *row[2:8]), row[8]
