"""Account data, global and by room, and stored filters (tables `account_data`, `filters`).

A change is heard of through the log as `AccountDataChanged`. Data that depends on its former value (tags, push rules)
is changed in an entry's `work` by `write`, under the log's lock, so that no change is lost.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Self

import orjson
from msgspec import Struct

from federation.protocol.types import UserID
from storage.arrays import Int4
from storage.database import Tx

GLOBAL = 0
"""What stands for the room of data that belongs to none."""
DELETED = b""


class AccountDataChanged(Struct, frozen=True):
    """A user's data of one type has a new content; it is also what storage gives for data that did not change."""

    user_id: UserID
    room: int | None
    type: str
    content: bytes
    """A JSON object, or nothing when the data was deleted. Of `m.push_rules`: what differs from the defaults."""

    kind: ClassVar[int] = 8
    width: ClassVar[int] = 1
    rooms: ClassVar[Collection[int]] = ()
    """No room's members hear of it."""

    @property
    def users(self) -> Collection[UserID]:
        """The user whose data it is."""
        return (self.user_id,)

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.content)

    @property
    def is_deleted(self) -> bool:
        """Whether there is no such data any longer."""
        return not self.content

    @property
    def client_json(self) -> bytes:
        """The event that clients see; deleted data is an empty object to them."""
        return b'{"type":' + orjson.dumps(self.type) + b',"content":' + (self.content or b"{}") + b"}"

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all; of several changes of the same data the last one stays."""
        latest = {(change.user_id, change.room or GLOBAL, change.type): (at, change) for at, change in rows}
        await tx.execute(
            "insert into account_data (position, user_id, room, type, content)"
            " select * from unnest(%s::bigint[], %s::text[], %s::int[], %s::text[], %s::bytea[])"
            " on conflict (user_id, room, type) do update"
            " set position = excluded.position, content = excluded.content",
            (
                [at for at, _ in latest.values()],
                [change.user_id for _, change in latest.values()],
                [change.room or GLOBAL for _, change in latest.values()],
                [change.type for _, change in latest.values()],
                [change.content for _, change in latest.values()],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that nothing newer replaced."""
        rows = await tx.fetch(
            "select position, user_id, room, type, content from account_data where position > %s and position <= %s"
            " order by position",
            (after, upto),
        )
        return [(at, cls(UserID(user_id), room or None, name, content)) for at, user_id, room, name, content in rows]


async def write(tx: Tx, change: AccountDataChanged) -> None:
    """Store a change at once, within an entry's `work`, so that later entries of the batch see it.

    The change has to be among the entry's changes, too, which gives it its position.
    """
    await tx.execute(
        "insert into account_data (position, user_id, room, type, content) values (0, %s, %s, %s, %s)"
        " on conflict (user_id, room, type) do update set content = excluded.content",
        (change.user_id, change.room or GLOBAL, change.type, change.content),
    )


async def find(tx: Tx, user_id: UserID, room: int | None, name: str) -> bytes | None:
    """The content of one type of data; None where there is none."""
    row = await tx.fetch_one(
        "select content from account_data where user_id = %s and room = %s and type = %s",
        (user_id, room or GLOBAL, name),
    )
    return row[0] if row is not None and row[0] else None


async def forget(tx: Tx, user_id: UserID, names: Collection[str]) -> None:
    """Remove global data that belongs to what is gone; nobody hears of it."""
    await tx.execute(
        "delete from account_data where user_id = %s and room = 0 and type = any(%s::text[])", (user_id, list(names))
    )


async def find_many(tx: Tx, user_ids: Collection[UserID], name: str) -> dict[UserID, bytes]:
    """The content of one type of global data, of those of these users who have it."""
    rows = await tx.fetch(
        "select user_id, content from account_data where user_id = any(%s::text[]) and room = 0 and type = %s"
        " and content <> ''",
        (list(user_ids), name),
    )
    return {UserID(user_id): content for user_id, content in rows}


OF_SOME = "select room, type, content from account_data where user_id = %s and room = any(%s::int[]) and content <> ''"
"""A user's data of these rooms."""


async def of_some(tx: Tx, user_id: UserID, rooms: Collection[int]) -> list[AccountDataChanged]:
    """All global data of a user, and that of these rooms."""
    rows = await tx.fetch(OF_SOME, (user_id, Int4((GLOBAL, *rooms))))
    return [AccountDataChanged(user_id, room or None, name, content) for room, name, content in rows]


async def all_of(tx: Tx, user_id: UserID) -> list[AccountDataChanged]:
    """All data of a user, of all rooms."""
    rows = await tx.fetch(
        "select room, type, content from account_data where user_id = %s and content <> ''", (user_id,)
    )
    return [AccountDataChanged(user_id, room or None, name, content) for room, name, content in rows]


async def changed_between(tx: Tx, user_id: UserID, after: int, upto: int) -> list[AccountDataChanged]:
    """What changed in positions (after, upto], deletions included, oldest first."""
    rows = await tx.fetch(
        "select room, type, content from account_data where user_id = %s and position > %s and position <= %s"
        " order by position",
        (user_id, after, upto),
    )
    return [AccountDataChanged(user_id, room or None, name, content) for room, name, content in rows]


async def all_of_type(tx: Tx, name: str) -> dict[UserID, bytes]:
    """The content of one type of global data, of every user who has it."""
    rows = await tx.fetch(
        "select user_id, content from account_data where room = 0 and type = %s and content <> ''", (name,)
    )
    return {UserID(user_id): content for user_id, content in rows}


async def of_rooms(tx: Tx, user_id: UserID, name: str) -> dict[int, bytes]:
    """The content of one type of a user's data, of every room that has it."""
    rows = await tx.fetch(
        "select room, content from account_data where user_id = %s and type = %s and room > 0 and content <> ''",
        (user_id, name),
    )
    return {room: content for room, content in rows}


async def in_rooms(tx: Tx, user_id: UserID, after: Mapping[int, int], upto: int) -> list[AccountDataChanged]:
    """A user's data of these rooms that changed up to a place in the log, after another one for each room; deletions
    included, oldest first. Before every place is -1."""
    rows = await tx.fetch(
        "select account_data.room, type, content from unnest(%s::int[], %s::bigint[]) as given (room, after)"
        " join account_data on user_id = %s and account_data.room = given.room"
        " where position > after and position <= %s order by position",
        (list(after), list(after.values()), user_id, upto),
    )
    return [AccountDataChanged(user_id, room, name, content) for room, name, content in rows]


async def size_of(tx: Tx, user_id: UserID) -> tuple[int, int]:
    """How many rows and bytes of data a user has."""
    row = await tx.fetch_one(
        "select count(*)::int, coalesce(sum(length(content)), 0)::bigint from account_data where user_id = %s",
        (user_id,),
    )
    return (0, 0) if row is None else (row[0], row[1])


# --- filters


async def put_filter(tx: Tx, user_id: UserID, json: bytes, *, at_most: int) -> int | None:
    """Store a filter; its number, which is that of an equal one where there is one. None when the user has too many."""
    await tx.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"filters {user_id}",))
    row = await tx.fetch_one("select filter from filters where user_id = %s and json = %s", (user_id, json))
    if row is None:
        row = await tx.fetch_one(
            "insert into filters (user_id, filter, json)"
            " select %s, coalesce(max(filter), 0) + 1, %s from filters where user_id = %s having count(*) < %s"
            " returning filter",
            (user_id, json, user_id, at_most),
        )
    return None if row is None else row[0]


async def find_filter(tx: Tx, user_id: UserID, number: int) -> bytes | None:
    """A stored filter's JSON."""
    row = await tx.fetch_one("select json from filters where user_id = %s and filter = %s", (user_id, number))
    return None if row is None else row[0]
