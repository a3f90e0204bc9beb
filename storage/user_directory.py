"""The user directory: whom clients find by their names (Client-Server API, "User Directory").

A row of `directory_users` for everybody who is joined to a room we know, and every user of ours; who is in a public
room has their words in `directory_words`, where all may find them. Who is not is found by those who share a room with
them, among the members of the searcher's own rooms. So nobody's search looks at people whom they may not see, and no
message costs anything: only what changes memberships, names and the openness of rooms does.

A row is always made anew from what is current, so it does not matter how often, or in which order, that is done.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import events, profiles, strings
from storage.arrays import Int4, Texts
from storage.database import Tx
from storage.search_words import name_words
from storage.strings import WELL_KNOWN

FOLLOWER = "user_directory"
VERSION = "1"
"""To be raised when rows are made otherwise: all are then made anew."""
MEMBERS_AT_ONCE = 500
MAX_MEMBERS = 20_000
"""Of the searcher's rooms that are not public, who are looked at."""
MAX_SCANNED = 2_000
"""Words of the directory that are looked at."""
MAX_NAME = 256
_LAST = "\U0010ffff"
_JOINED = f"line = 0 and until_version is null and membership = 1 and type = {strings.MEMBER}"
_OPENNESS = ("m.room.join_rules", "m.room.history_visibility")
LOCAL_USERS = 0
"""Stands for a room in the backlog: all users of ours."""


# --- keeping it


async def prepare(tx: Tx) -> bool:
    """Empty the directory, and note that all has to be looked at, unless it is of this version; whether that was done.

    The caller holds the lock of the follower.
    """
    row = await tx.fetch_one("select version from index_versions where name = %s", (FOLLOWER,))
    if row is not None and row[0] == VERSION:
        return False
    await tx.execute("truncate directory_words, directory_users, directory_rooms, directory_backlog")
    await tx.execute(
        "insert into index_versions (name, version) values (%s, %s)"
        " on conflict (name) do update set version = excluded.version",
        (FOLLOWER, VERSION),
    )
    await tx.execute(
        "insert into directory_backlog (room, after) select room, -1 from rooms union all select %s, -1", (LOCAL_USERS,)
    )
    return True


async def note_rooms(tx: Tx, rooms: Collection[int]) -> None:
    """Have all members of these rooms looked at, by and by."""
    if rooms:
        await tx.execute(
            "insert into directory_backlog (room, after) select room, -1 from unnest(%s::int[]) as room"
            " on conflict (room) do update set after = excluded.after",
            (Int4(rooms),),
        )


async def has_backlog(tx: Tx) -> bool:
    """Whether there are rooms whose members are still to be looked at."""
    return await tx.fetch_one("select 1 from directory_backlog limit 1") is not None


async def work_off(tx: Tx, server_name: ServerName) -> None:
    """Look at some members of one room of the backlog. The caller holds the lock of the follower."""
    row = await tx.fetch_one("select room, after from directory_backlog order by after desc, room limit 1")
    if row is None:
        return
    room, after = row
    if room == LOCAL_USERS:
        if after < 0:
            await _intern_local_users(tx)
        rows = await tx.fetch(
            "select strings.id from users join strings on strings.value = user_id where strings.id > %s"
            " order by strings.id limit %s",
            (after, MEMBERS_AT_ONCE),
        )
    else:
        if after < 0:
            await set_openness(tx, [room])
        rows = await tx.fetch(
            f"select state_key from room_state where room = %s and {_JOINED} and state_key > %s"
            " order by state_key limit %s",
            (room, after, MEMBERS_AT_ONCE),
        )
    users = [number for (number,) in rows]
    await refresh(tx, await strings.values_of(tx, users), server_name)
    if len(users) < MEMBERS_AT_ONCE:
        await tx.execute("delete from directory_backlog where room = %s", (room,))
    else:
        await tx.execute("update directory_backlog set after = %s where room = %s", (users[-1], room))


async def _intern_local_users(tx: Tx) -> None:
    """Give a number to users of ours who never were anywhere."""
    await tx.execute(
        "insert into strings (value) select user_id from users where not exists"
        ' (select from strings where value = user_id) order by user_id collate "C" on conflict do nothing'
    )  # in the order in which the appender does, too: neither waits for the other


async def set_openness(tx: Tx, rooms: Collection[int]) -> set[int]:
    """Note which of these rooms are public: those whose openness changed. The caller holds the lock of the follower."""
    rows = await tx.fetch(
        "select events.room, events.position from room_state join events on events.room = room_state.room"
        " and events.position = event where room_state.room = any(%s::int[]) and room_state.line = 0"
        "  and until_version is null"
        " and room_state.type = any(%s::int[]) and room_state.state_key = %s",
        (list(rooms), [WELL_KNOWN[name] for name in _OPENNESS], WELL_KNOWN[""]),
    )
    stored = await events.by_positions(tx, [position for _, position in rows]) if rows else {}
    public = {event.room for event in stored.values() if _opens(event.content)}
    closed = await tx.fetch(
        "delete from directory_rooms where room = any(%s::int[]) and room <> all(%s::int[]) returning room",
        (list(rooms), list(public)),
    )
    opened = await tx.fetch(
        "insert into directory_rooms (room) select * from unnest(%s::int[]) on conflict do nothing returning room",
        (Int4(public),),
    )
    return {room for (room,) in (*closed, *opened)}


def _opens(content: JsonObject) -> bool:
    return content.get("join_rule") == "public" or content.get("history_visibility") == "world_readable"


async def refresh(tx: Tx, names: Mapping[int, str], server_name: ServerName) -> None:
    """Make the rows of these users, by their numbers, as they are to be now: a few statements for all of them.

    The name is that of a user's profile if they are ours, else what they are called in a public room, else in another.
    The caller holds the lock of the follower.
    """
    if not names:
        return
    local = [UserID(name) for name in names.values() if server_name_of(UserID(name)) == server_name]
    accounts = tx.later(
        "select user_id from users where user_id = any(%s::text[]) and deactivated_ts is null", (Texts(local),)
    )
    rows = await tx.fetch(
        "select given.number, found.event, found.is_public from unnest(%s::int[]) as given(number), lateral"
        "  (select event, exists (select from directory_rooms where directory_rooms.room = room_state.room)"
        f"  as is_public from room_state where state_key = given.number and {_JOINED}"
        "  order by 2 desc, event desc limit 1) as found",
        (Int4(names),),
    )
    kept = {UserID(user_id) for (user_id,) in await tx.rows_of(accounts)}
    stored = await events.by_positions(tx, [event for _, event, _ in rows if event is not None])
    known = await profiles.find_many(tx, kept)
    made: dict[int, _Entry] = {}
    for number, event, is_public in rows:
        content = stored[event].content if event in stored else {}
        made[number] = _entry(UserID(names[number]), content, is_public=is_public)
    for number, name in names.items():
        user_id = UserID(name)
        if user_id in kept:
            found = made.get(number)
            made[number] = _entry(user_id, known.get(user_id, {}), is_public=found is not None and found.is_public)
        elif server_name_of(user_id) == server_name:
            made.pop(number, None)
    _replace(tx, names, made, {number for number, name in names.items() if name in kept})


class _Entry(Struct, frozen=True):
    """A row to be."""

    user_id: UserID
    display_name: str | None
    avatar_url: str | None
    is_public: bool
    words: Sequence[str]


def _entry(user_id: UserID, fields: JsonObject, *, is_public: bool) -> _Entry:
    name, avatar = fields.get("displayname"), fields.get("avatar_url")
    name = name[:MAX_NAME].replace("\0", "") if isinstance(name, str) and name else None
    avatar = avatar if isinstance(avatar, str) and avatar.startswith("mxc://") and "\0" not in avatar else None
    local_part, _, _ = user_id[1:].partition(":")
    words = [user_id[1:].lower(), *name_words(local_part, name or "")]
    return _Entry(user_id, name, avatar[:MAX_NAME] if avatar else None, is_public, words)


def _replace(tx: Tx, users: Collection[int], made: dict[int, _Entry], local: Collection[int]) -> None:
    numbers = list(made)
    entries = [made[number] for number in numbers]
    tx.later("delete from directory_words where number = any(%s::int[])", (Int4(users),))
    tx.later(
        "delete from directory_users where number = any(%s::int[]) and number <> all(%s::int[])",
        (Int4(users), Int4(numbers)),
    )
    tx.later(
        "insert into directory_users (number, display_name, avatar_url, words)"
        " select * from unnest(%s::int[], %s::text[], %s::text[], %s::text[])"
        " on conflict (number) do update set display_name = excluded.display_name,"
        " avatar_url = excluded.avatar_url, words = excluded.words",
        (
            Int4(numbers),
            Texts(entry.display_name for entry in entries),
            Texts(entry.avatar_url for entry in entries),
            Texts(f" {' '.join(entry.words)}" for entry in entries),
        ),
    )
    listed = [
        (made[number].is_public, word, number)
        for number in numbers
        if made[number].is_public or number in local
        for word in dict.fromkeys(made[number].words)
    ]
    tx.later(
        "insert into directory_words (number, word, is_public)"
        " select number, word, number = any(%s::int[]) from unnest(%s::int[], %s::text[]) as given(number, word)",
        (
            Int4({number for is_public, _, number in listed if is_public}),
            Int4(number for _, _, number in listed),
            Texts(word for _, word, _ in listed),
        ),
    )


# --- searching


class Found(Struct, frozen=True):
    """Somebody who was found."""

    user_id: UserID
    display_name: str | None
    avatar_url: str | None
    words: Sequence[str]


async def search(
    tx: Tx, user_id: UserID, beginnings: Sequence[str], *, all_local: bool, limit: int
) -> tuple[list[Found], bool]:
    """Users of whose words some begin with each of these, whom a user may see; whether there may be more of them.

    At most `limit` of each of those who are in public rooms, who share another room, and who are users of ours.
    """
    patterns = [f"% {_escaped(each)}%" for each in beginnings]
    longest = max(beginnings, key=len)
    matching = " and ".join("directory_users.words like %s" for _ in patterns)
    found: dict[UserID, Found] = {}
    has_more = False
    for is_public in (True, False) if all_local else (True,):
        rows = await tx.fetch(
            "with scanned as materialized (select number, word from directory_words where is_public = %s"
            "  and word >= %s and word < %s order by word limit %s)"
            " select value, display_name, avatar_url, words, scanned.looked_at from"
            " (select number, min(word) as word, sum(count(*)) over () as looked_at from scanned group by number)"
            f" as scanned join directory_users using (number) join strings on strings.id = number where {matching}"
            " order by word limit %s",
            (is_public, longest, longest + _LAST, MAX_SCANNED, *patterns, limit),
        )
        has_more |= len(rows) == limit or any(row[4] >= MAX_SCANNED for row in rows)
        found |= _found(rows)
    rows = await tx.fetch(
        "with members as materialized (select theirs.state_key as number from room_state theirs where"
        f"  theirs.{_JOINED.replace(' and ', ' and theirs.')} and theirs.room in (select mine.room from room_state mine"
        f"   where mine.state_key = (select id from strings where value = %s)"
        f"   and mine.{_JOINED.replace(' and ', ' and mine.')}"
        "   and not exists (select from directory_rooms where directory_rooms.room = mine.room)) limit %s)"
        " select value, display_name, avatar_url, words, (select count(*) from members)"
        " from (select distinct number from members) as members join directory_users using (number)"
        f" join strings on strings.id = number where {matching} limit %s",
        (user_id, MAX_MEMBERS, *patterns, limit),
    )
    has_more |= len(rows) == limit or any(row[4] >= MAX_MEMBERS for row in rows)
    found |= _found(rows)
    if all_local and len(beginnings) == 1:
        rows = await tx.fetch(
            "select user_id, null, null, user_id, 0 from users where user_id like %s and deactivated_ts is null"
            " limit %s",
            (f"@{_escaped(longest)}%", limit),
        )  # who never was anywhere
        has_more |= len(rows) == limit
        found = _found(rows) | found
    found.pop(user_id, None)
    return list(found.values()), has_more


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _found(rows: Iterable[Sequence[object]]) -> dict[UserID, Found]:
    answer: dict[UserID, Found] = {}
    for value, display_name, avatar_url, words, _ in rows:
        user_id = UserID(str(value))
        answer[user_id] = Found(
            user_id,
            display_name if isinstance(display_name, str) else None,
            avatar_url if isinstance(avatar_url, str) else None,
            str(words).split(),
        )
    return answer
