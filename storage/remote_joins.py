"""Joins by way of other servers that are under way (table `remote_joins`): one a room, whoever asked first."""

from collections.abc import Collection, Mapping

import orjson
from msgspec import Struct

from federation.protocol.errors import Unavailable
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, UserID
from storage.database import Row, Tx
from storage.strings import MEMBER


class SignedJoin(Struct, frozen=True, kw_only=True):
    """The join event that was sent to a server, or may have been."""

    destination: ServerName
    room_version: str
    canonical: bytes


class Placed(Struct, frozen=True, kw_only=True):
    """A join that counts already, of a room whose members are not all here."""

    version: int
    """Of the state before the join."""
    servers_in_room: tuple[ServerName, ...]
    joined: int
    """How many of that state were counted as joined: for those who are still to come, more or less."""
    invited: int


class RemoteJoin(Struct, frozen=True, kw_only=True):
    """One join that is under way."""

    room_id: RoomID
    user_id: UserID
    content: JsonObject
    servers: tuple[ServerName, ...]
    started_ts: int
    attempts: int = 1
    """How often a process began with it."""
    signed: SignedJoin | None = None
    placed: Placed | None = None


class TakenOver(Unavailable):
    """Another process is at work on the join: this one was silent for too long."""

    def __init__(self) -> None:
        super().__init__("Another process goes on with the join")


_COLUMNS = (
    "room_id, user_id, content, servers, started_ts, attempts, destination, room_version, event, placed_version,"
    " servers_in_room, counted"
)


def _from_row(row: Row) -> RemoteJoin:
    signed = None
    if row[8] is not None:
        signed = SignedJoin(destination=ServerName(row[6]), room_version=row[7], canonical=bytes(row[8]))
    placed = None
    if row[9] is not None:
        servers = tuple(ServerName(server) for server in row[10])
        placed = Placed(version=row[9], servers_in_room=servers, joined=row[11][0], invited=row[11][1])
    return RemoteJoin(
        room_id=RoomID(row[0]),
        user_id=UserID(row[1]),
        content=orjson.loads(row[2]),
        servers=tuple(ServerName(server) for server in row[3]),
        started_ts=row[4],
        attempts=row[5],
        signed=signed,
        placed=placed,
    )


async def insert(tx: Tx, join: RemoteJoin, *, leased_until_ts: int) -> bool:
    """Note a join that begins; False where one of the same room is under way."""
    count = await tx.execute(
        "insert into remote_joins (room_id, user_id, content, servers, started_ts, leased_until_ts, attempts)"
        " values (%s, %s, %s, %s::text[], %s, %s, 1) on conflict do nothing",
        (join.room_id, join.user_id, orjson.dumps(join.content), list(join.servers), join.started_ts, leased_until_ts),
    )
    return count == 1


async def note_signed(tx: Tx, room_id: RoomID, signed: SignedJoin) -> None:
    """Note the join event before it is sent."""
    await tx.execute(
        "update remote_joins set destination = %s, room_version = %s, event = %s where room_id = %s",
        (signed.destination, signed.room_version, signed.canonical, room_id),
    )


async def note_placed(tx: Tx, join: RemoteJoin, placed: Placed, state_ids: Collection[EventID]) -> None:
    """The join counts from now on, and its room lacks members; raises TakenOver.

    `state_ids` are the events of the state before the join, members and all.
    """
    count = await tx.execute(
        "update remote_joins set placed_version = %s, servers_in_room = %s::text[], counted = %s::int[],"
        " state_ids = %s::text[] where room_id = %s and started_ts = %s and attempts = %s",
        (
            placed.version,
            list(placed.servers_in_room),
            [placed.joined, placed.invited],
            list(state_ids),
            join.room_id,
            join.started_ts,
            join.attempts,
        ),
    )
    if not count:
        raise TakenOver
    await tx.execute("update rooms set completed_at = 0 where room_id = %s", (join.room_id,))


async def note_complete(tx: Tx, join: RemoteJoin, *, joined: int, invited: int) -> None:
    """The room has all members: so many were joined, and invited, before the join. Raises TakenOver.

    To be done under the log's lock, where nobody else counts.
    """
    placed = join.placed
    if placed is None or not await delete(tx, join):
        raise TakenOver
    await tx.execute(
        "update rooms set completed_at = (select position from log_head), joined_members = joined_members + %s,"
        " invited_members = invited_members + %s where room_id = %s",
        (joined - placed.joined, invited - placed.invited, join.room_id),
    )


async def abandon(tx: Tx, join: RemoteJoin) -> None:
    """The members of a room that was joined without them are no longer awaited: then it is not counted on them."""
    if await delete(tx, join):
        await tx.execute(
            "update rooms set joined_members = (select count(*) from room_state where room_state.room = rooms.room"
            "  and type = %s and line = 0 and until_version is null and membership = 1), invited_members ="
            " (select count(*) from room_state where room_state.room = rooms.room"
            "  and type = %s and line = 0 and until_version is null and membership = 2) where room_id = %s",
            (MEMBER, MEMBER, join.room_id),
        )


async def state_ids(tx: Tx, room_id: RoomID) -> frozenset[EventID]:
    """The events of the state before a join that was placed."""
    row = await tx.fetch_one("select state_ids from remote_joins where room_id = %s", (room_id,))
    return frozenset(map(EventID, row[0] or ())) if row is not None else frozenset()


async def find_awaited(tx: Tx, room_id: RoomID, event_ids: Collection[EventID]) -> tuple[int, int, set[EventID]] | None:
    """The room's number, the version of the state before a join that was placed, and which of these IDs were said to be
    of its events; None once the room has all members, and until the end of the transaction it has not otherwise."""
    row = await tx.fetch_one(
        "select room, placed_version, array(select unnest(%s::text[]) intersect select unnest(state_ids))"
        " from remote_joins join rooms using (room_id)"
        " where room_id = %s and placed_version is not null for share of remote_joins",
        (list(event_ids), room_id),
    )
    return None if row is None else (row[0], row[1], set(map(EventID, row[2])))


async def is_later(tx: Tx, room_id: RoomID, event_ids: Collection[EventID]) -> bool:
    """Whether the room lacks members, and one of these events is not part of the state before the join."""
    row = await tx.fetch_one(
        "select %s::text[] <@ state_ids from remote_joins where room_id = %s and placed_version is not null",
        (list(event_ids), room_id),
    )
    return row is not None and not row[0]


async def find_placed(tx: Tx, room_id: RoomID) -> tuple[int, frozenset[EventID]] | None:
    """The version of the state before a join that was placed, and the state's events; None for any other room."""
    row = await tx.fetch_one(
        "select placed_version, state_ids from remote_joins where room_id = %s and placed_version is not null",
        (room_id,),
    )
    return None if row is None else (row[0], frozenset(map(EventID, row[1])))


async def servers_named(tx: Tx, numbers: Collection[int]) -> dict[int, list[ServerName]]:
    """By those of these rooms that lack members: the servers that were said to be in them."""
    rows = await tx.fetch(
        "select room, servers_in_room from remote_joins join rooms using (room_id)"
        " where room = any(%s::int[]) and placed_version is not null",
        (list(numbers),),
    )
    return {room: [ServerName(server) for server in servers] for room, servers in rows}


async def extend_leases(tx: Tx, received: Mapping[RoomID, int], *, leased_until_ts: int) -> None:
    """This process is still at work on these, and has so many events of each one's state."""
    await tx.execute(
        "update remote_joins set leased_until_ts = %s, received = given.received"
        " from unnest(%s::text[], %s::int[]) as given(room_id, received) where remote_joins.room_id = given.room_id",
        (leased_until_ts, list(received), list(received.values())),
    )


async def put_off(tx: Tx, join: RemoteJoin, until_ts: int) -> None:
    """Have nobody at work on it before then."""
    await tx.execute(
        "update remote_joins set leased_until_ts = %s, received = 0"
        " where room_id = %s and started_ts = %s and attempts = %s",
        (until_ts, join.room_id, join.started_ts, join.attempts),
    )


async def check_held(tx: Tx, join: RemoteJoin) -> None:
    """Raise TakenOver where another process is at work on the join by now; until the end of the transaction none is."""
    row = await tx.fetch_one(
        "select 1 from remote_joins where room_id = %s and started_ts = %s and attempts = %s for share",
        (join.room_id, join.started_ts, join.attempts),
    )
    if row is None:
        raise TakenOver


async def are_any_left(tx: Tx, now_ts: int) -> bool:
    """Whether there are joins that nobody is at work on any longer."""
    return await tx.fetch_one("select 1 from remote_joins where leased_until_ts < %s limit 1", (now_ts,)) is not None


async def take_over(tx: Tx, *, now_ts: int, leased_until_ts: int, limit: int) -> list[RemoteJoin]:
    """Joins that nobody is at work on any longer; now the caller is."""
    rows = await tx.fetch(
        "update remote_joins set leased_until_ts = %s, attempts = attempts + 1 where room_id in"
        " (select room_id from remote_joins where leased_until_ts < %s order by started_ts limit %s"
        "  for update skip locked)"
        f" returning {_COLUMNS}",
        (leased_until_ts, now_ts, limit),
    )
    return [_from_row(row) for row in rows]


async def find(tx: Tx, room_id: RoomID) -> RemoteJoin | None:
    """The join of this room that is under way."""
    row = await tx.fetch_one(f"select {_COLUMNS} from remote_joins where room_id = %s", (room_id,))
    return None if row is None else _from_row(row)


async def delete(tx: Tx, join: RemoteJoin) -> bool:
    """It is over, in whatever way; False where another process has it by now."""
    count = await tx.execute(
        "delete from remote_joins where room_id = %s and started_ts = %s and attempts = %s",
        (join.room_id, join.started_ts, join.attempts),
    )
    return count == 1


class Progress(Struct, frozen=True):
    """How far a join is, as an operator sees it."""

    room_id: RoomID
    user_id: UserID
    started_ts: int
    leased_until_ts: int
    """Far ahead where it failed, and is tried again then."""
    attempts: int
    destination: ServerName | None
    """Whose answer is awaited; None before one was asked."""
    received: int
    """Events of the room's state that have come."""
    is_placed: bool
    """The user is in the room; its members are still to come."""


async def listed(tx: Tx, limit: int) -> list[Progress]:
    """The joins that are under way, the oldest first."""
    rows = await tx.fetch(
        "select room_id, user_id, started_ts, leased_until_ts, attempts, destination, received,"
        " placed_version is not null from remote_joins"
        " order by started_ts limit %s",
        (limit,),
    )
    return [Progress(*row) for row in rows]
