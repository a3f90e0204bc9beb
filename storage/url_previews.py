"""Previews of pages that were fetched (table `url_previews`), each for the time in which it was the page's."""

import hashlib

from msgspec import Struct

from storage.database import Tx


class StoredPreview(Struct, frozen=True, kw_only=True):
    """One."""

    fetched_ts: int
    expires_ts: int
    answer: bytes | None
    """JSON; None where there was nothing to be had."""


def _hash(url: str) -> bytes:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()


async def find(tx: Tx, url: str, ts: int) -> StoredPreview | None:
    """The newest that was there at that time."""
    row = await tx.fetch_one(
        "select fetched_ts, expires_ts, answer from url_previews where url_hash = %s and fetched_ts <= %s"
        " order by fetched_ts desc limit 1",
        (_hash(url), ts),
    )
    if row is None:
        return None
    return StoredPreview(fetched_ts=row[0], expires_ts=row[1], answer=None if row[2] is None else bytes(row[2]))


async def insert(tx: Tx, url: str, preview: StoredPreview) -> None:
    """Keep it."""
    await tx.execute(
        "insert into url_previews (url_hash, fetched_ts, expires_ts, answer) values (%s, %s, %s, %s)"
        " on conflict do nothing",
        (_hash(url), preview.fetched_ts, preview.expires_ts, preview.answer),
    )


async def delete_old(tx: Tx, now_ts: int, kept_ms: int, *, at_most: int) -> int:
    """Forget those that expired so long ago, failures that expired at all, and all but the newest so many; how many."""
    gone = await tx.execute(
        "delete from url_previews where expires_ts < %s and (answer is null or expires_ts < %s)",
        (now_ts, now_ts - kept_ms),
    )
    return gone + await tx.execute(
        "delete from url_previews where ctid = any(array("
        "select ctid from url_previews order by fetched_ts desc offset %s))",
        (at_most,),
    )
