"""What is known of media, local and remote (table `media`); the bytes themselves are in `media_files.py`."""

from collections.abc import Collection

from msgspec import Struct

from federation.protocol.types import ServerName, UserID
from storage.database import Row, Tx


class Media(Struct, frozen=True, kw_only=True):
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
    used_ts: int | None = None
    """About when somebody saw it last; None for what users uploaded, which stays."""
    is_quarantined: bool = False
    """By itself, or with all that has the same content: nobody is shown it. Not stored by `insert` and the like."""


_COLUMNS = (
    "server_name, media_id, created_ts, user_id, unused_expires_ts, sha256, size, content_type, filename, used_ts"
)


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
        used_ts=row[9],
        is_quarantined=row[10],
    )


async def find(tx: Tx, server_name: ServerName, media_id: str) -> Media | None:
    """What is known of it, uploaded or not."""
    row = await tx.fetch_one(
        f"select {_COLUMNS}, quarantined_by is not null or exists (select from media_content as content"
        " where content.sha256 = media.sha256 and content.quarantined_by is not null)"
        " from media where server_name = %s and media_id = %s",
        (server_name, media_id),
    )
    return None if row is None else _media(row)


async def insert(tx: Tx, media: Media) -> bool:
    """Store it; false, with nothing changed, where the ID is taken."""
    return (
        await tx.execute(
            f"insert into media ({_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
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
                media.used_ts,
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


async def put_remote(tx: Tx, media: Media) -> bytes | None:
    """Store media of another server, or what it is now that it was fetched again; the hash that it had before."""
    if await insert(tx, media):
        return None
    row = await tx.fetch_one(
        "select sha256 from media where server_name = %s and media_id = %s for update",
        (media.server_name, media.media_id),
    )
    await tx.execute(
        "update media set sha256 = %s, size = %s, content_type = %s, filename = %s, used_ts = %s"
        " where server_name = %s and media_id = %s and user_id is null",
        (
            media.sha256,
            media.size,
            media.content_type,
            media.filename,
            media.used_ts,
            media.server_name,
            media.media_id,
        ),
    )
    return None if row is None or row[0] is None else bytes(row[0])


async def note_use(tx: Tx, media: Media, now_ts: int) -> None:
    """Somebody saw this media of another server."""
    await tx.execute(
        "update media set used_ts = %s where server_name = %s and media_id = %s and used_ts < %s",
        (now_ts, media.server_name, media.media_id, now_ts),
    )


# --- quarantine


async def list_uploaded(tx: Tx, user_id: UserID) -> list[str]:
    """The IDs of all that the user uploaded, or may upload to."""
    return [row[0] for row in await tx.fetch("select media_id from media where user_id = %s", (user_id,))]


async def quarantine(tx: Tx, found: Collection[tuple[str, str]], admin: UserID, now_ts: int) -> int:
    """Show these media, by server and ID, to nobody, nor any other with the same content; how many were shown before.

    Those of other servers that were never fetched will not be. `admin` does it.
    """
    servers, media_ids = [server for server, _ in found], [media_id for _, media_id in found]
    await tx.execute(
        "insert into media (server_name, media_id, created_ts, size, content_type)"
        " select distinct server, id, %s::bigint, 0, 'application/octet-stream'"
        " from unnest(%s::text[], %s::text[]) as given(server, id) where server <> %s"
        " order by server, id on conflict do nothing",
        (now_ts, servers, media_ids, admin.partition(":")[2]),
    )
    rows = await tx.fetch(
        "update media set quarantined_by = %s from unnest(%s::text[], %s::text[]) as given(server, id)"
        " where server_name = server and media_id = id and quarantined_by is null returning sha256",
        (admin, servers, media_ids),
    )
    await tx.execute(
        "update media_content set quarantined_by = %s where sha256 = any(%s::bytea[]) and quarantined_by is null",
        (admin, [row[0] for row in rows if row[0] is not None]),
    )
    return len(rows)


async def release(tx: Tx, server_name: str, media_id: str) -> bool:
    """End its quarantine, and that of its content; false where there is no such media.

    What was put into quarantine by itself and has the same content stays there.
    """
    rows = await tx.fetch(
        "update media set quarantined_by = null where server_name = %s and media_id = %s returning sha256",
        (server_name, media_id),
    )
    await tx.execute(
        "update media_content set quarantined_by = null where sha256 = any(%s::bytea[])",
        ([row[0] for row in rows if row[0] is not None],),
    )
    return bool(rows)


async def delete(tx: Tx, server_name: str, media_id: str) -> bytes | None:
    """Forget one; the hash of its content. What is in quarantine is not forgotten: it might come again."""
    row = await tx.fetch_one(
        "delete from media where server_name = %s and media_id = %s and sha256 is not null and quarantined_by is null"
        " returning sha256",
        (server_name, media_id),
    )
    return None if row is None else bytes(row[0])


# --- what was not uploaded, as a cache

_CACHED = "used_ts is not null and sha256 is not null and quarantined_by is null"


async def try_lock_cache(tx: Tx) -> bool:
    """Whether nobody else forgets what is too much until this transaction ends."""
    row = await tx.fetch_one("select pg_try_advisory_xact_lock(hashtextextended('media cache', 0))")
    return row is not None and bool(row[0])


async def cached_size(tx: Tx) -> int:
    """Of all that was not uploaded, in bytes, but of what is in quarantine: that stays."""
    row = await tx.fetch_one(f"select coalesce(sum(size), 0)::bigint from media where {_CACHED}")
    return 0 if row is None else int(row[0])


async def forget_unseen(tx: Tx, before_ts: int, limit: int) -> list[bytes]:
    """Forget some of what was not uploaded, and what nobody has seen since; the hashes."""
    rows = await tx.fetch(
        "delete from media using (select server_name, media_id from media"
        f"  where {_CACHED} and used_ts < %s order by used_ts limit %s) as gone"
        " where media.server_name = gone.server_name and media.media_id = gone.media_id returning media.sha256",
        (before_ts, limit),
    )
    return [bytes(row[0]) for row in rows]


async def forget_oldest(tx: Tx, excess: int, limit: int) -> tuple[int, list[bytes]]:
    """Forget what was not uploaded and nobody has seen for longest, until they were as many bytes together, but not
    more than `limit` at once; how many bytes, and the hashes."""
    rows = await tx.fetch(
        "delete from media using (select server_name, media_id from (select server_name, media_id,"
        "   sum(size) over (order by used_ts, server_name, media_id) - size as before"
        f"  from (select server_name, media_id, used_ts, size from media where {_CACHED}"
        "   order by used_ts limit %s) as oldest) as summed where before < %s) as gone"
        " where media.server_name = gone.server_name and media.media_id = gone.media_id"
        " returning media.sha256, media.size",
        (limit, excess),
    )
    return sum(row[1] for row in rows), [bytes(row[0]) for row in rows]
