"""What `hearth media` does."""

import asyncio

from federation.protocol.errors import MatrixError
from homeserver import configured
from homeserver.config import Config
from storage.s3_media import S3Media


class NotMovedError(Exception):
    """Media is still here; the message says why and what to do about it."""


def move(config: Config) -> str:
    """Bring what is on this machine to the S3 store, file by file; the server may run meanwhile."""
    store = configured.media_store(config)
    if not isinstance(store, S3Media):
        raise NotMovedError("There is no store to move media to: set `media.s3`.")
    try:
        count, size = asyncio.run(_move(store))
    except (MatrixError, OSError) as error:
        raise NotMovedError(f"Not everything was moved: {error}. What was moved is safe: run this again.") from None
    return f"{count} files with {size} bytes are now in the bucket {config.media.s3.bucket}."


async def _move(store: S3Media) -> tuple[int, int]:
    try:
        sizes = [await store.move(path) for path in await asyncio.to_thread(store.files.list_all)]
    finally:
        await store.close()
    return len(sizes), sum(sizes)
