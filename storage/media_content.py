"""What the files of media hold (table `media_content`), so that a file goes when no media has its content any more.

Several media may have the same content, and so the same file. Who stores a file says so first (`claim`) and again with
the media (`confirm`); who removes files decides it here (`take_unused`), removes them, and says so (`forget`). A file
is thus never removed from under who is just storing it: a claim is refused while the file is being removed, and a
confirmation once it was.
"""

from collections.abc import Collection

from storage.database import Tx

CLAIM_MS = 3_600_000
"""For so long a file is left alone that was claimed, and that no media has."""

REMOVAL_MS = 600_000
"""After so long another process may go on with a removal that did not end."""


async def claim(tx: Tx, sha256: bytes, now_ts: int) -> bool:
    """A file with this content is about to be stored; false while it is being removed."""
    return (
        await tx.execute(
            "insert into media_content (sha256, check_ts) values (%s, %s) on conflict (sha256) do update"
            " set check_ts = greatest(media_content.check_ts, excluded.check_ts) where not media_content.is_going",
            (sha256, now_ts + CLAIM_MS),
        )
        == 1
    )


async def confirm(tx: Tx, sha256: bytes) -> bool:
    """There is media with this content, as of this transaction; false where the file has gone since it was claimed."""
    return (
        await tx.execute(
            "update media_content set check_ts = null where sha256 = %s and not is_going",
            (sha256,),
        )
        == 1
    )


async def look_at(tx: Tx, hashes: Collection[bytes], now_ts: int) -> None:
    """Perhaps no media has these contents any more: `take_unused` is to look."""
    await tx.execute(
        "update media_content set check_ts = greatest(check_ts, %s) where sha256 = any(%s::bytea[])",
        (now_ts, list(hashes)),
    )


async def take_unused(tx: Tx, now_ts: int, limit: int) -> tuple[int, list[bytes]]:
    """How many contents were looked at, which is at most `limit`, and those of them whose files are now to be removed.

    Nobody else is told to remove these, for a while.
    """
    rows = await tx.fetch(
        "select sha256 from media_content where check_ts <= %s order by check_ts limit %s for update skip locked",
        (now_ts, limit),
    )
    looked_at = [row[0] for row in rows]
    # A statement of its own: it sees what others committed before the rows were locked.
    rows = await tx.fetch(
        "with found as (select sha256, not exists (select from media where media.sha256 = given.sha256) as is_unused"
        "  from unnest(%s::bytea[]) as given(sha256))"
        " update media_content set is_going = is_unused, check_ts = case when is_unused then %s::bigint end"
        " from found where media_content.sha256 = found.sha256 returning media_content.sha256, is_unused",
        (looked_at, now_ts + REMOVAL_MS),
    )
    return len(looked_at), [bytes(row[0]) for row in rows if row[1]]


async def forget(tx: Tx, hashes: Collection[bytes]) -> None:
    """The files with these contents are removed; of what is in quarantine it stays known that it is."""
    await tx.execute(
        "delete from media_content where sha256 = any(%s::bytea[]) and is_going and quarantined_by is null",
        (list(hashes),),
    )
    await tx.execute(
        "update media_content set is_going = false, check_ts = null where sha256 = any(%s::bytea[]) and is_going",
        (list(hashes),),
    )
