"""The bytes of media: files named by the hash of what they hold, which no client and no peer chooses.

A file is there whole or not at all: what arrives goes to a file of its own, which is synced and then renamed. So a
server that is killed leaves nothing but a temporary file, which the next start removes.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from federation.protocol.errors import Unavailable

BUFFER_BYTES = 256 * 1024
"""So much is written at a time."""

ABANDONED_SECONDS = 24 * 3600
"""A temporary file that nobody wrote to for so long belongs to a process that is gone."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, in short."""

    sha256: bytes
    size: int


class Incoming:
    """Bytes that arrive, on their way to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._hash = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self.size = 0

    async def write(self, chunk: bytes) -> None:
        """Take more; raises OSError."""
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        self.size += len(chunk)
        if self._buffered >= BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Hand all that was taken to the system."""
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._buffered = 0
        await asyncio.to_thread(self._put, data)

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self.file.write(data)

    def digest(self) -> bytes:
        """Of what was flushed."""
        return self._hash.digest()


class MediaFiles:
    """The files below one directory, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: bytes) -> Path:
        """Where the content with this hash is, if it is here."""
        name = sha256.hex()
        return self._directory / "content" / name[:2] / name[2:4] / name

    async def has(self, sha256: bytes) -> bool:
        """Whether the content with this hash is here."""
        return await asyncio.to_thread(self.path(sha256).is_file)

    def thumbnail_path(self, sha256: bytes, variant: str) -> Path:
        """Where a thumbnail of this content is, once it is made; `variant` is made of our own words and numbers."""
        name = sha256.hex()
        return self._directory / "thumbnails" / name[:2] / name[2:4] / f"{name}-{variant}"

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[Incoming]:
        """A place for bytes that arrive; unless they are kept (`keep`), the end of the block forgets them."""
        temporary = self._directory / "incoming" / secrets.token_hex(16)
        try:
            file = await asyncio.to_thread(_create, temporary)
        except OSError as error:
            raise Unavailable("The server cannot store media at the moment") from error
        try:
            yield Incoming(file)
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            raise Unavailable("The server cannot store media at the moment") from error
        finally:
            with contextlib.suppress(OSError):
                file.close()  # it may still have bytes for a disk that is full
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    async def keep(self, incoming: Incoming) -> Content:
        """Make what arrived durable under its hash."""
        await incoming.flush()
        digest = incoming.digest()
        await asyncio.to_thread(_publish, incoming.file, self.path(digest))
        return Content(digest, incoming.size)

    async def put_thumbnail(self, path: Path, data: bytes) -> None:
        """Store a thumbnail; it can be made again, so it need not survive a loss of power."""
        temporary = self._directory / "incoming" / secrets.token_hex(16)
        await asyncio.to_thread(_write, temporary, data, path)

    def forget_abandoned(self) -> int:
        """Remove temporary files that nobody writes to any more; how many."""
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._directory / "incoming"):
                with contextlib.suppress(OSError):
                    if entry.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                        Path(entry.path).unlink()
                        removed += 1
        return removed


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return open(path, "xb")  # the caller closes it


def _publish(file: BinaryIO, target: Path) -> None:
    """The file under its lasting name, on the disk with its directories; another with the same hash is the same."""
    file.flush()
    os.fsync(file.fileno())
    missing = [directory for directory in target.parents if not directory.exists()]
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    Path(file.name).replace(target)
    for directory in (target.parent, *(made.parent for made in missing)):
        _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(temporary: Path, data: bytes, target: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
