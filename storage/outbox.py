"""What other servers still have to get: the log's entries that concern them, read by position.

Nothing is written for an event and a destination. Who gets an event follows from the room's state, of which every
version is kept, so that what a server missed is found again for any part of the log.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import ClassVar, Self

import orjson
from msgspec import Struct

from federation.protocol import canonical_json
from federation.protocol.redaction import redact
from federation.protocol.room_versions import get_rules
from federation.protocol.types import DeviceID, EventID, JsonObject, ServerName, UserID
from storage import strings
from storage.database import Row, Tx
from storage.event_bytes import unpack
from storage.receipts import READ

SERVER_OF = "substr({0}.value, strpos({0}.value, ':') + 1)"
"""The server of a user ID in `strings`; `strings_server_idx` has it."""
_MEMBERS = (
    f"room_state members join strings as names on names.id = members.state_key and left(names.value, 1) = '@'"
    f" where members.type = {strings.MEMBER} and members.line = 0 and members.membership = 1"
)
_NAMED = (
    "remote_joins join rooms as incomplete using (room_id) cross join lateral unnest(servers_in_room) as named(server)"
    " where placed_version is not null"
)
"""The servers that were said to be in rooms whose members are not all known yet."""
_ACL = strings.WELL_KNOWN["m.room.server_acl"]


# --- changes of the log


class OutgoingMessage(Struct, frozen=True):
    """One EDU for one server."""

    destination: ServerName
    json: bytes


class OutgoingMessages(Struct, frozen=True):
    """To-device messages of one request to users of other servers."""

    messages: Sequence[OutgoingMessage]

    kind: ClassVar[int] = 32
    width: ClassVar[int] = 1
    """One position for all."""
    rooms: ClassVar[Collection[int]] = ()
    """It belongs to no room."""
    users: ClassVar[Collection[UserID]] = ()
    """No user of ours waits for it."""

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        return sum(len(message.json) for message in self.messages)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        messages = [(position, message) for position, change in rows for message in change.messages]
        await tx.execute(
            "insert into outbox_messages (position, destination, json, created_ts)"
            " select *, (extract(epoch from clock_timestamp()) * 1000)::bigint"
            " from unnest(%s::bigint[], %s::text[], %s::bytea[])",
            (
                [position for position, _ in messages],
                [message.destination for _, message in messages],
                [message.json for _, message in messages],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """For whom there were any in (after, upto], without their contents."""
        rows = await tx.fetch(
            "select distinct position, destination from outbox_messages where position > %s and position <= %s"
            " order by position",
            (after, upto),
        )
        found: dict[int, list[OutgoingMessage]] = {}
        for position, destination in rows:
            found.setdefault(position, []).append(OutgoingMessage(ServerName(destination), b""))
        return [(position, cls(messages)) for position, messages in found.items()]


class EventRelayed(Struct, frozen=True):
    """An event of another server that we pass on to the others in its room.

    To be appended together with the event, behind it.
    """

    event_id: EventID

    kind: ClassVar[int] = 64
    width: ClassVar[int] = 1
    rooms: ClassVar[Collection[int]] = ()
    """The event itself concerns its room; this does not."""
    users: ClassVar[Collection[UserID]] = ()
    """Nobody waits for it."""

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        await tx.execute(
            "insert into relayed_events (position, event_id, created_ts)"
            " select *, (extract(epoch from clock_timestamp()) * 1000)::bigint from unnest(%s::bigint[], %s::text[])",
            ([position for position, _ in rows], [change.event_id for _, change in rows]),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto]."""
        rows = await tx.fetch(
            "select position, event_id from relayed_events where position > %s and position <= %s order by position",
            (after, upto),
        )
        return [(position, cls(EventID(event_id))) for position, event_id in rows]


# --- events


class OutgoingEvent(Struct, frozen=True, kw_only=True):
    """An event that other servers are to get."""

    position: int
    """Where the log says so: the event's own place, or that of its `EventRelayed`."""
    room: int
    event_id: EventID
    low: int
    high: int
    """The versions of the room before and after it."""
    sender: UserID
    target: UserID | None
    """Whose membership it is about, if it is a membership."""
    canonical: bytes
    """Empty where the row is damaged."""


async def events_between(
    tx: Tx, own: ServerName, after: int, upto: int, *, limit: int, destination: ServerName | None = None
) -> list[OutgoingEvent]:
    """What is to be sent of the events in (after, upto], the oldest first; of `destination`, what may concern it.

    What is about a user of the destination is among it whether or not their server is in the room.
    """
    suffix = ":" + own
    concerned = ""
    params: list[object] = [after, upto, len(suffix), suffix, after, upto]
    if destination is not None:
        concerned = (
            f" where {SERVER_OF.format('targets')} = %s or exists (select from {_MEMBERS}"
            "  and members.room = candidates.room and members.since_version <= candidates.high"
            "  and (members.until_version is null or members.until_version > candidates.low)"
            f"  and {SERVER_OF.format('names')} = %s)"
            f" or exists (select from {_NAMED} and incomplete.room = candidates.room and server = %s"
            "  and placed_version <= candidates.high)"
        )
        params += [destination, destination, destination]
    rows = await tx.fetch(
        "with candidates as ("
        " select events.position as at, events.position, events.room,"
        "  case when line = 0 then events.version else events.trunk_version end as low,"
        "  events.trunk_version as high, senders.value as sender, events.type, events.state_key"
        "  from events join strings as senders on senders.id = events.sender"
        "  where events.position > %s and events.position <= %s and flags = 0"
        "   and right(senders.value, %s) = %s"
        " union all"
        " select relayed_events.position, events.position, events.room, events.trunk_version, events.trunk_version,"
        "  senders.value, events.type, events.state_key"
        "  from relayed_events join events on events.event_id = relayed_events.event_id and flags = 0"
        "  join strings as senders on senders.id = events.sender"
        "  where relayed_events.position > %s and relayed_events.position <= %s)"
        " select candidates.at, candidates.room, event_id, low, high, candidates.sender, targets.value, json,"
        "  case when redacted_by is not null then rooms.room_version end"
        " from candidates join events on events.room = candidates.room and events.position = candidates.position"
        " join rooms on rooms.room = candidates.room"
        " left join strings as targets on targets.id = candidates.state_key"
        f"  and candidates.type = {strings.MEMBER} and left(targets.value, 1) = '@'"
        f"{concerned} order by candidates.at limit %s",
        (*params, limit),
    )
    return [_outgoing(row) for row in rows]


async def end_of_nothing(tx: Tx, after: int, end: int) -> int:
    """How far there is nothing for anybody after a position, at most to `end`: events may come far apart, as one whose
    predecessors are not known yet leaves room for them. Four look-ups.
    """
    row = await tx.fetch_one(
        "select least("
        "(select min(position) from events where position > %s),"
        " (select min(position) from relayed_events where position > %s),"
        " (select min(position) from receipts where position > %s),"
        " (select min(position) from device_list_changes where position > %s))",
        (after, after, after, after),
    )
    found = None if row is None else row[0]
    return end if found is None else min(found - 1, end)


async def find_relayed(tx: Tx, position: int) -> OutgoingEvent | None:
    """What an `EventRelayed` at this position passes on."""
    row = await tx.fetch_one(
        "select relayed_events.position, events.room, events.event_id, trunk_version, trunk_version, senders.value,"
        f" case when events.type = {strings.MEMBER} then targets.value end, json, null"
        " from relayed_events join events on events.event_id = relayed_events.event_id and flags = 0"
        " join strings as senders on senders.id = events.sender"
        " left join strings as targets on targets.id = events.state_key where relayed_events.position = %s",
        (position,),
    )
    return None if row is None else _outgoing(row)


def _outgoing(row: Row) -> OutgoingEvent:
    try:
        canonical = unpack(row[7])
        if row[8] is not None:  # redacted since
            canonical = canonical_json.encode(redact(orjson.loads(canonical), get_rules(row[8])))
    except (ValueError, LookupError, TypeError):
        canonical = b""
    return OutgoingEvent(
        position=row[0],
        room=row[1],
        event_id=EventID(row[2]),
        low=row[3],
        high=row[4],
        sender=UserID(row[5]),
        target=None if row[6] is None else UserID(row[6]),
        canonical=canonical,
    )


# --- who is in a room


async def servers_between(
    tx: Tx, spans: Collection[tuple[int, int, int]]
) -> dict[tuple[int, int, int], frozenset[ServerName]]:
    """For each (room, version, later version): the servers that had a joined member at any version of that span.

    A room's members are looked through once, however many of its spans are asked about.
    """
    ranges: dict[int, tuple[int, int]] = {}
    for room, low, high in spans:
        lowest, highest = ranges.get(room, (low, high))
        ranges[room] = min(low, lowest), max(high, highest)
    rows = await tx.fetch(
        "with given (room, low, high) as (select * from unnest(%s::int[], %s::int[], %s::int[]))"
        " select given.room, found.* from given cross join lateral ("
        f"  select {SERVER_OF.format('names')}, greatest(members.since_version, low),"
        "   case when members.until_version <= high then members.until_version end"
        f"  from {_MEMBERS} and members.room = given.room and members.since_version <= high"
        "   and (members.until_version is null or members.until_version > low) group by 1, 2, 3"
        ") as found (server, since, until) union all select given.room, server, greatest(placed_version, low), null"
        f" from given, {_NAMED} and incomplete.room = given.room and placed_version <= high",
        (list(ranges), [low for low, _ in ranges.values()], [high for _, high in ranges.values()]),
    )
    present: defaultdict[int, defaultdict[ServerName, list[tuple[int, float]]]]
    present = defaultdict(lambda: defaultdict(list))
    for room, server, since, until in sorted(rows, key=lambda row: row[2]):
        times = present[room][server]
        begin, end = since, math.inf if until is None else until
        if times and begin <= times[-1][1]:
            begin, last = times.pop()
            end = max(end, last)
        times.append((begin, end))
    return {
        (room, low, high): frozenset(
            server
            for server, times in present[room].items()
            if any(since <= high and until > low for since, until in times)
        )
        for room, low, high in spans
    }


async def servers_now(tx: Tx, rooms: Collection[int]) -> dict[int, tuple[int, frozenset[ServerName]]]:
    """The servers that are in these rooms now, and the versions of the rooms at which they are."""
    rows = await tx.fetch(
        f"select rooms.room, rooms.state_version, (select array_agg(distinct {SERVER_OF.format('names')})"
        f"  from {_MEMBERS} and members.room = rooms.room and members.until_version is null),"
        f" (select array_agg(server) from {_NAMED} and incomplete.room = rooms.room and rooms.completed_at = 0)"
        " from rooms where room = any(%s::int[])",
        (list(rooms),),
    )
    return {
        room: (version, frozenset(map(ServerName, (*(servers or ()), *(named or ())))))
        for room, version, servers, named in rows
    }


async def has_member(tx: Tx, room: int, server: ServerName, version: int) -> bool:
    """Whether a user of this server was joined at this version of the room."""
    row = await tx.fetch_one(
        f"select exists (select from {_MEMBERS} and members.room = %s and {SERVER_OF.format('names')} = %s"
        " and members.since_version <= %s and (members.until_version is null or members.until_version > %s))"
        f" or exists (select from {_NAMED} and incomplete.room = %s and server = %s)",
        (room, server, version, version, room, server),
    )
    return row is not None and bool(row[0])


async def server_acls(tx: Tx, rooms: Collection[tuple[int, int]]) -> dict[tuple[int, int], JsonObject | None]:
    """The content of the server ACL for each (room, version); None where there is none."""
    rows = await tx.fetch(
        "select given.room, given.version, events.json from unnest(%s::int[], %s::int[]) as given (room, version)"
        f" join room_state on room_state.room = given.room and type = {_ACL} and state_key = 1 and room_state.line = 0"
        "  and since_version <= given.version and (until_version is null or until_version > given.version)"
        " join events on events.room = room_state.room and events.position = room_state.event",
        ([room for room, _ in rooms], [version for _, version in rooms]),
    )
    found: dict[tuple[int, int], JsonObject | None] = dict.fromkeys(rooms)
    found |= {(room, version): _content(json) for room, version, json in rows}
    return found


async def server_acls_now(tx: Tx, rooms: Collection[int]) -> dict[int, JsonObject]:
    """The content of the server ACL of those of these rooms that have one now."""
    rows = await tx.fetch(
        "select room_state.room, events.json from room_state"
        " join events on events.room = room_state.room and events.position = room_state.event"
        f" where room_state.room = any(%s::int[]) and room_state.type = {_ACL} and room_state.state_key = 1"
        "  and room_state.line = 0 and until_version is null",
        (list(rooms),),
    )
    return {room: _content(json) for room, json in rows}


def _content(json: bytes) -> JsonObject:
    """The event's; empty where that is damaged."""
    try:
        content = orjson.loads(unpack(json))["content"]
    except (ValueError, LookupError):
        return {}
    return content if isinstance(content, dict) else {}


async def rooms_of_server(tx: Tx, server: ServerName) -> list[int]:
    """The rooms that users of a server are joined to now."""
    rows = await tx.fetch(
        "select distinct room from strings as names join room_state on state_key = names.id and line = 0"
        " and until_version is null and membership is not null and membership = 1"
        f" where left(names.value, 1) = '@' and {SERVER_OF.format('names')} = %s"
        f" union select incomplete.room from {_NAMED} and server = %s",
        (server, server),
    )
    return [room for (room,) in rows]


# --- EDUs


class OutgoingReceipt(Struct, frozen=True):
    """A public receipt of a user of ours."""

    position: int
    room: int
    user_id: UserID
    thread: str
    event_id: EventID
    ts: int


async def receipts_between(
    tx: Tx, own: ServerName, rooms: Collection[int], after: int, upto: int
) -> list[OutgoingReceipt]:
    """Our users' public receipts in these rooms that moved in (after, upto] and not since."""
    suffix = ":" + own
    rows = await tx.fetch(
        "select position, room, user_id, thread, event_id, ts from receipts where position > %s and position <= %s"
        " and room = any(%s::int[]) and receipt_type = %s and right(user_id, %s) = %s order by position",
        (after, upto, list(rooms), READ, len(suffix), suffix),
    )
    return [OutgoingReceipt(*row) for row in rows]


class OutgoingDeviceChange(Struct, frozen=True):
    """Devices or cross-signing keys of a user of ours that changed."""

    position: int
    user_id: UserID
    device_ids: Sequence[DeviceID]
    """None where the cross-signing keys changed."""


async def device_changes_between(
    tx: Tx, own: ServerName, rooms: Collection[int], after: int, upto: int
) -> list[OutgoingDeviceChange]:
    """What changed in (after, upto] that the members of one of these rooms may know of."""
    suffix = ":" + own
    rows = await tx.fetch(
        "select position, user_id, device_ids from device_list_changes where position > %s and position <= %s"
        " and seen_by is null and rooms && %s::int[] and right(user_id, %s) = %s order by position",
        (after, upto, list(rooms), len(suffix), suffix),
    )
    return [OutgoingDeviceChange(position, UserID(user_id), tuple(devices)) for position, user_id, devices in rows]


async def own_changes_between(tx: Tx, own: ServerName, after: int, upto: int) -> list[tuple[int, list[int]]]:
    """Where in (after, upto] receipts or devices of our users changed, and in which rooms that matters."""
    suffix = ":" + own
    rows = await tx.fetch(
        "select position, array[room] from receipts where position > %s and position <= %s and receipt_type = %s"
        " and right(user_id, %s) = %s union all"
        " select position, rooms from device_list_changes where position > %s and position <= %s and seen_by is null"
        " and right(user_id, %s) = %s",
        (after, upto, READ, len(suffix), suffix, after, upto, len(suffix), suffix),
    )
    return [(position, list(in_rooms)) for position, in_rooms in rows]


async def stored_messages(tx: Tx, destination: ServerName, limit: int) -> list[tuple[int, bytes]]:
    """The oldest to-device EDUs that a server has not confirmed, with what `delete_messages` calls them."""
    return [
        (sequence, json)
        for sequence, json in await tx.fetch(
            "select sequence, json from outbox_messages where destination = %s order by sequence limit %s",
            (destination, limit),
        )
    ]


async def delete_messages(tx: Tx, sequences: Collection[int]) -> None:
    """The server has these."""
    await tx.execute("delete from outbox_messages where sequence = any(%s::bigint[])", (list(sequences),))


async def give_up_messages(tx: Tx, before_ts: int, limit: int) -> dict[ServerName, int]:
    """Delete those among the `limit` oldest to-device EDUs that were made before a time: how many for each server."""
    rows = await tx.fetch(
        "with oldest as (select sequence, created_ts from outbox_messages order by sequence limit %s),"
        " gone as (delete from outbox_messages using oldest where outbox_messages.sequence = oldest.sequence"
        "  and oldest.created_ts < %s returning destination)"
        " select destination, count(*) from gone group by destination",
        (limit, before_ts),
    )
    return {ServerName(server): count for server, count in rows}


async def awaiting_messages(tx: Tx) -> list[ServerName]:
    """The servers for which there are to-device EDUs: a look-up for each of them."""
    rows = await tx.fetch(
        "with recursive waiting (server) as ((select min(destination) from outbox_messages)"
        "  union all select (select min(destination) from outbox_messages where destination > waiting.server)"
        "  from waiting where waiting.server is not null)"
        " select server from waiting where server is not null"
    )
    return [ServerName(server) for (server,) in rows]
