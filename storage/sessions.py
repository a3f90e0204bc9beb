"""Sessions: an access token and, where the client knows them, its refresh token (table `sessions`).

Only hashes are stored. Refreshing makes a new pair that names the old one as `previous`; both work until one of the
new tokens is used, which ends the old pair.
"""

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage.database import Row, Tx


class StoredSession(Struct, frozen=True, kw_only=True):
    """A session with what its account says about it."""

    session: int
    previous: int | None
    created_ts: int
    expires_ts: int | None
    device: int
    device_id: DeviceID
    user_id: UserID
    is_deactivated: bool
    is_locked: bool
    is_suspended: bool
    is_admin: bool
    is_guest: bool


_SELECT = (
    "select session, previous, sessions.created_ts, expires_ts, device, device_id, user_id, deactivated_ts is not null,"
    " is_locked, is_suspended, is_admin, is_guest from sessions join devices using (device) join users using (user_id)"
)


def _session(row: Row) -> StoredSession:
    return StoredSession(
        session=row[0],
        previous=row[1],
        created_ts=row[2],
        expires_ts=row[3],
        device=row[4],
        device_id=row[5],
        user_id=row[6],
        is_deactivated=row[7],
        is_locked=row[8],
        is_suspended=row[9],
        is_admin=row[10],
        is_guest=row[11],
    )


async def find_by_access_token(tx: Tx, access_hash: bytes) -> StoredSession | None:
    """The session of an access token, expired or not."""
    row = await tx.fetch_one(f"{_SELECT} where access_hash = %s", (access_hash,))
    return None if row is None else _session(row)


async def find_by_refresh_token(tx: Tx, refresh_hash: bytes) -> StoredSession | None:
    """The session of a refresh token."""
    row = await tx.fetch_one(f"{_SELECT} where refresh_hash = %s", (refresh_hash,))
    return None if row is None else _session(row)


class NewSession(Struct, frozen=True, kw_only=True):
    """A session about to be stored."""

    device: int
    created_ts: int
    access_hash: bytes
    refresh_hash: bytes | None = None
    expires_ts: int | None = None
    previous: int | None = None


async def insert(tx: Tx, new: NewSession) -> None:
    """Store a session."""
    await tx.execute(
        "insert into sessions (device, previous, created_ts, expires_ts, access_hash, refresh_hash)"
        " values (%s, %s, %s, %s, %s, %s)",
        (new.device, new.previous, new.created_ts, new.expires_ts, new.access_hash, new.refresh_hash),
    )


async def delete(tx: Tx, session: int) -> int:
    """End one session; how many there were."""
    return await tx.execute("delete from sessions where session = %s", (session,))


async def delete_successors(tx: Tx, session: int) -> int:
    """Forget the pairs given for this one that nobody has used."""
    return await tx.execute("delete from sessions where previous = %s", (session,))


async def confirm(tx: Tx, session: int, previous: int) -> None:
    """A token of the new pair was used: the old pair ends."""
    await tx.execute("update sessions set previous = null where session = %s", (session,))
    await delete(tx, previous)


async def delete_of_device(tx: Tx, device: int) -> int:
    """End all sessions of a device; how many there were."""
    return await tx.execute("delete from sessions where device = %s", (device,))


async def delete_of_user(tx: Tx, user_id: UserID) -> int:
    """End all sessions of a user; how many there were."""
    return await tx.execute(
        "delete from sessions using devices where devices.device = sessions.device and devices.user_id = %s",
        (user_id,),
    )
