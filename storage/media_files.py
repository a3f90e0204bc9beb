"""The bytes of media: files named by the hash of what they hold, which no client and no peer chooses.

A file is there whole or not at all: what arrives goes to a file of its own, which is synced and then renamed. So a
server that is killed leaves nothing but a temporary file, which the next start removes.

`MediaStore` is what others know of it; `s3_media.py` is another.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol

from msgspec import Struct

from federation.protocol.errors import Unavailable

BUFFER_BYTES = 256 * 1024
"""So much is written at a time."""

ABANDONED_SECONDS = 24 * 3600
"""A temporary file that nobody wrote to for so long belongs to a process that is gone."""


PIECE_BYTES = 64 * 1024
"""So much is read at a time."""

MAX_THUMBNAILS = 20
"""Of one content that are kept: they count for nobody's quota."""

EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
)
"""By the content type of thumbnails."""


class StoredFile(Protocol):
    """Bytes that are stored."""

    @property
    def path(self) -> Path | None:
        """Where they are, if they are on this machine."""

    @property
    def size(self) -> int:
        """How many."""

    def read(self, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Those from `first` up to `end`, in pieces."""


class MediaStore(Protocol):
    """Where the bytes of media are."""

    def receive(self) -> AbstractAsyncContextManager["Incoming"]:
        """A place for bytes that arrive; unless they are kept (`keep`), the end of the block forgets them."""

    async def keep(self, incoming: "Incoming") -> "Content":
        """Make what arrived durable under its hash."""

    async def find(self, sha256: bytes) -> StoredFile | None:
        """The content with this hash, if it is here."""

    async def find_thumbnail(self, sha256: bytes, variant: str) -> tuple[StoredFile, str] | None:
        """A thumbnail of this content with its type, if it was made; `variant` is of our own words and numbers."""

    async def put_thumbnail(self, sha256: bytes, variant: str, data: bytes, content_type: str) -> StoredFile:
        """Store a thumbnail; it can be made again, so it need not survive a loss of power."""

    async def remove(self, sha256: bytes) -> None:
        """Remove the content with this hash and its thumbnails, wherever there are copies; raises Unavailable."""

    def forget_abandoned(self) -> int:
        """Remove temporary files that nobody writes to any more; how many."""

    async def close(self) -> None:
        """End what is open."""


class LocalFile(Struct, frozen=True):
    """A file on this machine."""

    path: Path

    @property
    def size(self) -> int:
        """Its length."""
        return self.path.stat().st_size

    async def read(self, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Those from `first` up to `end`, in pieces."""
        file = await asyncio.to_thread(self.path.open, "rb")
        left = end - first if end is not None else None
        try:
            file.seek(first)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES if left is None else min(PIECE_BYTES, left)):
                yield piece
                left = None if left is None else left - len(piece)
        finally:
            file.close()


@asynccontextmanager
async def opened(stored: StoredFile) -> AsyncIterator[BinaryIO]:
    """All of it in an open file of this machine, for another process to read."""
    if stored.path is not None:
        file: BinaryIO = await asyncio.to_thread(stored.path.open, "rb")
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed below
    try:
        if stored.path is None:
            async for piece in stored.read():
                await asyncio.to_thread(file.write, piece)
            file.seek(0)
        yield file
    finally:
        file.close()


class Content(Struct, frozen=True):
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


def _forget_others(directory: Path, name: str) -> None:
    """Remove the oldest thumbnails where there are too many."""
    found = [(path, _written_at(path)) for path in directory.glob(f"{name}-*")]
    found.sort(key=lambda each: each[1])
    for path, _ in found[: max(0, len(found) - MAX_THUMBNAILS)]:
        path.unlink(missing_ok=True)


def _written_at(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


class MediaFiles:
    """The files below one directory, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: bytes) -> Path:
        """Where the content with this hash is, if it is here."""
        name = sha256.hex()
        return self._directory / "content" / name[:2] / name[2:4] / name

    def list_all(self) -> list[Path]:
        """Every file with content, by its hash; thumbnails not."""
        return sorted((self._directory / "content").glob("??/??/*"))

    async def find(self, sha256: bytes) -> LocalFile | None:
        """The content with this hash, if it is here."""
        path = self.path(sha256)
        return LocalFile(path) if await asyncio.to_thread(path.is_file) else None

    async def find_thumbnail(self, sha256: bytes, variant: str) -> tuple[LocalFile, str] | None:
        """A thumbnail of this content with its type, if it was made."""
        return await asyncio.to_thread(self._find_thumbnail, sha256, variant)

    def _find_thumbnail(self, sha256: bytes, variant: str) -> tuple[LocalFile, str] | None:
        for content_type in EXTENSIONS:
            path = self._thumbnail_path(sha256, variant, content_type)
            if path.is_file():
                return LocalFile(path), content_type
        return None

    def _thumbnail_path(self, sha256: bytes, variant: str, content_type: str) -> Path:
        name = sha256.hex()
        return self._directory / "thumbnails" / name[:2] / name[2:4] / f"{name}-{variant}.{EXTENSIONS[content_type]}"

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

    async def put_thumbnail(self, sha256: bytes, variant: str, data: bytes, content_type: str) -> LocalFile:
        """Store a thumbnail; it can be made again, so it need not survive a loss of power."""
        path = self._thumbnail_path(sha256, variant, content_type)
        await asyncio.to_thread(_write, self._directory / "incoming" / secrets.token_hex(16), data, path)
        await asyncio.to_thread(_forget_others, path.parent, sha256.hex())
        return LocalFile(path)

    async def remove(self, sha256: bytes) -> None:
        """Remove the content with this hash and its thumbnails; raises Unavailable."""
        try:
            await asyncio.to_thread(self._remove, sha256)
        except OSError as error:
            raise Unavailable(f"A file of media cannot be removed: {error}") from error

    def _remove(self, sha256: bytes) -> None:
        path = self.path(sha256)
        path.unlink(missing_ok=True)
        thumbnails = self._directory / "thumbnails" / path.name[:2] / path.name[2:4]
        for thumbnail in thumbnails.glob(f"{path.name}-*"):
            thumbnail.unlink(missing_ok=True)

    async def close(self) -> None:
        """Nothing is open."""

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
