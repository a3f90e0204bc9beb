"""Thumbnails, made in a process of their own that has little memory and little time (`thumbnail_process.py`).

They are kept on the disk under the hash of what they were made from. The sizes that are made are few, so that nobody
fills the disk by asking for one pixel more each time.
"""

from pathlib import Path

from msgspec import Struct

from federation.protocol.errors import InvalidInput, MatrixError, TooLarge
from federation.protocol.types import ServerName
from homeserver.services import limited_process
from homeserver.services.content_repository import Found
from storage.media_files import EXTENSIONS, MediaStore, StoredFile, opened
from storage.places import Places

SECONDS = 30.0
"""After which a process is killed."""

MAX_PROCESSES = 2
MAX_WAITING = 100
MAX_RESULT_BYTES = 20 * 1024 * 1024
LADDER = (16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 400, 480, 600, 640, 800, 1024, 1280, 1600)
"""Of the larger side; more than the last is cut to it."""
SHAPES = (1 / 4, 1 / 2, 2 / 3, 3 / 4, 1)
"""What the smaller side is of the larger."""

_PROGRAM = Path(__file__).with_name("thumbnail_process.py")
_TOO_LARGE, _ORIGINAL = 3, 5


class ThumbnailRequest(Struct, frozen=True):
    """What somebody wants."""

    width: int
    height: int
    crop: bool
    animated: bool


class Thumbnail(Struct, frozen=True):
    """A file with an image."""

    file: StoredFile
    content_type: str

    @property
    def filename(self) -> str:
        """What to call it."""
        return f"thumbnail.{EXTENSIONS[self.content_type]}"


class Thumbnails:
    """Makes and keeps them."""

    def __init__(self, files: MediaStore, server_name: ServerName, *, max_pixels: int) -> None:
        self._files = files
        self._server_name = server_name
        self._max_pixels = max_pixels
        self.places = Places("thumbnails", MAX_PROCESSES)
        self._waiting = 0

    async def get(self, found: Found, request: ThumbnailRequest) -> Thumbnail:
        """A thumbnail of an image; the image itself where it is small enough.

        Raises M_UNKNOWN (400) for what is no image, M_TOO_LARGE (413, or 502 for another server's).
        """
        width, height = _rounded(request.width, request.height)
        variant = f"{width}x{height}-{'crop' if request.crop else 'scale'}-{'moving' if request.animated else 'still'}"
        kept = await self._files.find_thumbnail(found.sha256, variant)
        if kept is not None:
            return Thumbnail(*kept)
        if self._waiting >= MAX_WAITING:
            raise MatrixError("M_LIMIT_EXCEEDED", "Too many thumbnails are being made", 429, {"retry_after_ms": 5000})
        self._waiting += 1
        try:
            async with self.places:
                code, output = await self._run(
                    found.file,
                    str(width),
                    str(height),
                    "crop" if request.crop else "scale",
                    "1" if request.animated else "0",
                    str(self._max_pixels),
                )
        finally:
            self._waiting -= 1
        if code == _TOO_LARGE:
            raise self._too_large(found)
        head, _, data = output.partition(b"\n")
        content_type = head.decode(errors="replace")
        if code not in (0, _ORIGINAL) or content_type not in EXTENSIONS:
            raise InvalidInput("There can be no thumbnail of this media", "M_UNKNOWN")
        if code == _ORIGINAL:
            return Thumbnail(found.file, content_type)
        return Thumbnail(await self._files.put_thumbnail(found.sha256, variant, data, content_type), content_type)

    async def _run(self, image: StoredFile, *arguments: str) -> tuple[int, bytes]:
        """The exit code and the output of the process."""
        async with opened(image) as file:
            return await limited_process.run(
                _PROGRAM, list(arguments), file, seconds=SECONDS, max_bytes=MAX_RESULT_BYTES
            )

    def _too_large(self, found: Found) -> MatrixError:
        if found.media.server_name == self._server_name:
            return TooLarge("The image is too large to make a thumbnail of it")
        return MatrixError("M_TOO_LARGE", "The image is too large to make a thumbnail of it", 502)


def _rounded(width: int, height: int) -> tuple[int, int]:
    """The sizes of which thumbnails are made: the next in the ladder, and in the next shape that is no narrower."""
    larger, smaller = max(width, height), min(width, height)
    step = next((each for each in LADDER if each >= larger), LADDER[-1])
    other = round(step * next(shape for shape in SHAPES if shape * larger >= smaller))
    return (step, other) if width >= height else (other, step)
