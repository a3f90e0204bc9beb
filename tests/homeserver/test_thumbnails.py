"""Thumbnails as clients ask for them, of images that are what they say and of those that are not."""

import asyncio
import dataclasses
import io
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from homeserver.config import Media
from homeserver.services.thumbnails import LADDER, SHAPES, _rounded
from storage import media_files
from tests.client import Answer, Client
from tests.homeserver.test_content_repository import upload
from tests.servers import running


@pytest.fixture
async def carol(conninfo: str, tmp_path: Path) -> AsyncIterator[Client]:
    """A user of a server that takes images of at most a million pixels."""
    async with running(conninfo, media=Media(max_image_pixels=1_000_000), data_directory=tmp_path) as server:
        yield await server.register("carol")


def image(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    output = io.BytesIO()
    Image.new(mode, (width, height), 0).save(output, kind, **options)
    return output.getvalue()


def moving(kind: str, width: int = 200, height: int = 100) -> bytes:
    output = io.BytesIO()
    frames = [Image.new("RGB", (width, height), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(output, kind, save_all=True, append_images=frames[1:], duration=100)
    return output.getvalue()


async def thumbnail(client: Client, place: str, **params: Any) -> Answer:
    client = dataclasses.replace(client, is_held_to_specification=False)
    return await client.get(f"/v1/media/thumbnail/{place}", **params)


def opened(answer: Answer) -> Image.Image:
    assert answer.status == 200, answer.body
    found = Image.open(io.BytesIO(answer.body))
    assert answer.headers["Content-Type"] == f"image/{(found.format or '').lower()}"
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize(
    ("method", "width", "height", "expected"),
    [
        ("crop", 32, 32, (32, 32)),
        ("crop", 96, 96, (96, 96)),
        ("scale", 320, 240, (480, 240)),
        ("scale", 640, 480, (800, 400)),
        ("scale", 800, 600, (800, 400)),
        ("crop", 640, 640, (400, 400)),
    ],
)
async def test_sizes(carol: Client, kind: str, method: str, width: int, height: int, expected: tuple[int, int]) -> None:
    place = await upload(carol, image(800, 400, kind))

    answer = await thumbnail(carol, place, width=width, height=height, method=method)
    assert opened(answer).size == expected
    assert answer.headers["Content-Disposition"].startswith('inline; filename="thumbnail.')
    again = await thumbnail(carol, place, width=width, height=height, method=method)
    assert again.body == answer.body


async def test_a_small_image_is_given_as_it_is(carol: Client) -> None:
    content = image(20, 10)
    place = await upload(carol, content, "text/html")

    answer = await thumbnail(carol, place, width=32, height=32)
    assert (answer.body, answer.headers["Content-Type"]) == (content, "image/png")


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
async def test_a_thumbnail_moves_only_where_that_is_asked_for(carol: Client, kind: str) -> None:
    place = await upload(carol, moving(kind))

    for size in (32, 320):
        moves = opened(await thumbnail(carol, place, width=size, height=size, animated="true"))
        assert getattr(moves, "n_frames", 1) == 3
        for params in ({}, {"animated": "false"}):
            still = opened(await thumbnail(carol, place, width=size, height=size, **params))
            assert getattr(still, "n_frames", 1) == 1


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be huge, of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def test_an_image_that_is_too_large_is_not_decoded(carol: Client) -> None:
    for content in (bomb(50_000, 50_000), image(1001, 1000)):
        answer = await carol.get(f"/v1/media/thumbnail/{await upload(carol, content)}", width=32, height=32)
        assert (answer.status, answer.body["errcode"]) == (413, "M_TOO_LARGE")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html><script>alert(1)</script></html>",
        image(500, 500)[:-300],
        image(500, 500, "JPEG")[:400],
        image(30, 30, "JPEG")[:300],
        image(50, 50, "TIFF"),
        image(50, 50, "BMP"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        bomb(900, 900)[:200],
    ],
    ids=range(10),
)
async def test_what_is_no_image_has_no_thumbnail(carol: Client, content: bytes) -> None:
    place = await upload(carol, content, "image/png")

    answer = await carol.get(f"/v1/media/thumbnail/{place}", width=32, height=32)
    assert (answer.status, answer.body["errcode"]) == (400, "M_UNKNOWN")


@pytest.mark.parametrize(
    "params",
    [
        {"width": "32"},
        {"width": "0", "height": "1"},
        {"width": "-1", "height": "1"},
        {"width": "x", "height": "1"},
        {"width": "1", "height": "1", "method": "stretch"},
        {"width": "1", "height": "1", "animated": "yes"},
    ],
)
async def test_queries_that_mean_nothing_are_refused(carol: Client, params: dict[str, str]) -> None:
    place = await upload(carol, image(50, 50))

    assert (await carol.get(f"/v1/media/thumbnail/{place}", **params)).status == 400


async def test_a_huge_size_is_never_more_than_the_image(carol: Client) -> None:
    place = await upload(carol, image(60, 40, "JPEG"))

    assert opened(await thumbnail(carol, place, width=10_000_000, height=10_000_000)).size == (60, 40)


def test_few_sizes_are_made() -> None:
    sizes = {_rounded(width, height) for width in range(1, 1601, 7) for height in range(1, 1601, 7)}

    assert len(sizes) <= len(LADDER) * (2 * len(SHAPES) - 1)
    for wanted in ((320, 240), (640, 480), (800, 600), (96, 96), (32, 32)):
        assert _rounded(*wanted) == wanted
    assert _rounded(800, 450) == (800, 533)


@pytest.mark.one_process("a limit is lowered here")
async def test_few_thumbnails_of_one_image_are_kept(
    carol: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_files, "MAX_THUMBNAILS", 2)
    place = await upload(carol, image(200, 200, "PNG"))

    for size in (96, 64, 32):
        assert opened(await thumbnail(carol, place, width=size, height=size)).size == (size, size)

    kept = await asyncio.to_thread(lambda: list(tmp_path.glob("media/thumbnails/*/*/*")))
    assert {path.stem.partition("-")[2] for path in kept} == {"32x32-scale-still", "64x64-scale-still"}
    assert opened(await thumbnail(carol, place, width=96, height=96)).size == (96, 96)
