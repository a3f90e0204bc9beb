"""Media (Client-Server API, "Content repository").

What users upload is shown by browsers: every answer forbids it to run anything, and what browsers would run is never
shown inline. The old endpoints without a login are frozen: this server never had media from before the freeze.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import NoReturn
from urllib.parse import quote

from aiohttp import web

from federation.protocol.errors import InvalidInput, MatrixError, NotFound
from federation.web import CORS_HEADERS, Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.content_repository import DEFAULT_TIMEOUT_MS, ContentRepository, Upload
from homeserver.services.thumbnails import ThumbnailRequest, Thumbnails
from homeserver.services.url_previews import URLPreviews
from storage.media_files import StoredFile

STALLED_SECONDS = 60
"""For so long an upload may send nothing."""

UPLOAD_SECONDS = 3600
"""In so long it must be here."""

INLINE_TYPES = frozenset(
    (
        "text/css",
        "text/plain",
        "text/csv",
        "application/json",
        "application/ld+json",
        "image/jpeg",
        "image/gif",
        "image/png",
        "image/apng",
        "image/webp",
        "image/avif",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "video/quicktime",
        "audio/mp4",
        "audio/webm",
        "audio/aac",
        "audio/mpeg",
        "audio/ogg",
        "audio/wave",
        "audio/wav",
        "audio/x-wav",
        "audio/x-pn-wav",
        "audio/flac",
        "audio/x-flac",
    )
)
""""Serving inline content": what no browser runs."""

_HEADERS = {
    **CORS_HEADERS,
    "Content-Security-Policy": "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
    " style-src 'unsafe-inline'; object-src 'self';",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, max-age=86400, immutable",
}


class ContentRepositoryAPI:
    """Uploads, downloads, thumbnails."""

    def __init__(self, media: ContentRepository, thumbnails: Thumbnails, previews: URLPreviews) -> None:
        self._media = media
        self._thumbnails = thumbnails
        self._previews = previews

    async def get_config(self, _call: Call) -> Answer:
        """GET /media/config."""
        return {"m.upload.size": self._media.limits.max_upload_size}

    async def upload(self, call: Call) -> Answer:
        """POST /media/v3/upload."""
        who = requester(call)
        who.check_not_suspended()
        return {"content_uri": await self._media.upload(who.user_id, _upload(call))}

    async def create(self, call: Call) -> Answer:
        """POST /media/v1/create."""
        who = requester(call)
        who.check_not_suspended()
        uri, expires_ts = await self._media.create(who.user_id)
        return {"content_uri": uri, "unused_expires_at": expires_ts}

    async def upload_to(self, call: Call) -> Answer:
        """PUT /media/v3/upload/{serverName}/{mediaId}."""
        who = requester(call)
        who.check_not_suspended()
        await self._media.upload_to(who.user_id, call.path["server_name"], call.path["media_id"], _upload(call))
        return {}

    async def download(self, call: Call) -> Answer:
        """GET /media/download/{serverName}/{mediaId} and .../{fileName}."""
        found = await self._media.find(
            call.path["server_name"],
            call.path["media_id"],
            call.query_int("timeout_ms", DEFAULT_TIMEOUT_MS, maximum=1 << 53),
        )
        content_type = found.media.content_type
        kind = "inline" if content_type.partition(";")[0].strip().lower() in INLINE_TYPES else "attachment"
        filename = call.path.get("file_name", found.media.filename)
        return await _answer(call, found.file, content_type, content_disposition(kind, filename))

    async def thumbnail(self, call: Call) -> Answer:
        """GET /media/thumbnail/{serverName}/{mediaId}."""
        request = thumbnail_request(call)
        found = await self._media.find(
            call.path["server_name"],
            call.path["media_id"],
            call.query_int("timeout_ms", DEFAULT_TIMEOUT_MS, maximum=1 << 53),
        )
        made = await self._thumbnails.get(found, request)
        return await _answer(call, made.file, made.content_type, content_disposition("inline", made.filename))

    async def preview(self, call: Call) -> Answer:
        """GET /media/preview_url."""
        url = call.query_text("url")
        if not url:
            raise InvalidInput("url is required", "M_MISSING_PARAM")
        ts = None if call.query_text("ts") is None else call.query_int("ts", 0, maximum=1 << 53)
        return await self._previews.get(requester(call).user_id, url, ts)

    async def refuse_frozen(self, _call: Call) -> NoReturn:
        """The endpoints without a login: all media is from after the freeze."""
        raise NotFound("Media is only given to who is logged in, by /_matrix/client/v1/media")


def thumbnail_request(call: Call) -> ThumbnailRequest:
    """What the query asks for; raises M_INVALID_PARAM, M_MISSING_PARAM."""
    for name in ("width", "height"):
        if call.query_text(name) is None:
            raise InvalidInput(f"{name} is required", "M_MISSING_PARAM")
    method = call.query_text("method") or "scale"
    if method not in ("crop", "scale"):
        raise InvalidInput("method must be crop or scale")
    return ThumbnailRequest(
        width=call.query_int("width", 1, minimum=1, maximum=10_000),
        height=call.query_int("height", 1, minimum=1, maximum=10_000),
        crop=method == "crop",
        animated=call.query_bool("animated"),
    )


def content_disposition(kind: str, filename: str | None) -> str:
    """The header (RFC 6266); a name that is not plain ASCII is given encoded, so that it can end no header."""
    if not filename:
        return kind
    if filename.isascii() and filename.isprintable() and not set(filename) & {'"', "\\", "%"}:
        return f'{kind}; filename="{filename}"'
    return f"{kind}; filename*=utf-8''{quote(filename, safe='', errors='replace')}"


async def _answer(call: Call, file: StoredFile, content_type: str, disposition: str) -> web.StreamResponse:
    headers = {**_HEADERS, "Content-Type": content_type, "Content-Disposition": disposition}
    if file.path is not None:
        return web.FileResponse(file.path, headers=headers)
    return await _pass_on(call.request, file, headers)


async def _pass_on(request: web.BaseRequest, file: StoredFile, headers: dict[str, str]) -> web.StreamResponse:
    """Answer with what is on another machine, or the part that was asked for."""
    first, end, _ = _range(request).indices(file.size)
    if first >= end and file.size:
        return web.Response(status=416, headers={**CORS_HEADERS, "Content-Range": f"bytes */{file.size}"})
    headers = {**headers, "Accept-Ranges": "bytes"}
    if end - first < file.size:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{file.size}"
    response = web.StreamResponse(status=206 if end - first < file.size else 200, headers=headers)
    response.content_length = end - first
    pieces = file.read(first, end)
    async with aclosing(pieces):
        start = await anext(pieces, b"")  # so that what cannot be had is told as an error
        await response.prepare(request)
        await response.write(start)
        async for piece in pieces:
            async with asyncio.timeout(STALLED_SECONDS):
                await response.write(piece)
    await response.write_eof()
    return response


def _range(request: web.BaseRequest) -> slice:
    try:
        return request.http_range
    except ValueError:  # several, or none that make sense: then all of it
        return slice(None)


def _upload(call: Call) -> Upload:
    request = call.request
    return Upload(
        content_type=request.headers.get("Content-Type"),
        filename=call.query_text("filename"),
        length=request.content_length,
        chunks=_chunks(request),
    )


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """The body as it arrives; raises 408 where it does not."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + UPLOAD_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, clock() + STALLED_SECONDS)):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise MatrixError("M_UNKNOWN", "The upload did not arrive in time", 408) from error
        except web.RequestPayloadError as error:
            raise InvalidInput("The body is not what its headers say") from error
        if not chunk:
            return
        yield chunk
