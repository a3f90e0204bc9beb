"""Server-side key backups: their versions and the encrypted room keys in them ("Server-side key backups").

Whoever writes keys holds the row lock of the backup, so `count` and `etag` are kept with the keys that they speak of.
A deleted backup keeps its row without its keys, so that deleting it again succeeds.
"""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Row, Tx


class Backup(Struct, frozen=True, kw_only=True):
    """A version of a user's backup."""

    version: int
    algorithm: str
    auth_data: bytes
    etag: int
    count: int


class BackedUpKey(Struct, frozen=True, kw_only=True):
    """The key of one megolm session."""

    room_id: str
    session_id: str
    is_verified: bool
    first_message_index: int
    forwarded_count: int
    session_data: bytes
    """The `session_data` object as JSON."""


class Totals(Struct, frozen=True):
    """What every change of a backup's keys answers."""

    etag: int
    count: int


_COLUMNS = "version, algorithm, auth_data, etag, count"


def _backup(row: Row) -> Backup:
    return Backup(version=row[0], algorithm=row[1], auth_data=row[2], etag=row[3], count=row[4])


async def create(tx: Tx, user_id: UserID, algorithm: str, auth_data: bytes) -> int:
    """Begin a new backup, which becomes the current one; its version."""
    row = await tx.fetch_one(
        "insert into key_backups (user_id, algorithm, auth_data) values (%s, %s, %s) returning version",
        (user_id, algorithm, auth_data),
    )
    if row is None:
        raise RuntimeError("an insert returned nothing")
    version: int = row[0]
    return version


async def find_current(tx: Tx, user_id: UserID) -> Backup | None:
    """The user's newest backup."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from key_backups where user_id = %s and not is_deleted order by version desc limit 1",
        (user_id,),
    )
    return None if row is None else _backup(row)


async def find(tx: Tx, user_id: UserID, version: int, *, for_update: bool = False) -> Backup | None:
    """A version of the user's backup that is not deleted; `for_update` keeps others from changing it meanwhile."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from key_backups where user_id = %s and version = %s and not is_deleted"
        + (" for update" if for_update else ""),
        (user_id, version),
    )
    return None if row is None else _backup(row)


async def set_auth_data(tx: Tx, user_id: UserID, version: int, auth_data: bytes) -> None:
    """Replace a backup's `auth_data`."""
    await tx.execute(
        "update key_backups set auth_data = %s where user_id = %s and version = %s", (auth_data, user_id, version)
    )


async def delete(tx: Tx, user_id: UserID, version: int) -> bool:
    """Delete a backup with all its keys; True also when it was deleted before, False when it never was."""
    found = await tx.execute(
        "update key_backups set is_deleted = true, count = 0 where user_id = %s and version = %s", (user_id, version)
    )
    await tx.execute("delete from key_backup_keys where version = %s and user_id = %s", (version, user_id))
    return found == 1


async def put_keys(tx: Tx, user_id: UserID, version: int, keys: Sequence[BackedUpKey]) -> Totals:
    """Store keys in one statement, each only if it is better than the one that is there.

    Better is verified, then a lower first message index, then a lower forwarded count. The caller holds the backup's
    row (`find(..., for_update=True)`), and no session is in `keys` twice.
    """
    rows = await tx.fetch(
        "insert into key_backup_keys as held (user_id, version, room_id, session_id, is_verified,"
        "  first_message_index, forwarded_count, session_data)"
        " select %s, %s, key.* from unnest(%s::text[], %s::text[], %s::bool[], %s::bigint[], %s::bigint[], %s::bytea[])"
        "  as key (room_id, session_id, is_verified, first_message_index, forwarded_count, session_data)"
        " on conflict (version, room_id, session_id) do update set is_verified = excluded.is_verified,"
        "  first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,"
        "  session_data = excluded.session_data"
        " where (not excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)"
        "  < (not held.is_verified, held.first_message_index, held.forwarded_count)"
        " returning xmax = 0",
        (
            user_id,
            version,
            [key.room_id for key in keys],
            [key.session_id for key in keys],
            [key.is_verified for key in keys],
            [key.first_message_index for key in keys],
            [key.forwarded_count for key in keys],
            [key.session_data for key in keys],
        ),
    )
    return await _note_change(tx, user_id, version, sum(1 for (is_new,) in rows if is_new), is_changed=bool(rows))


async def delete_keys(
    tx: Tx, user_id: UserID, version: int, room_id: str | None = None, session_id: str | None = None
) -> Totals:
    """Delete all keys of a backup, of one of its rooms, or of one session; the caller holds the backup's row."""
    where, params = _selection(user_id, version, room_id, session_id)
    gone = await tx.execute(f"delete from key_backup_keys where {where}", params)
    return await _note_change(tx, user_id, version, -gone, is_changed=gone > 0)


async def list_keys(
    tx: Tx, user_id: UserID, version: int, room_id: str | None = None, session_id: str | None = None
) -> list[BackedUpKey]:
    """All keys of a backup, of one of its rooms, or the one of a session."""
    where, params = _selection(user_id, version, room_id, session_id)
    rows = await tx.fetch(
        "select room_id, session_id, is_verified, first_message_index, forwarded_count, session_data"
        f" from key_backup_keys where {where} order by room_id, session_id",
        params,
    )
    return [
        BackedUpKey(
            room_id=row[0],
            session_id=row[1],
            is_verified=row[2],
            first_message_index=row[3],
            forwarded_count=row[4],
            session_data=row[5],
        )
        for row in rows
    ]


def _selection(
    user_id: UserID, version: int, room_id: str | None, session_id: str | None
) -> tuple[str, tuple[object, ...]]:
    if room_id is None:
        return "version = %s and user_id = %s", (version, user_id)
    if session_id is None:
        return "version = %s and user_id = %s and room_id = %s", (version, user_id, room_id)
    return (
        "version = %s and user_id = %s and room_id = %s and session_id = %s",
        (version, user_id, room_id, session_id),
    )


async def _note_change(tx: Tx, user_id: UserID, version: int, added: int, *, is_changed: bool) -> Totals:
    row = await tx.fetch_one(
        "update key_backups set count = count + %s, etag = etag + %s where user_id = %s and version = %s"
        " returning etag, count",
        (added, int(is_changed), user_id, version),
    )
    if row is None:
        raise RuntimeError("the backup is gone although its row is locked")
    return Totals(row[0], row[1])
