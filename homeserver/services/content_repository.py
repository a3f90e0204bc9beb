"""Media: taken from users, fetched from other servers, found for whoever asks (Client-Server API, "Content
repository")."""

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from federation.outbound.remote_media import RemoteMedia
from federation.outbound.turns import CutOff, Places, Turns
from federation.protocol.errors import (
    Forbidden,
    InvalidInput,
    LimitExceeded,
    MatrixError,
    NotFound,
    TooLarge,
)
from federation.protocol.identifiers import is_media_id, is_server_name
from federation.protocol.types import ServerName, UserID
from homeserver.services.kept_content import confirm, keep
from homeserver.services.media_cache import MediaCache
from storage import background, content_repository, media_content
from storage.content_repository import Media
from storage.database import Database, Tx
from storage.figures import Figures, Lookups
from storage.media_files import Content, MediaStore, StoredFile

logger = logging.getLogger(__name__)

UNUSED_MS = 24 * 3600 * 1000
"""For so long an ID that was handed out may be used."""

MAX_UNUSED = 50
"""IDs that one user may hold without using them."""

MAX_PARALLEL_UPLOADS = 10
"""Of one user: what arrives takes room on the disk before it counts."""

PLACES = Places(prompt=20, prompt_seconds=5.0, slow=40, per_host=8, unproven=4)
"""Fetches from other servers, for all users: each may take as much of the disk as media may have."""

START_SECONDS = 10.0
"""For another server's first byte, besides the time that somebody wants to wait for an upload."""

DEFAULT_TIMEOUT_MS = 20_000
MAX_TIMEOUT_MS = 60_000
MAX_FILENAME_BYTES = 1000
OCTETS = "application/octet-stream"

_POLL_SECONDS = 2.0
"""How soon it is noticed that another process has taken an upload."""

_CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}(?:\s*;[\x20-\x7e]{0,100})?", re.ASCII)


class MediaLimits(Struct, frozen=True):
    """How much is taken."""

    max_upload_size: int
    max_size_per_user: int | None
    info_uri: str
    """Where users read about the limit."""


class Upload(Struct, frozen=True):
    """What a user sends."""

    content_type: str | None
    filename: str | None
    length: int | None
    """As it is claimed."""
    chunks: AsyncIterator[bytes]


class Found(Struct, frozen=True):
    """Media that can be handed out."""

    media: Media
    sha256: bytes
    file: StoredFile


Commit = Callable[[Tx, Media], Awaitable[None]]


class ContentRepository:
    """All media. `close` ends what is being fetched."""

    def __init__(
        self,
        database: Database,
        files: MediaStore,
        remote: RemoteMedia,
        cache: MediaCache,
        *,
        server_name: ServerName,
        limits: MediaLimits,
    ) -> None:
        self._database = database
        self._files = files
        self._remote = remote
        self._cache = cache
        self._server_name = server_name
        self.limits = limits
        self._uploading: Counter[UserID] = Counter()
        self._awaited: dict[str, asyncio.Event] = {}
        self._fetches: dict[tuple[ServerName, str], _Fetch] = {}
        self._turns = Turns(PLACES)
        self._bytes = {"user": 0, "server": 0}
        self._lookups = Lookups("media_of_other_servers")
        self._failed_fetches = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "media_received_bytes_total": self._bytes,
            "media_uploads": self._uploading.total(),
            "media_fetches": len(self._fetches),
            "media_fetches_limit": PLACES.prompt + PLACES.slow,
            "media_fetch_failures_total": self._failed_fetches,
            "cache_hits_total": {self._lookups.name: self._lookups.hits},
            "cache_misses_total": {self._lookups.name: self._lookups.misses},
        }

    async def upload(self, user_id: UserID, upload: Upload) -> str:
        """Store what a user sends; its `mxc://` URI, once it is on the disk.

        Raises M_TOO_LARGE, M_USER_LIMIT_EXCEEDED.
        """
        media = self._new(user_id)

        async def commit(tx: Tx, stored: Media) -> None:
            if not await content_repository.insert(tx, stored):
                raise RuntimeError("a random media ID was taken")

        await self._take(user_id, media, upload, commit)
        return f"mxc://{self._server_name}/{media.media_id}"

    async def create(self, user_id: UserID) -> tuple[str, int]:
        """An `mxc://` URI to be uploaded to, and until when (in ms); raises M_LIMIT_EXCEEDED."""
        media = self._new(user_id)
        expires_ts = media.created_ts + UNUSED_MS
        async with self._database.transaction() as tx:
            await content_repository.lock_user(tx, user_id)
            if await content_repository.count_unused(tx, user_id, media.created_ts) >= MAX_UNUSED:
                raise LimitExceeded(60_000)
            await content_repository.insert(tx, replace(media, unused_expires_ts=expires_ts))
        return f"mxc://{self._server_name}/{media.media_id}", expires_ts

    async def upload_to(self, user_id: UserID, server_name: str, media_id: str, upload: Upload) -> None:
        """Store what a user sends under an ID that `create` gave to them.

        Raises also M_NOT_FOUND, M_FORBIDDEN, M_CANNOT_OVERWRITE_MEDIA.
        """
        media = await self._find_record(server_name, media_id) if server_name == self._server_name else None
        if media is None or _is_expired(media):
            raise NotFound("There is no such media, or it was not uploaded in time")
        if media.user_id != user_id:
            raise Forbidden("This is not yours to upload to")
        if media.sha256 is not None:
            raise _overwrites()

        async def commit(tx: Tx, stored: Media) -> None:
            if not await content_repository.fill(tx, stored):
                raise _overwrites()

        await self._take(user_id, media, upload, commit)
        if media_id in self._awaited:
            self._awaited.pop(media_id).set()

    async def find(
        self, server_name: str, media_id: str, timeout_ms: int = DEFAULT_TIMEOUT_MS, *, allow_remote: bool = True
    ) -> Found:
        """Media of any server, for which its server is asked if need be; what is in quarantine is not there.

        Raises M_NOT_FOUND, M_NOT_YET_UPLOADED (504), M_TOO_LARGE (502), PeerFailed.
        """
        if not is_server_name(server_name) or not is_media_id(media_id):
            raise _unknown()
        timeout_ms = min(timeout_ms, MAX_TIMEOUT_MS)
        if server_name == self._server_name:
            return await self._found(await self._wait_for_upload(media_id, timeout_ms))
        media = await self._find_record(server_name, media_id)
        if media is not None and media.is_quarantined:
            raise _unknown()
        file = None if media is None or media.sha256 is None else await self._files.find(media.sha256)
        self._lookups.note(is_hit=file is not None)
        if media is not None and media.sha256 is not None and file is not None:
            await self._cache.note_use(media)
            return Found(media, media.sha256, file)
        if not allow_remote:
            raise _unknown()
        await self._fetch(server_name, media_id, timeout_ms)
        return await self._found(await self._find_record(server_name, media_id))

    async def find_local(self, media_id: str, timeout_ms: int) -> Found:
        """Media of this server: for other servers."""
        return await self.find(self._server_name, media_id, timeout_ms, allow_remote=False)

    async def forget_unused(self) -> None:
        """Forget IDs that were not used in time, and files that nobody finished."""
        async with self._database.transaction() as tx:
            await content_repository.delete_unused(tx, _now())
        await asyncio.to_thread(self._files.forget_abandoned)

    async def close(self) -> None:
        """End what is being fetched."""
        await background.end([fetch.task for fetch in self._fetches.values()])
        await self._files.close()

    def _new(self, user_id: UserID) -> Media:
        return Media(
            server_name=self._server_name, media_id=secrets.token_urlsafe(24), created_ts=_now(), user_id=user_id
        )

    async def _find_record(self, server_name: str, media_id: str) -> Media | None:
        async with self._database.read() as tx:
            return await content_repository.find(tx, ServerName(server_name), media_id)

    async def _found(self, media: Media | None) -> Found:
        if media is None or media.sha256 is None or media.is_quarantined:
            raise _unknown()
        file = await self._files.find(media.sha256)
        if file is None:
            logger.error("the file of mxc://%s/%s is missing", media.server_name, media.media_id)
            raise _unknown()
        return Found(media, media.sha256, file)

    async def _take(self, user_id: UserID, media: Media, upload: Upload, commit: Commit) -> None:
        """Write to the disk, then commit."""
        _check_filename(upload.filename)
        if upload.length is not None:
            self._check_size(upload.length)
            async with self._database.read() as tx:
                await self._check_quota(tx, user_id, upload.length)
        if self._uploading[user_id] >= MAX_PARALLEL_UPLOADS:
            raise LimitExceeded(5_000)
        self._uploading[user_id] += 1
        try:
            async with self._files.receive() as incoming:
                async for chunk in upload.chunks:
                    self._check_size(incoming.size + len(chunk))
                    await incoming.write(chunk)
                content = await keep(self._database, self._files, incoming)
                self._bytes["user"] += content.size
        finally:
            self._uploading[user_id] -= 1
            if not self._uploading[user_id]:
                del self._uploading[user_id]
        async with self._database.transaction() as tx:
            await content_repository.lock_user(tx, user_id)
            await self._check_quota(tx, user_id, content.size)
            await commit(tx, _filled(media, content, upload.content_type, upload.filename))
            await confirm(tx, content)

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_upload_size:
            raise TooLarge(f"Files may have at most {self.limits.max_upload_size} bytes")

    async def _check_quota(self, tx: Tx, user_id: UserID, size: int) -> None:
        quota = self.limits.max_size_per_user
        if quota is not None and await content_repository.total_size(tx, user_id) + size > quota:
            raise MatrixError(
                "M_USER_LIMIT_EXCEEDED",
                f"All your files together may have at most {quota} bytes",
                403,
                {"info_uri": self.limits.info_uri},
            )

    async def _wait_for_upload(self, media_id: str, timeout_ms: int) -> Media:
        """The record of an ID of ours, once it is uploaded."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            uploaded = self._awaited.get(media_id)
            media = await self._find_record(self._server_name, media_id)
            if media is None or media.is_quarantined or _is_expired(media):
                raise _unknown()
            if media.sha256 is not None:
                return media
            left = deadline - time.monotonic()
            if left <= 0:
                self._awaited.pop(media_id, None)
                raise _not_yet()
            if uploaded is None:  # look again, now that the upload would tell
                self._awaited[media_id] = asyncio.Event()
                continue
            try:
                async with asyncio.timeout(min(left, _POLL_SECONDS)):
                    await uploaded.wait()
            except TimeoutError:
                continue

    async def _fetch(self, server_name: ServerName, media_id: str, timeout_ms: int) -> None:
        """Fetch from another server, once for all who wait; it goes on when they go."""
        key = (server_name, media_id)
        fetch = self._fetches.get(key)
        if fetch is None:
            loop = asyncio.get_running_loop()
            begun: asyncio.Future[None] = loop.create_future()
            task = loop.create_task(self._fetch_and_store(server_name, media_id, timeout_ms, begun))
            fetch = self._fetches[key] = _Fetch(task, begun)
            task.add_done_callback(lambda done: self._end_fetch(key, done))
        await asyncio.wait(
            (fetch.task, fetch.begun),
            timeout=timeout_ms / 1000 + START_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not fetch.task.done() and not fetch.begun.done():
            raise _not_yet()
        await asyncio.shield(fetch.task)

    def _end_fetch(self, key: tuple[ServerName, str], task: "asyncio.Task[None]") -> None:
        del self._fetches[key]
        if not task.cancelled():
            # Whoever waits is told; if nobody does, nobody needs to be.
            self._failed_fetches += task.exception() is not None

    async def _fetch_and_store(
        self, server_name: ServerName, media_id: str, timeout_ms: int, begun: "asyncio.Future[None]"
    ) -> None:
        async with self._turn(server_name, timeout_ms), self._files.receive() as incoming:

            async def take(chunk: bytes) -> None:
                if not begun.done():
                    begun.set_result(None)
                await incoming.write(chunk)

            described = await self._remote.fetch(server_name, media_id, timeout_ms, take)
            content = await keep(self._database, self._files, incoming)
            self._bytes["server"] += content.size
        now_ts = _now()
        media = Media(server_name=server_name, media_id=media_id, created_ts=now_ts, used_ts=now_ts)
        async with self._database.transaction() as tx:
            filled = _filled(media, content, described.content_type, described.filename)
            before = await content_repository.put_remote(tx, filled)
            await confirm(tx, content)
            if before is not None:  # two processes were told different things, or its file was gone
                await media_content.look_at(tx, [before], now_ts)
        self._cache.note_fetched(content.size)

    @asynccontextmanager
    async def _turn(self, server_name: ServerName, timeout_ms: int) -> AsyncIterator[None]:
        """One of the places for fetches, of which servers that are slow take none from others."""
        try:
            async with asyncio.timeout(timeout_ms / 1000 + START_SECONDS):
                turn = await self._turns.take(server_name)
        except TimeoutError:
            raise _not_yet() from None
        try:
            async with turn.until(None):  # how long it may take is for `remote_media.py` to say
                yield
            turn.is_answered = True
        except CutOff:
            raise _not_yet() from None
        finally:
            turn.end()


class _Fetch(Struct, frozen=True):
    """Media on its way from another server."""

    task: "asyncio.Task[None]"
    begun: "asyncio.Future[None]"
    """Done with its first byte."""


def _now() -> int:
    return int(time.time() * 1000)


def _is_expired(media: Media) -> bool:
    return media.sha256 is None and media.unused_expires_ts is not None and media.unused_expires_ts < _now()


def _filled(media: Media, content: Content, content_type: str | None, filename: str | None) -> Media:
    content_type = (content_type or "").strip()
    is_valid = _CONTENT_TYPE.fullmatch(content_type) is not None
    return replace(
        media,
        sha256=content.sha256,
        size=content.size,
        content_type=content_type if is_valid else OCTETS,
        filename=filename or None,
    )


def _check_filename(filename: str | None) -> None:
    if filename is not None and (len(filename.encode(errors="replace")) > MAX_FILENAME_BYTES or "\0" in filename):
        raise InvalidInput("The file name is too long, or holds NUL")


def _overwrites() -> MatrixError:
    return MatrixError("M_CANNOT_OVERWRITE_MEDIA", "This media has been uploaded already", 409)


def _not_yet() -> MatrixError:
    return MatrixError("M_NOT_YET_UPLOADED", "The media has not been uploaded yet, or its server is slow", 504)


def _unknown() -> NotFound:
    return NotFound("There is no such media")
