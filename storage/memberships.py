"""Who is where: current memberships, read from the trunk of each room's state."""

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import NamedTuple

from federation.protocol.types import RoomID, ServerName, UserID
from storage import strings
from storage.database import Tx


class Membership(IntEnum):
    """`content.membership` as stored beside a member event that is current."""

    JOIN = 1
    INVITE = 2
    KNOCK = 3
    LEAVE = 4
    BAN = 5

    @classmethod
    def of(cls, text: object) -> "Membership | None":
        """The membership that an event's content names; None for one that the rules would never accept."""
        return _BY_NAME.get(text) if isinstance(text, str) else None

    @property
    def text(self) -> str:
        """The word in events."""
        return self.name.lower()


class Member(NamedTuple):
    """A user's own membership in a room."""

    membership: Membership
    position: int
    """Of the member event."""
    since: int | None = None
    """The room's version from which on this is so; None where it is not known."""


_BY_NAME = {membership.name.lower(): membership for membership in Membership}


async def rooms_of(tx: Tx, user_id: UserID, memberships: Sequence[Membership]) -> dict[int, tuple[Membership, int]]:
    """The rooms in which the user has one of these memberships: room -> membership, position of the member event."""
    numbers = await strings.find(tx, [user_id])
    if user_id not in numbers:
        return {}
    rows = await tx.fetch(
        "select room, membership, event from room_state"
        " where state_key = %s and line = 0 and until_version is null and membership is not null"
        " and membership = any(%s::smallint[])",
        (numbers[user_id], [int(membership) for membership in memberships]),
    )
    return {room: (Membership(membership), event) for room, membership, event in rows}


async def joined_rooms(tx: Tx, user_id: UserID) -> list[int]:
    """The numbers of the rooms that the user is joined to."""
    return list(await rooms_of(tx, user_id, (Membership.JOIN,)))


async def joined_rooms_of_many(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, list[int]]:
    """The numbers of the rooms that each of these users is joined to."""
    numbers = await strings.find(tx, user_ids)
    names = {number: UserID(user_id) for user_id, number in numbers.items()}
    rows = await tx.fetch(
        "select state_key, room from room_state where state_key = any(%s::int[]) and line = 0"
        " and until_version is null and membership is not null and membership = 1",
        (list(names),),
    )
    found: dict[UserID, list[int]] = {}
    for number, room in rows:
        found.setdefault(names[number], []).append(room)
    return found


async def members_of(tx: Tx, rooms: Sequence[int], memberships: Sequence[Membership]) -> list[tuple[int, UserID]]:
    """(room, user) for every member of these rooms with one of these memberships."""
    rows = await tx.fetch(
        "select room_state.room, strings.value from room_state join strings on strings.id = room_state.state_key"
        " where room = any(%s::int[]) and type = %s and line = 0 and until_version is null"
        " and membership = any(%s::smallint[])",
        (list(rooms), strings.MEMBER, [int(membership) for membership in memberships]),
    )
    return [(room, UserID(user_id)) for room, user_id in rows]


async def users_sharing_rooms(tx: Tx, user_id: UserID) -> set[UserID]:
    """Everybody who is joined to a room that this user is joined to, the user included."""
    numbers = await strings.find(tx, [user_id])
    if user_id not in numbers:
        return set()
    rows = await tx.fetch(
        "select distinct strings.value from room_state mine"
        " join room_state theirs on theirs.room = mine.room and theirs.type = %s and theirs.line = 0"
        "  and theirs.until_version is null and theirs.membership = 1"
        " join strings on strings.id = theirs.state_key"
        " where mine.state_key = %s and mine.line = 0 and mine.until_version is null and mine.membership = 1",
        (strings.MEMBER, numbers[user_id]),
    )
    return {UserID(value) for (value,) in rows}


async def joined_throughout(tx: Tx, user_id: UserID, rooms: Sequence[int], since: int) -> set[int]:
    """Those of these rooms that the user was joined to at a place in the log and has not left since."""
    numbers = await strings.find(tx, [user_id])
    if user_id not in numbers:
        return set()
    rows = await tx.fetch(
        "select room, bool_and(membership = 1) filter (where event > %s or until_event is null or until_event > %s)"
        " from (select room, event, membership, lead(event) over (partition by room order by since_version)"
        "  as until_event from room_state where room = any(%s::int[]) and line = 0 and type = %s and state_key = %s)"
        " as spans group by room having min(event) <= %s",
        (since, since, list(rooms), strings.MEMBER, numbers[user_id], since),
    )
    return {room for room, was_joined in rows if was_joined}


async def stayed(tx: Tx, members: Collection[tuple[int, UserID]], since: int) -> set[tuple[int, UserID]]:
    """Those of these (room, user) who were joined at a place in the log and have not left since."""
    if not members:
        return set()
    rows = await tx.fetch(
        "select room, value,"
        " bool_and(membership = 1) filter (where event > %s or until_event is null or until_event > %s)"
        " from (select room, strings.value, event, membership,"
        "  lead(event) over (partition by room, state_key order by since_version) as until_event"
        "  from unnest(%s::int[], %s::text[]) as given(number, user_id)"
        "  join strings on strings.value = given.user_id"
        "  join room_state on room = given.number and line = 0 and type = %s and state_key = strings.id) as spans"
        " group by room, value having min(event) <= %s",
        (since, since, [room for room, _ in members], [user_id for _, user_id in members], strings.MEMBER, since),
    )
    return {(room, UserID(user_id)) for room, user_id, was_joined in rows if was_joined}


REMOVED = (
    # With the memberships as parameters PostgreSQL would plan this anew each time, which costs more than to run it. And
    # where it does not know how many members there are, it would rather go through all of the server ("offset 0").
    "select held.room, held.membership, held.event"
    " from (select id, value from strings where value = %s offset 0) as own cross join lateral"
    " (select room, membership, event from room_state where state_key = own.id and line = 0 and until_version is null"
    f" and membership is not null and membership in ({Membership.LEAVE:d}, {Membership.BAN:d}) offset 0) as held"
    " join events on events.room = held.room and events.position = held.event and events.sender <> own.id"
    " where (select true from room_state earlier where earlier.room = held.room"
    f"  and earlier.type = {strings.MEMBER:d} and earlier.state_key = own.id and earlier.line = 0"
    f"  and earlier.membership = {Membership.JOIN:d} limit 1)"
    " and not exists (select from forgotten_rooms where forgotten_rooms.user_id = own.value"
    "  and forgotten_rooms.room = held.room and forgotten_rooms.position >= held.event)"
)
"""The rooms that a user was in and that somebody else removed them from, as far as they have not forgotten them: room,
membership, position of the member event."""


async def forgotten(tx: Tx, user_id: UserID) -> set[int]:
    """The rooms that the user left and asked to forget, and in which nothing became of them since."""
    numbers = await strings.find(tx, [user_id])
    rows = await tx.fetch(
        "select room from forgotten_rooms where user_id = %s and not exists (select from room_state"
        " where room_state.room = forgotten_rooms.room and type = %s and state_key = %s and line = 0"
        " and until_version is null and event > position)",
        (user_id, strings.MEMBER, numbers.get(user_id)),
    )
    return {room for (room,) in rows}


async def membership_of(tx: Tx, room: int, user_id: UserID) -> Membership | None:
    """The user's present membership in a room; None for who never had to do with it."""
    row = await tx.fetch_one(
        "select room_state.membership from room_state join strings on strings.id = room_state.state_key"
        " where room = %s and type = %s and strings.value = %s and line = 0 and until_version is null",
        (room, strings.MEMBER, user_id),
    )
    return None if row is None or row[0] is None else Membership(row[0])


async def share_a_room(tx: Tx, user_id: UserID, other: UserID) -> bool:
    """Whether both are joined to some room."""
    row = await tx.fetch_one(
        "select 1 from room_state mine join room_state theirs on theirs.room = mine.room"
        " where mine.state_key = (select id from strings where value = %s) and mine.line = 0"
        " and mine.until_version is null and mine.membership = 1"
        " and theirs.state_key = (select id from strings where value = %s) and theirs.line = 0"
        " and theirs.until_version is null and theirs.membership = 1 limit 1",
        (user_id, other),
    )
    return row is not None


async def local_members(tx: Tx, room: int, server_name: ServerName, *, limit: int) -> list[UserID]:
    """Some of the room's joined members who are users of this server."""
    rows = await tx.fetch(
        "select strings.value from room_state join strings on strings.id = room_state.state_key"
        " where room = %s and type = %s and line = 0 and until_version is null and membership = %s"
        " and left(strings.value, 1) = '@' and substr(strings.value, strpos(strings.value, ':') + 1) = %s limit %s",
        (room, strings.MEMBER, int(Membership.JOIN), server_name, limit),
    )
    return [UserID(user_id) for (user_id,) in rows]


async def is_left_to_others(tx: Tx, room: int, server_name: ServerName) -> bool:
    """Whether users of other servers are joined to the room, or may be as nothing is known of its state, and none of
    this server's is.

    By one statement, which sees one moment: users who come and go between two would be taken for others.
    """
    row = await tx.fetch_one(
        "select state_version = 0 or (joined_members > 0 and not exists (select from room_state"
        " join strings on strings.id = room_state.state_key"
        " where room = rooms.room and type = %s and line = 0 and until_version is null and membership = %s"
        " and left(strings.value, 1) = '@' and substr(strings.value, strpos(strings.value, ':') + 1) = %s))"
        " from rooms where room = %s",
        (strings.MEMBER, int(Membership.JOIN), server_name, room),
    )
    return row is None or bool(row[0])


async def some_servers(tx: Tx, room: int, *, sample: int) -> list[ServerName]:
    """Servers of the room's joined members, of whom `sample` are looked at: those with most of them first."""
    rows = await tx.fetch(
        "select substr(value, strpos(value, ':') + 1) as server from (select state_key from room_state where room = %s"
        " and type = %s and line = 0 and until_version is null and membership = %s limit %s) as members"
        " join strings on strings.id = members.state_key group by server order by count(*) desc, server",
        (room, strings.MEMBER, int(Membership.JOIN), sample),
    )
    return [ServerName(server_name) for (server_name,) in rows]


async def guests_in(tx: Tx, room: int) -> list[UserID]:
    """The room's joined members who are guests of this server."""
    rows = await tx.fetch(
        "select user_id from users join strings on strings.value = user_id join room_state on state_key = strings.id"
        " where is_guest and room = %s and type = %s and line = 0 and until_version is null and membership = %s",
        (room, strings.MEMBER, int(Membership.JOIN)),
    )
    return [UserID(user_id) for (user_id,) in rows]


async def forget(tx: Tx, user_id: UserID, room: int, position: int) -> None:
    """Note that the user wants to forget what they left at this position."""
    await tx.execute(
        "insert into forgotten_rooms (user_id, room, position) values (%s, %s, %s)"
        " on conflict (user_id, room) do update set position = excluded.position",
        (user_id, room, position),
    )


async def forget_many(tx: Tx, left: Collection[tuple[UserID, int, int]]) -> None:
    """As `forget`, for each of these users, rooms and positions."""
    newest = {(user_id, room): position for user_id, room, position in sorted(left)}
    await tx.execute(
        "insert into forgotten_rooms (user_id, room, position)"
        " select * from unnest(%s::text[], %s::int[], %s::bigint[])"
        " on conflict (user_id, room) do update set position = greatest(forgotten_rooms.position, excluded.position)",
        ([user_id for user_id, _ in newest], [room for _, room in newest], list(newest.values())),
    )


async def is_forgotten(tx: Tx, user_id: UserID, room: int, position: int) -> bool:
    """Whether the user asked to forget the room after the leave at this position."""
    row = await tx.fetch_one(
        "select 1 from forgotten_rooms where user_id = %s and room = %s and position >= %s", (user_id, room, position)
    )
    return row is not None


async def mutual_rooms(tx: Tx, user_id: UserID, other: UserID) -> list[tuple[int, str]]:
    """The rooms that both are joined to, by number: number and ID."""
    rows = await tx.fetch(
        "select room, room_id from room_state mine join room_state theirs using (room) join rooms using (room)"
        " where mine.state_key = (select id from strings where value = %s) and mine.line = 0"
        " and mine.until_version is null and mine.membership = 1"
        " and theirs.state_key = (select id from strings where value = %s) and theirs.line = 0"
        " and theirs.until_version is null and theirs.membership = 1 order by room",
        (user_id, other),
    )
    return [(room, room_id) for room, room_id in rows]


async def joined_among(
    tx: Tx, user_id: UserID, room_ids: Collection[RoomID], server_name: ServerName
) -> dict[RoomID, bool]:
    """Those of these rooms that users of a server are joined to, and whether this user is."""
    numbers = await strings.find(tx, [user_id])
    joined = (
        "select from room_state join strings on strings.id = state_key where room_state.room = rooms.room"
        f" and type = {strings.MEMBER} and line = 0 and until_version is null and membership = {int(Membership.JOIN)}"
    )
    rows = await tx.fetch(
        f"select room_id, exists ({joined} and state_key = %s) from rooms where room_id = any(%s::text[])"
        f" and exists ({joined} and strings.value like %s)",
        (numbers.get(user_id), list(room_ids), f"%:{server_name}"),
    )
    return {RoomID(room_id): is_joined for room_id, is_joined in rows}


async def of_server(tx: Tx, room_ids: Collection[str], server_name: ServerName) -> dict[RoomID, bool]:
    """Those of these rooms that users of a server are in, invited to or knock at, and whether one is in it."""
    has_member = (
        "exists (select from room_state join strings on strings.id = room_state.state_key"
        " where room_state.room = rooms.room and type = %s and line = 0 and until_version is null"
        " and membership = any(%s::smallint[])"
        " and left(strings.value, 1) = '@' and substr(strings.value, strpos(strings.value, ':') + 1) = %s)"
    )
    rows = await tx.fetch(
        f"select room_id, is_joined from rooms, lateral (select {has_member} as is_joined offset 0) as joined"
        f" where room_id = any(%s::text[]) and (is_joined or {has_member})",
        (
            *(strings.MEMBER, [int(Membership.JOIN)], server_name),
            list(room_ids),
            *(strings.MEMBER, [int(Membership.INVITE), int(Membership.KNOCK)], server_name),
        ),
    )
    return {RoomID(room_id): is_joined for room_id, is_joined in rows}


async def servers_of(tx: Tx, room: int, *, version: int | None = None) -> list[ServerName]:
    """The servers with users who are joined to the room, now or at a version of the trunk."""
    when = "until_version is null"
    params: tuple[int, ...] = ()
    if version is not None:
        when, params = "since_version <= %s and (until_version is null or until_version > %s)", (version, version)
    rows = await tx.fetch(
        "select distinct substring(strings.value from position(':' in strings.value) + 1) from room_state"
        " join strings on strings.id = room_state.state_key"
        f" where room = %s and type = {strings.MEMBER} and line = 0 and membership = {int(Membership.JOIN)} and {when}",
        (room, *params),
    )
    return [ServerName(name) for (name,) in rows]
