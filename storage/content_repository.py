"""What is known of media, local and remote (table `media`); the bytes themselves are in `media_files.py`."""

from dataclasses import dataclass

from federation.protocol.types import ServerName, UserID
from storage.database import Row, Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One `mxc://` URI and what it stands for."""

    server_name: ServerName
    media_id: str
    created_ts: int
    user_id: UserID | None = None
    """Who uploads it; None for media of other servers."""
    unused_expires_ts: int | None = None
    """Until when it may be uploaded, if its ID was handed out first."""
    sha256: bytes | None = None
    """Of the content, which is found by it; None before it is uploaded."""
    size: int = 0
    content_type: str = "application/octet-stream"
    filename: str | None = None


_COLUMNS = "server_name, media_id, created_ts, user_id, unused_expires_ts, sha256, size, content_type, filename"


def _media(row: Row) -> Media:
    return Media(
        server_name=ServerName(row[0]),
        media_id=row[1],
        created_ts=row[2],
        user_id=None if row[3] is None else UserID(row[3]),
        unused_expires_ts=row[4],
        sha256=None if row[5] is None else bytes(row[5]),
        size=row[6],
        content_type=row[7],
        filename=row[8],
    )


async def find(tx: Tx, server_name: ServerName, media_id: str) -> Media | None:
    """What is known of it, uploaded or not."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from media where server_name = %s and media_id = %s", (server_name, media_id)
    )
    return None if row is None else _media(row)


async def insert(tx: Tx, media: Media) -> bool:
    """Store it; false, with nothing changed, where the ID is taken."""
    return (
        await tx.execute(
            f"insert into media ({_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
            (
                media.server_name,
                media.media_id,
                media.created_ts,
                media.user_id,
                media.unused_expires_ts,
                media.sha256,
                media.size,
                media.content_type,
                media.filename,
            ),
        )
        == 1
    )


async def fill(tx: Tx, media: Media) -> bool:
    """Give content to an ID that was handed out; false where it has some, or is gone."""
    return (
        await tx.execute(
            "update media set sha256 = %s, size = %s, content_type = %s, filename = %s"
            " where server_name = %s and media_id = %s and sha256 is null",
            (media.sha256, media.size, media.content_type, media.filename, media.server_name, media.media_id),
        )
        == 1
    )


async def lock_user(tx: Tx, user_id: UserID) -> None:
    """Nobody else who asks for this lock adds media of the user until the transaction ends."""
    await tx.fetch("select pg_advisory_xact_lock(hashtextextended('media ' || %s, 0))", (user_id,))


async def total_size(tx: Tx, user_id: UserID) -> int:
    """Of all that the user uploaded, in bytes."""
    row = await tx.fetch_one("select coalesce(sum(size), 0)::bigint from media where user_id = %s", (user_id,))
    return 0 if row is None else int(row[0])


async def count_unused(tx: Tx, user_id: UserID, now_ts: int) -> int:
    """How many IDs the user holds that were handed out, may still be used, and are not."""
    row = await tx.fetch_one(
        "select count(*) from media where user_id = %s and sha256 is null and unused_expires_ts > %s",
        (user_id, now_ts),
    )
    return 0 if row is None else int(row[0])


async def delete_unused(tx: Tx, now_ts: int) -> int:
    """Forget IDs that were not used in time; how many."""
    return await tx.execute("delete from media where sha256 is null and unused_expires_ts < %s", (now_ts,))


async def put_remote(tx: Tx, media: Media) -> None:
    """Store media of another server, or what it is now that it was fetched again."""
    if not await insert(tx, media):
        await tx.execute(
            "update media set sha256 = %s, size = %s, content_type = %s, filename = %s"
            " where server_name = %s and media_id = %s and user_id is null",
            (media.sha256, media.size, media.content_type, media.filename, media.server_name, media.media_id),
        )
