"""What is kept of other servers' media: as many bytes as the operator allows, those that somebody saw last.

Besides, files go here that no media has any more. Any process may do either at any time, a batch at a time.
"""

import asyncio
import contextlib
import logging

from federation.protocol.errors import Unavailable
from storage import content_repository, media_content
from storage.content_repository import Media
from storage.database import Database
from storage.figures import Figures
from storage.media_files import MediaStore

logger = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
BATCH = 100
USE_MS = 3_600_000
"""Uses are noted as exactly as this."""

MOST_UNNOTICED = 20
"""When a process has fetched this part of what may be kept, it does not wait to look."""

REMOVAL_SECONDS = 300.0
"""For one batch: less than others leave it alone (`media_content.REMOVAL_MS`)."""


class MediaCache:
    """Removes what is too much, and what nobody has."""

    def __init__(self, database: Database, files: MediaStore, *, max_bytes: int | None) -> None:
        self._database = database
        self._files = files
        self._max_bytes = max_bytes
        self._fetched_bytes = 0
        self._wake = asyncio.Event()
        self._forgotten_bytes = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"media_forgotten_bytes_total": self._forgotten_bytes}

    def note_fetched(self, size: int) -> None:
        """So many bytes came from another server."""
        self._fetched_bytes += size
        if self._max_bytes is not None and self._fetched_bytes * MOST_UNNOTICED > self._max_bytes:
            self._wake.set()

    async def note_use(self, media: Media) -> None:
        """Somebody sees this media of another server."""
        now_ts = self._database.now_ms()
        if media.used_ts is not None and media.used_ts < now_ts - USE_MS:
            async with self._database.write() as tx:
                await content_repository.note_use(tx, media, now_ts)

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            self._fetched_bytes = 0
            try:
                await self.run_once()
            except Unavailable:  # logged where it arose
                await asyncio.sleep(1)
            except Exception:
                logger.exception("media that is too much could not be removed; the next turn tries again")

    async def run_once(self) -> None:
        """Forget what is too much, and remove all files that are in no use."""
        await self._forget_oldest()
        while await self._remove_unused():
            pass

    async def delete(self, server_name: str, media_id: str) -> bool:
        """Remove media of any server, with its file if nothing else has its content; whether there was any."""
        async with self._database.transaction() as tx:
            sha256 = await content_repository.delete(tx, server_name, media_id)
            if sha256 is None:
                return False
            await media_content.look_at(tx, [sha256], self._database.now_ms())
        self._wake.set()
        return True

    async def forget_unseen(self, before_ts: int) -> int:
        """Forget what was not uploaded here and nobody has seen since; how many."""
        count = 0
        while True:
            async with self._database.transaction() as tx:
                hashes = await content_repository.forget_unseen(tx, before_ts, BATCH)
                await media_content.look_at(tx, hashes, self._database.now_ms())
            count += len(hashes)
            if len(hashes) < BATCH:
                self._wake.set()
                return count

    async def _forget_oldest(self) -> None:
        excess: int | None = None
        while self._max_bytes is not None:
            async with self._database.transaction() as tx:
                if not await content_repository.try_lock_cache(tx):
                    return
                if excess is None:
                    excess = await content_repository.cached_size(tx) - self._max_bytes
                if excess <= 0:
                    return
                size, hashes = await content_repository.forget_oldest(tx, excess, BATCH)
                if not hashes:
                    return
                await media_content.look_at(tx, hashes, self._database.now_ms())
            excess -= size
            self._forgotten_bytes += size

    async def _remove_unused(self) -> bool:
        """Remove some files; whether there may be more."""
        async with self._database.transaction() as tx:
            looked_at, hashes = await media_content.take_unused(tx, self._database.now_ms(), BATCH)
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                for sha256 in hashes:
                    await self._files.remove(sha256)
        except TimeoutError:
            raise Unavailable("The files of media take too long to be removed") from None
        if hashes:
            async with self._database.transaction() as tx:
                await media_content.forget(tx, hashes)
        return looked_at == BATCH
