"""Media of this server for others (Server-Server API, "Content Repository"): metadata and bytes as two parts."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable

from msgspec import Struct

from federation.inbound.authentication import FederationCall
from federation.inbound.streaming import stream
from federation.web import Answer, Call
from storage.media_files import StoredFile

PIECE_BYTES = 256 * 1024


class ServedFile(Struct, frozen=True):
    """A file, and how it is described; the texts are fit for headers."""

    file: StoredFile
    content_type: str
    disposition: str


class MediaAnswers(Struct, frozen=True):
    """Who knows: each raises M_NOT_FOUND, M_NOT_YET_UPLOADED (504), and what is wrong with the query."""

    download: Callable[[str, Call], Awaitable[ServedFile]]
    thumbnail: Callable[[str, Call], Awaitable[ServedFile]]


class FederationMediaAPI:
    """Downloads and thumbnails of this server's own media."""

    def __init__(self, answers: MediaAnswers) -> None:
        self._answers = answers

    async def download(self, call: FederationCall) -> Answer:
        """GET /media/download/{mediaId}."""
        return await _answer(call, await self._answers.download(call.path["media_id"], call))

    async def thumbnail(self, call: FederationCall) -> Answer:
        """GET /media/thumbnail/{mediaId}."""
        return await _answer(call, await self._answers.thumbnail(call.path["media_id"], call))


async def _answer(call: FederationCall, file: ServedFile) -> Answer:
    boundary = secrets.token_hex(24)
    return await stream(call.request, _parts(file, boundary), f"multipart/mixed; boundary={boundary}")


async def _parts(file: ServedFile, boundary: str) -> AsyncGenerator[bytes, None]:
    yield (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        f"--{boundary}\r\nContent-Type: {file.content_type}\r\nContent-Disposition: {file.disposition}\r\n\r\n"
    ).encode()
    async for piece in file.file.read():
        yield piece
    yield f"\r\n--{boundary}--\r\n".encode()
