"""Memberships in rooms that this server is not in: invites from outside, knocks, and their end (`outside_memberships`).

Of a room of another server we have nothing but these rows until one of our users joins it: no row of `rooms`, no
state. A row is its user's newest membership that came without the room's state. It counts until the state that we
hold of the room says something newer of the user: whoever joins writes that state, and may leave the row as it is.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Self

from msgspec import Struct

from federation.protocol.types import EventID, RoomID, ServerName, UserID
from storage import strings
from storage.database import Row, Tx
from storage.memberships import Member, Membership

_BY_NUMBER = {int(membership): membership for membership in Membership}
_COLUMNS = "user_id, room_id, membership, room_version, event_id, json, stripped_state, via, position"
_COUNTS = (
    # Nothing newer is known of the user from the room's own state. Not "not exists": who has such a membership would
    # have to wait for all members of the server, where PostgreSQL does not know how many there are.
    "coalesce((select event from room_state"
    " where room = (select room from rooms where rooms.room_id = outside_memberships.room_id)"
    f" and type = {strings.MEMBER} and state_key = (select id from strings where value = outside_memberships.user_id)"
    " and line = 0 and until_version is null), 0) <= outside_memberships.position"
)


class OutsideMembership(Struct, frozen=True, kw_only=True):
    """A user of ours was invited to a room that we are not in, knocks at it, or no longer does: a change in the log."""

    user_id: UserID
    room_id: RoomID
    membership: Membership
    """INVITE, KNOCK, LEAVE or BAN."""
    room_version: str
    event_id: EventID
    json: bytes
    """The canonical JSON of the member event, signatures included."""
    stripped_state: bytes = b"[]"
    """What the user is told of the room: a JSON array as clients see it, the member event itself included."""
    via: tuple[ServerName, ...] = ()
    """Servers that should be in the room."""
    position: int = 0
    """Where it stands in the log; set when it is read."""

    kind: ClassVar[int] = 128
    width: ClassVar[int] = 1
    rooms: ClassVar[Collection[int]] = ()
    """None that we have."""

    @property
    def users(self) -> Collection[UserID]:
        """The user whose membership it is."""
        return (self.user_id,)

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.json) + len(self.stripped_state)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all; of several for one user and room the last one stays."""
        last = {(change.user_id, change.room_id): (position, change) for position, change in rows}
        changes = [change for _, change in last.values()]
        await tx.execute(
            "insert into outside_memberships"
            " (user_id, room_id, membership, room_version, event_id, json, stripped_state, via, position)"
            " select user_id, room_id, membership, room_version, event_id, json, stripped_state,"
            " string_to_array(via, ' '), position"
            " from unnest(%s::text[], %s::text[], %s::smallint[], %s::text[], %s::text[], %s::bytea[], %s::bytea[],"
            " %s::text[], %s::bigint[])"
            " as given(user_id, room_id, membership, room_version, event_id, json, stripped_state, via, position)"
            " on conflict (user_id, room_id) do update set membership = excluded.membership,"
            " room_version = excluded.room_version, event_id = excluded.event_id, json = excluded.json,"
            " stripped_state = excluded.stripped_state, via = excluded.via, position = excluded.position",
            (
                [change.user_id for change in changes],
                [change.room_id for change in changes],
                [int(change.membership) for change in changes],
                [change.room_version for change in changes],
                [change.event_id for change in changes],
                [change.json for change in changes],
                [change.stripped_state for change in changes],
                [" ".join(change.via) for change in changes],
                [position for position, _ in last.values()],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that nothing has replaced yet."""
        rows = await tx.fetch(
            f"select {_COLUMNS} from outside_memberships where position > %s and position <= %s order by position",
            (after, upto),
        )
        return [(row[8], cls._from_row(row)) for row in rows]

    @classmethod
    def _from_row(cls, row: Row) -> Self:
        return cls(
            user_id=UserID(row[0]),
            room_id=RoomID(row[1]),
            membership=Membership(row[2]),
            room_version=row[3],
            event_id=EventID(row[4]),
            json=row[5],
            stripped_state=row[6],
            via=tuple(ServerName(name) for name in row[7]),
            position=row[8],
        )


async def of_user(tx: Tx, user_id: UserID) -> dict[RoomID, tuple[Membership, int]]:
    """The rooms in which a user has a membership from outside that counts: membership and position."""
    rows = await tx.fetch(
        f"select room_id, membership, position from outside_memberships where user_id = %s and {_COUNTS}", (user_id,)
    )
    return {RoomID(room_id): (Membership(membership), position) for room_id, membership, position in rows}


WITH_ROOMS = (
    # With the memberships as parameters PostgreSQL would plan this anew each time.
    "select room, null as room_id, membership, event, since_version from room_state"
    " where state_key = (select id from strings where value = %s) and line = 0 and until_version is null"
    f" and membership is not null and membership in ({Membership.JOIN:d}, {Membership.INVITE:d}, {Membership.KNOCK:d})"
    " union all select 0, room_id, membership, position, 0 from outside_memberships"
    f" where user_id = %s and {_COUNTS}"
)
"""Where a user is, is invited, or knocks: first the rooms that are here."""


async def with_rooms(tx: Tx, user_id: UserID) -> tuple[dict[int, Member], dict[RoomID, Member]]:
    """Where the user is, is invited, or knocks, by one statement: rooms here, by number; and as `of_user`."""
    return standings(await tx.fetch(WITH_ROOMS, (user_id, user_id)))


def standings(rows: Iterable[Row]) -> tuple[dict[int, Member], dict[RoomID, Member]]:
    """What rows of `WITH_ROOMS` say."""
    here: dict[int, Member] = {}
    outside: dict[RoomID, Member] = {}
    for room, room_id, membership, position, since in rows:
        if room_id is None:
            here[room] = Member(_BY_NUMBER[membership], position, since)
        else:
            outside[RoomID(room_id)] = Member(_BY_NUMBER[membership], position)
    return here, outside


async def get_many(tx: Tx, user_id: UserID, room_ids: Collection[RoomID]) -> list[OutsideMembership]:
    """A user's memberships from outside in these rooms, as far as they count."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from outside_memberships where user_id = %s and room_id = any(%s::text[]) and {_COUNTS}"
        " order by position",
        (user_id, list(room_ids)),
    )
    return [OutsideMembership._from_row(row) for row in rows]


async def find(tx: Tx, user_id: UserID, room_id: str) -> OutsideMembership | None:
    """The user's membership from outside in a room, if there is one that counts."""
    found = await get_many(tx, user_id, [RoomID(room_id)])
    return found[0] if found else None


async def at_positions(tx: Tx, positions: Collection[int]) -> list[OutsideMembership]:
    """Those that stand at these places in the log, as far as they count."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from outside_memberships where position = any(%s::bigint[]) and {_COUNTS}",
        (list(positions),),
    )
    return [OutsideMembership._from_row(row) for row in rows]


async def count_invites(tx: Tx, user_id: UserID, server: ServerName, most: int) -> tuple[int, int]:
    """How many invites by way of this server the user has not answered, up to `most`, and the bytes that tell of
    their rooms."""
    row = await tx.fetch_one(
        "select count(*), coalesce(sum(octet_length(stripped_state)), 0)"
        " from (select stripped_state from outside_memberships where user_id = %s and membership = %s"
        f" and %s = any(via) and {_COUNTS} limit %s) as found",
        (user_id, int(Membership.INVITE), server, most),
    )
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


async def delete(tx: Tx, user_id: UserID, room_id: str) -> bool:
    """Forget a membership from outside; whether there was one."""
    return (
        await tx.execute("delete from outside_memberships where user_id = %s and room_id = %s", (user_id, room_id)) > 0
    )
