"""Files of one side, which the other fetches: as they are, with their names, and as thumbnails."""

import asyncio
import hashlib
import io
import random

import pytest
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from PIL import Image

from tests.client import Answer, quote
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room

LARGE_BYTES = 8_000_000


async def upload(person: Person, content: bytes, content_type: str, filename: str = "") -> str:
    """The URI of a new file."""
    query = {"filename": filename} if filename else {}
    headers = {"Content-Type": content_type}
    body = await person.client.ok("POST", "/_matrix/media/v3/upload", content, params=query, headers=headers)
    return str(body["content_uri"])


def place_of(uri: str) -> str:
    """The last part of a path: server name and ID."""
    return uri.removeprefix("mxc://")


async def download(person: Person, uri: str, **query: str) -> Answer:
    """Ask for a file."""
    return await person.client.get(f"/v1/media/download/{place_of(uri)}", **query)


async def thumbnail(person: Person, uri: str, method: str, width: int, height: int) -> Image.Image:
    """A thumbnail as an image."""
    path = f"/v1/media/thumbnail/{place_of(uri)}"
    answer = await person.client.get(path, method=method, width=width, height=height)
    assert answer.status == 200, answer
    return Image.open(io.BytesIO(answer.body))


def name_of(answer: Answer) -> str | None:
    """What a browser would call the file."""
    return content_disposition_filename(parse_content_disposition(answer.headers["Content-Disposition"])[1])


def a_picture(width: int, height: int) -> bytes:
    """A PNG, red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content_type", "filename", "kind"),
    [
        ("text/plain", "notes.txt", "inline"),
        ("image/png", "Überblick – 図.png", "inline"),
        ("text/html", "page.html", "attachment"),
        ("application/x-quokka", "", "attachment"),
    ],
)
async def test_a_file_in_a_message_is_fetched_with_its_name_and_type(
    host: Person, guest: Person, content_type: str, filename: str, kind: str
) -> None:
    room_id = await a_shared_room(host, guest)
    content = b"<script>" + random.Random(1).randbytes(3000)
    uri = await upload(host, content, content_type, filename)
    event_id = await host.sends(room_id, "m.room.message", {"msgtype": "m.file", "body": "a file", "url": uri})

    told = (await guest.sees(room_id, event_id))["content"]["url"]
    for _ in range(2):  # from the other server, and from what is kept of it
        answer = await download(guest, told)
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["Content-Type"].partition(";")[0] == content_type  # Synapse names texts' charset
        assert answer.headers["Content-Disposition"].startswith(kind)
        assert name_of(answer) == (filename or None)
        assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_a_large_file_is_fetched_whole_by_many_at_once(host: Person, guest: Person) -> None:
    content = random.Random(2).randbytes(LARGE_BYTES)
    uri = await upload(host, content, "video/mp4", "film.mp4")

    answers = await asyncio.gather(*(download(guest, uri) for _ in range(3)))

    for answer in answers:
        assert answer.status == 200
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content).digest()


async def test_thumbnails_of_the_other_sides_pictures(host: Person, guest: Person) -> None:
    uri = await upload(host, a_picture(1000, 500), "image/png", "picture.png")

    scaled = await thumbnail(guest, uri, "scale", 320, 240)
    cropped = await thumbnail(guest, uri, "crop", 96, 96)

    assert scaled.size[0] == 2 * scaled.size[1]
    assert 320 <= scaled.size[0] < 1000
    assert cropped.size == (96, 96)
    for image in (scaled, cropped):
        width, height = image.size
        pixels = image.convert("RGB").tobytes()[height // 2 * width * 3 :]
        red, blue = pixels[24:27], pixels[(width - 8) * 3 : (width - 7) * 3]
        assert [round(value / 255) for value in red + blue] == [1, 0, 0, 0, 0, 1]


async def test_no_thumbnail_is_made_of_what_is_no_picture(host: Person, guest: Person) -> None:
    uri = await upload(host, b"no picture", "image/png")

    answer = await guest.client.get(f"/v1/media/thumbnail/{place_of(uri)}", method="scale", width=32, height=32)

    assert 400 <= answer.status < 500, answer


async def test_a_file_that_there_is_not(host: Person, guest: Person) -> None:
    status, body = await download(guest, f"mxc://{host.server_name}/nothingOfThisName")

    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


async def test_a_file_is_announced_before_it_is_uploaded(host: Person, guest: Person) -> None:
    uri = (await host.client.ok("POST", "/_matrix/media/v1/create"))["content_uri"]
    if guest.is_ours:  # Synapse, once it is told so, leaves the other server alone for a while
        early = await download(guest, uri, timeout_ms="0")
        assert (early.status, early.body["errcode"]) == (504, "M_NOT_YET_UPLOADED")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(download(guest, uri, timeout_ms="20000"))
        await asyncio.sleep(0.5)
        path = f"/_matrix/media/v3/upload/{'/'.join(map(quote, place_of(uri).split('/')))}"
        await host.client.ok("PUT", path, b"at last", headers={"Content-Type": "text/plain"})

    assert (waiting.result().status, waiting.result().body) == (200, b"at last")
