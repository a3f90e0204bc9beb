"""Media fetched from the server that its URI names (Server-Server API, "Content Repository")."""

from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct

from federation.outbound.client import FederationClient, path_of
from federation.outbound.egress import Egress, EgressError, EgressRequest, EgressStream
from federation.protocol.errors import InvalidInput, MatrixError, NotFound, PeerRefused, PeerUnreachable
from federation.protocol.multipart import MultipartReader, boundary_of, filename_of
from federation.protocol.types import ServerName

SECONDS = 300.0
"""In so long all of it must have arrived."""

START_SECONDS = 15.0
"""For reaching a server that has the media, besides the time that it may wait for the upload."""

REDIRECTS = 3
MAX_METADATA_BYTES = 64 * 1024

_FRAMING_BYTES = 128 * 1024
"""What a multipart answer may have besides the media."""

_UNBOUNDED = 1 << 62
"""The limit is counted here, where it is told from a server that fails."""

Take = Callable[[bytes], Awaitable[None]]


class Description(Struct, frozen=True):
    """What the other server says of the media; checked by nobody."""

    content_type: str | None
    filename: str | None


class RemoteMedia:
    """Fetches media. Everything it is told is only passed on."""

    def __init__(self, client: FederationClient, egress: Egress, *, max_bytes: int) -> None:
        self._client = client
        self._egress = egress
        self._max_bytes = max_bytes

    async def fetch(self, server_name: ServerName, media_id: str, timeout_ms: int, take: Take) -> Description:
        """Hand the media's bytes to `take`, piece by piece.

        Raises M_NOT_FOUND, M_NOT_YET_UPLOADED (504), M_TOO_LARGE (502), PeerFailed. What was taken until then is worth
        nothing. A server that does not begin to answer, or any place that it names, is not waited for longer than
        `timeout_ms` and what it takes to reach it.
        """
        try:
            try:
                return await self._fetch(server_name, media_id, timeout_ms, take)
            except PeerRefused as refused:
                if (refused.status, refused.errcode) != (404, "M_UNRECOGNIZED"):
                    raise
                return await self._fetch_without_login(server_name, media_id, timeout_ms, take)
        except PeerRefused as refused:
            raise _failure(refused) from None

    async def _fetch(self, server_name: ServerName, media_id: str, timeout_ms: int, take: Take) -> Description:
        path = path_of("/_matrix/federation/v1/media/download/{}", media_id)
        parts = _Parts(_Counted(take, self._max_bytes))
        async with self._client.stream(
            "GET",
            server_name,
            path,
            query=[("timeout_ms", str(timeout_ms))],
            content_types=("multipart/mixed",),
            timeout=SECONDS,
            starts_within=timeout_ms / 1000 + START_SECONDS,
            max_bytes=_UNBOUNDED,
            patient=True,
        ) as stream:
            _check_length(stream, self._max_bytes + _FRAMING_BYTES)
            try:
                reader = MultipartReader(boundary_of(stream.headers.get("Content-Type", "")))
                async for chunk in stream.chunks():
                    for piece in reader.feed(chunk):
                        await parts.take(piece)
                    if reader.is_whole:
                        break
            except InvalidInput as error:
                raise PeerUnreachable(server_name, f"malformed media: {error.message}") from None
            if not reader.is_whole or parts.number != 2:
                raise PeerUnreachable(server_name, "malformed media: it broke off, or has not two parts")
        location = parts.headers.get("location")
        if location is not None:
            return await self._follow(server_name, location, take)
        return _description(parts.headers)

    async def _follow(self, server_name: ServerName, location: str, take: Take) -> Description:
        """The media from where the server said that it is: any place that requests may go to."""
        request = EgressRequest(
            url=location, max_bytes=_UNBOUNDED, timeout=SECONDS, starts_within=START_SECONDS, redirects=REDIRECTS
        )
        try:
            async with self._egress.stream(request) as stream:
                if stream.status != 200:
                    raise PeerUnreachable(server_name, f"{location} answers with status {stream.status}")
                return await self._take_all(stream, take)
        except EgressError as error:
            raise PeerUnreachable(server_name, str(error)) from None

    async def _fetch_without_login(
        self, server_name: ServerName, media_id: str, timeout_ms: int, take: Take
    ) -> Description:
        """As before version 1.11."""
        path = path_of("/_matrix/media/v3/download/{}/{}", server_name, media_id)
        async with self._client.stream(
            "GET",
            server_name,
            path,
            query=[("allow_remote", "false")],
            content_types=(),
            timeout=SECONDS,
            starts_within=timeout_ms / 1000 + START_SECONDS,
            max_bytes=_UNBOUNDED,
            patient=True,
        ) as stream:
            return await self._take_all(stream, take)

    async def _take_all(self, stream: EgressStream, take: Take) -> Description:
        _check_length(stream, self._max_bytes)
        counted = _Counted(take, self._max_bytes)
        async for chunk in stream.chunks():
            await counted.take(chunk)
        return _description({name.lower(): value for name, value in stream.headers.items()})


class _Counted:
    """Passes bytes on, up to a limit."""

    def __init__(self, take: Take, max_bytes: int) -> None:
        self._take = take
        self._left = max_bytes

    async def take(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_large()
        await self._take(chunk)


class _Parts:
    """The parts of a multipart answer: metadata, which means nothing yet, then the media or where it is."""

    def __init__(self, media: _Counted) -> None:
        self._media = media
        self._metadata_bytes = 0
        self.number = 0
        self.headers: Mapping[str, str] = {}
        """Of the part that came last."""

    async def take(self, piece: Mapping[str, str] | bytes) -> None:
        if not isinstance(piece, bytes):
            self.number += 1
            self.headers = piece
            if self.number > 2:
                raise InvalidInput("more than two parts")
        elif self.number == 2:
            if "location" not in self.headers:
                await self._media.take(piece)
        else:
            self._metadata_bytes += len(piece)
            if self._metadata_bytes > MAX_METADATA_BYTES:
                raise InvalidInput("the metadata is too large")


def _check_length(stream: EgressStream, max_bytes: int) -> None:
    length = stream.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > max_bytes:
        raise _too_large()


def _too_large() -> MatrixError:
    return MatrixError("M_TOO_LARGE", "The media is larger than this server fetches", 502)


def _description(headers: Mapping[str, str]) -> Description:
    disposition = headers.get("content-disposition")
    return Description(headers.get("content-type"), filename_of(disposition) if disposition is not None else None)


def _failure(refused: PeerRefused) -> MatrixError:
    if refused.errcode == "M_NOT_YET_UPLOADED":
        return MatrixError("M_NOT_YET_UPLOADED", "The media has not been uploaded yet", 504)
    if refused.errcode == "M_TOO_LARGE":
        return _too_large()
    if refused.status == 404:
        return NotFound("The media is not known to its server")
    return refused
