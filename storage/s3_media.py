"""The bytes of media in an S3-compatible store, for servers on more than one machine (as `media_files.py` otherwise).

What arrives goes to a temporary file here, since its name is its hash; then it is sent on. What is read comes straight
from the store. Media that is still on this machine is found there, until `hearth media move` has moved it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

from msgspec import Struct

from storage import media_files
from storage.media_files import EXTENSIONS, Content, Incoming, MediaFiles, StoredFile
from storage.s3 import S3Bucket

OCTETS = "application/octet-stream"
"""Nobody reads content from the store by itself: its type is in the database."""


class S3File(Struct, frozen=True):
    """An object."""

    bucket: S3Bucket
    key: str
    size: int
    path: Path | None = None
    """None: it is not on this machine."""

    async def read(self, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Those from `first` up to `end`, in pieces."""
        async with aclosing(self.bucket.read(self.key, first, self.size if end is None else end)) as pieces:
            async for piece in pieces:
                yield piece


class S3Media:
    """A bucket, and files here on their way to it."""

    def __init__(self, files: MediaFiles, bucket: S3Bucket) -> None:
        """`files` are of this machine."""
        self.files = files
        self._bucket = bucket

    def receive(self) -> AbstractAsyncContextManager[Incoming]:
        """A place for bytes that arrive; unless they are kept (`keep`), the end of the block forgets them."""
        return self.files.receive()

    async def keep(self, incoming: Incoming) -> Content:
        """Make what arrived durable under its hash."""
        await incoming.flush()
        await asyncio.to_thread(incoming.file.flush)
        digest = incoming.digest()
        if await self._bucket.find(_key(digest)) is None:
            await self._bucket.put(_key(digest), Path(incoming.file.name), digest, OCTETS)
        return Content(digest, incoming.size)

    async def find(self, sha256: bytes) -> StoredFile | None:
        """The content with this hash, if it is there or here."""
        found = await self._bucket.find(_key(sha256))
        if found is None:
            return await self.files.find(sha256)
        return S3File(self._bucket, _key(sha256), found.size)

    async def find_thumbnail(self, sha256: bytes, variant: str) -> tuple[StoredFile, str] | None:
        """A thumbnail of this content with its type, if it was made."""
        key = _thumbnail_key(sha256, variant)
        found = await self._bucket.find(key)
        if found is None or found.content_type not in EXTENSIONS:
            return None
        return S3File(self._bucket, key, found.size), found.content_type

    async def put_thumbnail(self, sha256: bytes, variant: str, data: bytes, content_type: str) -> StoredFile:
        """Store a thumbnail, in place of others where there are too many."""
        key = _thumbnail_key(sha256, variant)
        await self._bucket.put_bytes(key, data, content_type)
        others = [other for other in await self._bucket.list(_thumbnail_key(sha256, "")) if other != key]
        for other in others[media_files.MAX_THUMBNAILS - 1 :]:
            await self._bucket.delete(other)
        return S3File(self._bucket, key, len(data))

    async def remove(self, sha256: bytes) -> None:
        """Remove the content with this hash and its thumbnails, there and here; raises Unavailable."""
        while keys := await self._bucket.list(_thumbnail_key(sha256, "")):
            for key in keys:
                await self._bucket.delete(key)
        await self._bucket.delete(_key(sha256))
        await self.files.remove(sha256)

    def forget_abandoned(self) -> int:
        """Remove temporary files that nobody writes to any more; how many."""
        return self.files.forget_abandoned()

    async def move(self, path: Path) -> int:
        """Bring a file of this machine to the store, and remove it here; its size. It may be served all the while."""
        digest = bytes.fromhex(path.name)
        size = (await asyncio.to_thread(path.stat)).st_size
        found = await self._bucket.find(_key(digest))
        if found is None or found.size != size:
            await self._bucket.put(_key(digest), path, digest, OCTETS)
        await asyncio.to_thread(path.unlink)
        return size

    async def close(self) -> None:
        """End the bucket's connections."""
        await self._bucket.close()


def _key(sha256: bytes) -> str:
    return f"content/{sha256.hex()}"


def _thumbnail_key(sha256: bytes, variant: str) -> str:
    return f"thumbnails/{sha256.hex()}-{variant}"
