"""Room events as stored, and the log change that appends them (tables `events`, `rooms`, `room_state` and their kin).

Only `federation.rooms` and `storage` may import this module: every reader goes through the visibility gate.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from enum import IntFlag
from functools import cache

import orjson
from msgspec import Struct

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.relations import Relation
from federation.protocol.types import EventID, JsonObject, ServerName, StateKey, UserID
from storage.arrays import Int8
from storage.database import Row, Tx
from storage.event_bytes import unpack
from storage.memberships import Membership
from storage.unread import PersonalCount

logger = logging.getLogger(__name__)


class Flag(IntFlag):
    """How an event came out of the checks on receipt."""

    NONE = 0
    REJECTED = 1
    """Kept, never in state, never shown."""
    SOFT_FAILED = 2
    """Kept and in the graph, not shown to clients, never a forward extremity."""
    OUTLIER = 4
    """Held without its state: part of an auth chain."""
    UNAPPLIED = 8
    """A redaction that redacts nothing, or nothing yet: in the graph like any event, not shown to clients."""
    HISTORY = 16
    """Fetched after what follows it: shown to whoever pages back to it, and no news to anybody."""


HIDDEN = int(Flag.REJECTED | Flag.SOFT_FAILED | Flag.OUTLIER)
"""Neither shown nor followed by what is made here."""
UNSEEN = HIDDEN | int(Flag.UNAPPLIED)
"""Not shown to clients."""

UNREADABLE: JsonObject = {"type": "", "sender": "", "content": {}, "origin_server_ts": 0}
"""What stands for a stored row that is no event, so that its readers stumble over nothing but itself."""


class StoredEvent(Struct, kw_only=True, eq=False):
    """An event with its place in the room. What clients see of it is made by `federation/rooms/client_events.py`."""

    position: int
    room: int
    event_id: EventID
    flags: int
    line: int
    version: int
    """(line, version): the state before the event."""
    trunk_version: int
    """The room's version once the event was appended."""
    after_line: int | None
    after_version: int | None
    notify_total: int
    highlight_total: int
    redacted_by: int | None
    thread: str | None
    device: int | None
    txn_id: str | None
    canonical: bytes
    other_place: int | None = None
    other_arrival: int | None = None
    client: bytes | None = None
    """The client's form up to `unsigned`, encoded once."""
    _json: JsonObject | None = None

    @property
    def json(self) -> JsonObject:
        """The event, parsed. Nobody may change it."""
        if self._json is None:
            self._json = _readable(self)
        return self._json

    @property
    def place(self) -> int:
        """Where it stands among the room's events, for who reads them in order."""
        return self.position if self.other_place is None else self.other_place

    @property
    def arrival(self) -> int:
        """When it came, as a place in the log: later than all that it cites."""
        return self.position if self.other_arrival is None else self.other_arrival

    @property
    def is_readable(self) -> bool:
        """Whether the row holds an event at all: nobody is shown one that does not."""
        return self.json is not UNREADABLE

    @property
    def type(self) -> str:
        """The event's type."""
        value: str = self.json["type"]
        return value

    def is_a(self, event_type: str) -> bool:
        """Whether it is of this type; where it is not, the event need hardly ever be parsed to see it."""
        return _quoted(event_type) in self.canonical and self.type == event_type

    @property
    def sender(self) -> UserID:
        """Who sent it."""
        return UserID(self.json["sender"])

    @property
    def state_key(self) -> str | None:
        """The state key; None for a message."""
        return self.json.get("state_key")

    @property
    def content(self) -> JsonObject:
        """The content as sent, before any redaction."""
        content: JsonObject = self.json["content"]
        return content

    @property
    def point_after(self) -> tuple[int, int]:
        """The state after the event."""
        if self.after_line is not None and self.after_version is not None:
            return (self.after_line, self.after_version)
        if self.state_key is None or self.flags & (Flag.REJECTED | Flag.OUTLIER):
            return (self.line, self.version)
        return (self.line, self.trunk_version)


@cache
def _quoted(event_type: str) -> bytes:
    return f'"{event_type}"'.encode()


def _readable(event: StoredEvent) -> JsonObject:
    """The row's JSON if its readers can rely on its shape, whoever put it into the database."""
    try:
        json = orjson.loads(event.canonical)
        is_event = type(json["content"]) is dict and type(json["origin_server_ts"]) is int
        for text in (json["type"], json["sender"], json.get("state_key", "")):
            is_event = is_event and type(text) is str and "\0" not in text
    except (ValueError, LookupError, TypeError):
        is_event, json = False, UNREADABLE
    if not is_event:
        logger.warning("the stored event %s at position %d is none", event.event_id, event.position)
        return UNREADABLE
    answer: JsonObject = json
    return answer


class NewEvent(Struct, kw_only=True):
    """An event about to be appended, and all that follows from it."""

    pdu: VerifiedPDU
    line: int
    version: int
    after: tuple[int, int] | None = None
    """The state after a state event, where that is not the next version of the trunk."""
    trunk_version: int
    flags: int = 0
    device: int | None = None
    txn_id: str | None = None
    thread: str | None = None
    relation: Relation | None = None
    notifies: bool = False
    highlights: bool = False
    personal: Sequence[PersonalCount] = ()
    is_local: bool = False
    """The sender is a user of ours, who thereby has read the room up to here."""
    missing: Sequence[EventID] = ()
    """Events it refers to that we do not hold."""
    missing_for: int | None = None
    """Where an accepted event stands that came before and follows them by way of this one, if this one is hidden."""
    redacts: EventID | None = None
    """The event that it redacts, when its sender may; held or still to come."""
    redacts_only_of: ServerName | None = None
    """It redacts what this server's users sent, and nothing else; None: anything."""
    covers: Collection[EventID] | None = None
    """Which forward extremities it follows; None: its previous events, or nothing for one that is hidden."""
    is_extremity: bool = True
    """Nothing follows it yet. Never so for one that is hidden."""
    held_at: int | None = None
    """Where it is here as an outlier, which it is no longer from now on."""


class StateWrite(Struct, kw_only=True):
    """One entry of one line of a room's state, current from `since`."""

    line: int
    type: str
    state_key: str
    event_id: EventID | None
    """The event, when it is appended together with this."""
    since: int
    membership: Membership | None = None
    position: int | None = None
    """Where an event stands that was there before. Neither event nor position takes the entry away."""
    is_first: bool = False
    """The line holds nothing under this key that it would replace: it is not looked for."""


class NewLine(Struct, kw_only=True):
    """A branch of the state, beside the trunk."""

    line: int
    parent_line: int | None
    parent_version: int | None
    version: int = 1


class TrunkChange(Struct, kw_only=True):
    """What one entry changed in the room's current state."""

    type: str
    state_key: str
    event: int | None
    since: int
    membership: Membership | None


COLUMNS = (
    "events.position, events.room, event_id, flags, events.line, version, trunk_version, after_line, after_version,"
    " notify_total, highlight_total, redacted_by, thread, device, txn_id, json,"
    " place, arrival"
)


def from_row(row: Row) -> StoredEvent:
    """A row of `COLUMNS`."""
    return StoredEvent(
        position=row[0],
        room=row[1],
        event_id=row[2],
        flags=row[3],
        line=row[4],
        version=row[5],
        trunk_version=row[6],
        after_line=row[7],
        after_version=row[8],
        notify_total=row[9],
        highlight_total=row[10],
        redacted_by=row[11],
        thread=row[12],
        device=row[13],
        txn_id=row[14],
        canonical=_unpacked(row[15]),
        other_place=row[16],
        other_arrival=row[17],
    )


def _unpacked(stored: bytes) -> bytes:
    """The canonical JSON; nothing of a row that is damaged, which then is no event."""
    try:
        return unpack(stored)
    except ValueError as error:
        logger.warning("%s", error)
        return b""


async def by_position(tx: Tx, room: int, positions: Collection[int]) -> dict[int, StoredEvent]:
    """Events of one room by position."""
    rows = await tx.fetch(
        f"select {COLUMNS} from events where room = %s and position = any(%s::bigint[])",
        (room, Int8(positions)),
    )
    return {row[0]: from_row(row) for row in rows}


async def by_positions(tx: Tx, positions: Iterable[int]) -> dict[int, StoredEvent]:
    """Events of any rooms by position."""
    rows = await tx.fetch(f"select {COLUMNS} from events where position = any(%s::bigint[])", (Int8(positions),))
    return {row[0]: from_row(row) for row in rows}


async def by_id(tx: Tx, event_ids: Collection[str]) -> dict[EventID, StoredEvent]:
    """Those of these events that we hold."""
    rows = await tx.fetch(f"select {COLUMNS} from events where event_id = any(%s::text[])", (list(event_ids),))
    return {row[2]: from_row(row) for row in rows}


async def stood_before(tx: Tx, room: int, positions: Collection[int], *, limit: int) -> dict[EventID, StoredEvent]:
    """State events that once were current where those at these positions were later, the newest of them."""
    rows = await tx.fetch(
        f"select {COLUMNS} from events where room = %s and position in ("
        "  select older.event from events cited join room_state older on older.room = cited.room and older.line = 0"
        "  and older.type = cited.type and older.state_key = cited.state_key and older.event < cited.position"
        "  where cited.room = %s and cited.position = any(%s::bigint[]) order by older.event desc limit %s)",
        (room, room, list(positions), limit),
    )
    return {row[2]: from_row(row) for row in rows}


async def find_transaction(tx: Tx, device: int, txn_id: str, room: int, event_type: int) -> EventID | None:
    """The event that a client's transaction ID made at this endpoint, if it made one."""
    row = await tx.fetch_one(
        "select event_id from events where device = %s and txn_id = %s and room = %s and type = %s",
        (device, txn_id, room, event_type),
    )
    return None if row is None else EventID(row[0])


async def trunk_versions_at(tx: Tx, rooms: Collection[int], position: int) -> dict[int, int]:
    """The version of each room at a place in the log: 0 for a room that had no event yet."""
    rows = await tx.fetch(
        "select number, coalesce((select trunk_version from events where room = number and position <= %s"
        " order by position desc limit 1), 0) from unnest(%s::int[]) as wanted(number)",
        (position, list(rooms)),
    )
    return {room: version for room, version in rows}


async def trunk_versions_of(tx: Tx, rooms: Collection[int], positions: Collection[int]) -> dict[int, int]:
    """Of events of these rooms: their room's version once each was appended."""
    if not positions:
        return {}
    found = await tx.fetch(
        "select position, trunk_version from events where position = any(%s::bigint[]) and room = any(%s::int[])",
        (list(positions), list(rooms)),
    )
    return {position: version for position, version in found}


async def find_follower(tx: Tx, room: int, event_id: str) -> int | None:
    """Where an accepted event stands that refers to this one, which we do not hold yet."""
    row = await tx.fetch_one(
        "select events.position from missing_events join events on events.room = missing_events.room"
        " and events.position = missing_events.position"
        " where missing_events.room = %s and missing_events.event_id = %s and flags & %s = 0 limit 1",
        (room, event_id, int(HIDDEN)),
    )
    return None if row is None else int(row[0])


async def find_followers(tx: Tx, room: int, event_ids: Collection[str]) -> set[EventID]:
    """Those of these events, which we do not hold yet, that some event here refers to."""
    rows = await tx.fetch(
        "select distinct event_id from missing_events where room = %s and event_id = any(%s::text[])",
        (room, list(event_ids)),
    )
    return {EventID(event_id) for (event_id,) in rows}


async def flags_of(tx: Tx, event_ids: Collection[str]) -> dict[EventID, tuple[int, Flag]]:
    """Those of these events that we hold: in which room, and how they came out of the checks."""
    rows = await tx.fetch(
        "select event_id, room, flags from events where event_id = any(%s::text[])", (list(event_ids),)
    )
    return {EventID(event_id): (room, Flag(flags)) for event_id, room, flags in rows}


async def state_pairs_of(tx: Tx, room: int, event_ids: Collection[str]) -> dict[EventID, StateKey]:
    """What those of these events are current for that are state events of this room and were not rejected."""
    rows = await tx.fetch(
        "select event_id, types.value, state_keys.value from events join strings types on types.id = events.type"
        " join strings state_keys on state_keys.id = events.state_key"
        " where event_id = any(%s::text[]) and room = %s and flags & %s = 0",
        (list(event_ids), room, int(Flag.REJECTED)),
    )
    return {EventID(event_id): (event_type, state_key) for event_id, event_type, state_key in rows}


async def positions_of(tx: Tx, room: int, event_ids: Collection[str]) -> dict[EventID, int]:
    """Where those of these events stand that we hold in this room and that were not rejected."""
    rows = await tx.fetch(
        "select event_id, position from events where event_id = any(%s::text[]) and room = %s and flags & %s = 0",
        (list(event_ids), room, int(Flag.REJECTED)),
    )
    return {EventID(event_id): position for event_id, position in rows}


async def ids_of(tx: Tx, room: int, positions: Collection[int]) -> dict[int, EventID]:
    """The IDs of events of one room, by position."""
    rows = await tx.fetch(
        "select position, event_id from events where room = %s and position = any(%s::bigint[])",
        (room, list(positions)),
    )
    return {position: EventID(event_id) for position, event_id in rows}


async def arrivals_of(tx: Tx, room: int, positions: Collection[int]) -> dict[int, int]:
    """When those of these events came that did not come at their position, as places in the log."""
    if not positions:
        return {}
    rows = await tx.fetch(
        "select position, arrival from events where room = %s and position = any(%s::bigint[]) and arrival is not null",
        (room, list(positions)),
    )
    return {position: arrival for position, arrival in rows}
