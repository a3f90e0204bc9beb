"""Previews of pages that users write of (Client-Server API, "Content repository", `preview_url`).

Who names the page may be hostile, and so may be who serves it: it is fetched by the egress client, which refuses
private addresses at each step, in bounded time and bytes, and read in a process of its own (`preview_process.py`). Its
image becomes media of this server, so that clients tell no stranger that they look.
"""

import asyncio
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import orjson
from msgspec import Struct
from yarl import URL

from federation.outbound.egress import Egress, EgressError, EgressRequest, EgressStream
from federation.protocol.errors import Forbidden, InvalidInput, MatrixError
from federation.protocol.globs import glob_match
from federation.protocol.types import JsonObject, ServerName, UserID
from homeserver.services import limited_process
from homeserver.services.kept_content import confirm, keep
from storage import background, content_repository, url_previews
from storage.content_repository import Media
from storage.database import Database
from storage.figures import Figures, Lookups
from storage.media_files import MediaStore
from storage.places import Places
from storage.url_previews import StoredPreview

logger = logging.getLogger(__name__)

MAX_URL = 2000
MAX_REDIRECTS = 5
MAX_PAGE_BYTES = 1024 * 1024
"""Of a page, unpacked; what it says of itself is at its beginning, and the rest is not read."""
MAX_FETCHES = 8
MAX_FETCHES_OF_USER = 3
"""Who names slow pages holds up themselves."""
MAX_WAITING = 200
SECONDS = 20.0
"""For a page and its image together, but for waiting."""
PROCESS_SECONDS = 10.0
MAX_PROCESSES = 2
MAX_FOUND_BYTES = 64 * 1024
FAILED_MS = 60_000
"""For so long a page that could not be had is not asked for again."""
KEPT_MS = 7 * 86_400_000
"""For so long after its time an answer is kept for who asks for that time."""
_NEWEST = (1 << 62) - 1
"""After every time."""
MAX_KEPT = 50_000
"""Answers, of which each may take some kilobytes; the oldest go."""

_PAGES = ("text/html", "application/xhtml+xml")
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_ANY_SIZE = 1 << 40
_PROGRAM = Path(__file__).with_name("preview_process.py")
_ACCEPT = "text/html,application/xhtml+xml;q=0.9,image/*;q=0.8,*/*;q=0.1"


class PreviewPolicy(Struct, frozen=True, kw_only=True):
    """What the operator decides."""

    enabled: bool
    allowed_hosts: tuple[str, ...]
    """Small, and with `*` and `?`."""
    denied_hosts: tuple[str, ...]
    accept_language: str
    lifetime_ms: int
    max_image_bytes: int
    max_image_pixels: int


class _Failed(Exception):
    """There is no preview. The text is for the log."""


class URLPreviews:
    """Previews, kept for a while. `close` ends what is being fetched."""

    def __init__(
        self, database: Database, files: MediaStore, egress: Egress, policy: PreviewPolicy, server_name: ServerName
    ) -> None:
        self._database = database
        self._files = files
        self._egress = egress
        self._policy = policy
        self._server_name = server_name
        self._fetches: dict[str, asyncio.Task[bytes | None]] = {}
        self._fetching = Places("url_previews", MAX_FETCHES)
        self._turns: WeakValueDictionary[UserID, asyncio.Semaphore] = WeakValueDictionary()
        self.places = Places("preview_processes", MAX_PROCESSES)
        self._lookups = Lookups("url_previews")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "cache_hits_total": {self._lookups.name: self._lookups.hits},
            "cache_misses_total": {self._lookups.name: self._lookups.misses},
        }

    async def get(self, user_id: UserID, text: str, ts: int | None) -> bytes:
        """The preview's JSON for a user, as it was at that time if that is known; raises M_FORBIDDEN, M_INVALID_PARAM,
        and M_UNKNOWN (502) where the page cannot be had.
        """
        if not self._policy.enabled:
            raise Forbidden("This server makes no previews")
        url = _parse(text)
        if not self._permits(url):
            raise Forbidden("This server makes no previews of that site")
        now_ts = self._database.now_ms()
        wanted_ts = now_ts if ts is None else min(ts, now_ts)
        async with self._database.read() as tx:
            # Of another process, whose clock may be a little ahead, the newest is as new.
            kept = await url_previews.find(tx, str(url), wanted_ts if wanted_ts < now_ts else _NEWEST)
        is_known = kept is not None and kept.expires_ts > wanted_ts
        self._lookups.note(is_hit=is_known)
        answer = kept.answer if kept is not None and is_known else await self._fetch_once(url, user_id)
        if answer is None:
            raise MatrixError("M_UNKNOWN", "There is no preview of this page", 502)
        return answer

    async def forget_old(self) -> None:
        """Forget answers whose time is long over."""
        async with self._database.transaction() as tx:
            await url_previews.delete_old(tx, self._database.now_ms(), KEPT_MS, at_most=MAX_KEPT)

    async def close(self) -> None:
        """End what is being fetched."""
        await background.end(list(self._fetches.values()))
        await self._egress.close()

    def _permits(self, url: URL) -> bool:
        """Whether the settings let us go there; they may name a host as people or as DNS write it (`xn--`)."""
        hosts = {(host or "").lower().rstrip(".") for host in (url.host, url.raw_host)}

        def is_in(globs: tuple[str, ...]) -> bool:
            return any(glob_match(glob, host) for glob in globs for host in hosts)

        return is_in(self._policy.allowed_hosts) and not is_in(self._policy.denied_hosts)

    async def _fetch_once(self, url: URL, user_id: UserID) -> bytes | None:
        """Fetch, once for all who ask for the same; it goes on when they go."""
        key = str(url)
        task = self._fetches.get(key)
        if task is None:
            if len(self._fetches) >= MAX_WAITING:
                raise MatrixError("M_LIMIT_EXCEEDED", "Too many previews are made", 429, {"retry_after_ms": 5000})
            turn = self._turns.setdefault(user_id, asyncio.Semaphore(MAX_FETCHES_OF_USER))
            task = self._fetches[key] = asyncio.get_running_loop().create_task(self._fetch_and_keep(url, turn))
            task.add_done_callback(lambda done: self._end_fetch(key, done))
        return await asyncio.shield(task)

    def _end_fetch(self, key: str, task: "asyncio.Task[bytes | None]") -> None:
        del self._fetches[key]
        if not task.cancelled():
            task.exception()  # whoever waits is told; if nobody does, nobody needs to be

    async def _fetch_and_keep(self, url: URL, turn: asyncio.Semaphore) -> bytes | None:
        answer: bytes | None = None
        lifetime_ms = FAILED_MS
        try:
            async with turn, self._fetching, asyncio.timeout(SECONDS):
                answer = orjson.dumps(await self._preview(url))
                lifetime_ms = self._policy.lifetime_ms
        except (_Failed, EgressError, TimeoutError) as error:
            logger.info("no preview of a page of %s: %s", url.host, str(error) or "it takes too long")
        now_ts = self._database.now_ms()
        preview = StoredPreview(fetched_ts=now_ts, expires_ts=now_ts + lifetime_ms, answer=answer)
        async with self._database.transaction() as tx:
            await url_previews.insert(tx, str(url), preview)
        return answer

    async def _preview(self, url: URL) -> JsonObject:
        async with self._opened(url) as stream:
            content_type, charset = _content_type(stream)
            if content_type in _PAGES:
                with await asyncio.to_thread(_temporary_file) as page:
                    await _copy(stream, page, MAX_PAGE_BYTES, cuts_off=True)
                    found = await self._read(page, "page", charset)
                base = URL(stream.url)
            elif content_type.startswith("image/"):
                return await self._take_image(stream)
            else:
                return {}
        answer: JsonObject = {
            f"og:{name}": found[name]
            for name in ("title", "description", "site_name", "type", "url")
            if isinstance(found.get(name), str)
        }
        image = _image_of(found, base)
        if image is not None and self._permits(image):
            try:
                async with self._opened(image) as stream:
                    answer |= await self._take_image(stream)
            except (_Failed, EgressError) as error:
                logger.info("a preview of %s has no image: %s", url.host, error)
        return answer

    @asynccontextmanager
    async def _opened(self, url: URL) -> AsyncIterator[EgressStream]:
        """What is there in the end; each step has to be permitted."""
        for _ in range(MAX_REDIRECTS + 1):
            request = EgressRequest(
                url=str(url),
                headers={"Accept": _ACCEPT, "Accept-Language": self._policy.accept_language},
                max_bytes=_ANY_SIZE,  # counted where they are read
                timeout=SECONDS,
                allows_http=True,
                allows_compression=True,
            )
            async with self._egress.stream(request) as stream:
                location = stream.headers.get("Location")
                if stream.status not in _REDIRECTS or not location:
                    if stream.status != 200:
                        raise _Failed(f"status {stream.status}")
                    yield stream
                    return
            url = _joined(url, location)
            if not self._permits(url):
                raise _Failed(f"it leads to {url.host}, which is not permitted")
        raise _Failed("it redirects too often")

    async def _take_image(self, stream: EgressStream) -> JsonObject:
        """Make media of it, once it is known to be an image."""
        with await asyncio.to_thread(_temporary_file) as file:
            size = await _copy(stream, file, self._policy.max_image_bytes, cuts_off=False)
            found = await self._read(file, "image", str(self._policy.max_image_pixels))
            content_type, width, height = (found.get(name) for name in ("type", "width", "height"))
            if not isinstance(content_type, str):
                raise _Failed("the image is none, or too large")
            await asyncio.to_thread(file.seek, 0)
            async with self._files.receive() as incoming:
                while chunk := await asyncio.to_thread(file.read, 256 * 1024):
                    await incoming.write(chunk)
                content = await keep(self._database, self._files, incoming)
        now_ts = self._database.now_ms()
        media = Media(
            server_name=self._server_name,
            media_id=secrets.token_urlsafe(24),
            created_ts=now_ts,
            used_ts=now_ts,  # it may go as other servers' media does: whoever looks at the page again makes another
            sha256=content.sha256,
            size=content.size,
            content_type=content_type,
        )
        async with self._database.transaction() as tx:
            await content_repository.insert(tx, media)
            await confirm(tx, content)
        return {
            "og:image": f"mxc://{self._server_name}/{media.media_id}",
            "og:image:type": content_type,
            "og:image:width": width,
            "og:image:height": height,
            "matrix:image:size": size,
        }

    async def _read(self, file: BinaryIO, *arguments: str) -> dict[str, Any]:
        """What the process finds."""
        await asyncio.to_thread(file.seek, 0)
        async with self.places:
            code, output = await limited_process.run(
                _PROGRAM, list(arguments), file, seconds=PROCESS_SECONDS, max_bytes=MAX_FOUND_BYTES
            )
        if code != 0:
            raise _Failed("it cannot be read")
        found: dict[str, Any] = orjson.loads(output)
        return found


def _temporary_file() -> BinaryIO:
    return tempfile.TemporaryFile("w+b", buffering=0)  # it has no name: it goes with the process


def _parse(text: str) -> URL:
    """The page's address; raises M_INVALID_PARAM for what is none."""
    try:
        url = URL(text).with_fragment(None)
    except (ValueError, TypeError):
        url = URL()
    if len(text) > MAX_URL or url.scheme not in ("http", "https") or not url.host or url.user is not None:
        raise InvalidInput("url must be an address with http or https, of at most 2000 characters")
    return url


def _joined(base: URL, text: str) -> URL:
    try:
        return _parse(str(base.join(URL(text))))
    except (ValueError, TypeError, InvalidInput):
        raise _Failed("it leads to no address") from None


def _image_of(found: dict[str, Any], page: URL) -> URL | None:
    """Where the page has its image, if that can be fetched."""
    try:
        if isinstance(found.get("base"), str):
            page = _joined(page, found["base"])
        return _joined(page, found["image"]) if isinstance(found.get("image"), str) else None
    except _Failed:  # such as `data:`
        return None


def _content_type(stream: EgressStream) -> tuple[str, str]:
    """Type and charset, each empty where it is not told."""
    message = Message()
    message["Content-Type"] = stream.headers.get("Content-Type", "")[:500]
    charset = message.get_content_charset() or ""
    return message.get_content_type().lower(), charset if charset.isascii() and charset.isprintable() else ""


async def _copy(stream: EgressStream, file: BinaryIO, max_bytes: int, *, cuts_off: bool) -> int:
    """How many bytes there were; of what has more, only the beginning, or nothing at all."""
    size = 0
    async for chunk in stream.chunks():
        size += len(chunk)
        if size > max_bytes and not cuts_off:
            raise _Failed(f"it has more than {max_bytes} bytes")
        await asyncio.to_thread(file.write, chunk)
        if size >= max_bytes:
            break
    return size
