"""Media in an S3-compatible store: machines that have no file in common serve each other's."""

import asyncio
import dataclasses
import hashlib
import io
import random
import re
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from PIL import Image

from homeserver import media_commands
from homeserver.config import S3, ByteCount, Media
from homeserver.media_commands import NotMovedError
from storage import media_files
from tests.client import Server
from tests.federation.authority import Authority
from tests.federation.servers import federating
from tests.homeserver.test_content_repository import download, files_below, upload
from tests.homeserver.test_sync_equivalence import at
from tests.s3_server import BUCKET, S3Server
from tests.servers import TEST_CONFIG, running

LARGE = 48 * 1024 * 1024


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    """One for all tests of this module: what is in it is named by its hash."""
    server = S3Server()
    yield server
    server.close()


def media_in(store: S3Server) -> Media:
    return Media(s3=store.settings, max_upload_size=ByteCount(LARGE))


def an_image(seed: int = 1) -> bytes:
    file = io.BytesIO()
    noise = random.Random(seed).randbytes(300 * 200 * 3)
    Image.frombytes("RGB", (300, 200), noise).save(file, "PNG")
    return file.getvalue()


async def test_what_one_machine_takes_another_gives(conninfo: str, store: S3Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    async with (
        running(conninfo, media=media_in(store), data_directory=tmp_path / "one") as one,
        running(conninfo, media=media_in(store), data_directory=tmp_path / "other") as other,
    ):
        alice = await one.register("alice")
        place = await upload(alice, content, filename="cat.png")
        there = at(other, alice)

        for reader in (alice, there):
            answer = await download(reader, place)
            assert (answer.status, answer.body) == (200, content)
            assert answer.headers["Content-Disposition"] == 'inline; filename="cat.png"'
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for asked, told in (("2-4", "2-4"), ("-5", "255995-255999"), ("255999-", "255999-255999")):
            answer = await download(there, place, Range=f"bytes={asked}")
            first, last = map(int, told.split("-"))
            assert (answer.status, answer.body) == (206, content[first : last + 1])
            assert answer.headers["Content-Range"] == f"bytes {told}/256000"
        assert (await download(there, place, Range="bytes=300000-")).status == 416
        assert (await download(there, place, Range="bytes=nonsense")).body == content
        empty = await upload(alice, b"")
        assert (await download(there, empty)).body == b""
        assert files_below(tmp_path) == []


async def test_a_thumbnail_is_made_once_for_all_machines(
    conninfo: str, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(conninfo, media=media_in(store), data_directory=tmp_path / "one") as one,
        running(conninfo, media=media_in(store), data_directory=tmp_path / "other") as other,
    ):
        alice = await one.register("alice")
        place = await upload(alice, an_image())
        path = f"/v1/media/thumbnail/{place}?width=32&height=32&method=scale"
        made = await dataclasses.replace(alice, is_held_to_specification=False).get(path)
        monkeypatch.setattr(other.application.media.thumbnails, "_run", None)  # it need not be made again
        found = await dataclasses.replace(at(other, alice), is_held_to_specification=False).get(path)

        assert (made.status, found.status) == (200, 200)
        assert found.body == made.body
        assert Image.open(io.BytesIO(found.body)).size == (48, 32)
        assert found.headers["Content-Type"] == made.headers["Content-Type"] == "image/png"


@pytest.mark.one_process("a limit is lowered here")
async def test_few_thumbnails_of_one_image_are_kept(
    conninfo: str, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_files, "MAX_THUMBNAILS", 2)
    async with running(conninfo, media=media_in(store), data_directory=tmp_path) as server:
        alice = dataclasses.replace(await server.register("alice"), is_held_to_specification=False)
        place = await upload(alice, content := an_image(seed=2))
        for size in (16, 32, 48):
            path = f"/v1/media/thumbnail/{place}?width={size}&height={size}&method=crop"
            assert (await alice.get(path)).status == 200
        prefix = f"thumbnails/{hashlib.sha256(content).hexdigest()}"
        async with alice.session.get(f"{store.url}/{BUCKET}?list-type=2&prefix={prefix}") as answer:
            kept = re.findall("<Key>([^<]*)</Key>", await answer.text())

    assert len(kept) == 2
    assert any("-48x48-" in key for key in kept)


async def test_large_media_passes_through_in_pieces(conninfo: str, store: S3Server, tmp_path: Path) -> None:
    piece = bytes(65_536)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LARGE // len(piece)):
            yield piece

    async with running(conninfo, media=media_in(store), data_directory=tmp_path) as server:
        alice = await server.register("alice")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        headers = {"Authorization": f"Bearer {alice.access_token}"}
        async with alice.session.post(
            f"{server.base_url}/_matrix/media/v3/upload", data=pieces(), headers=headers
        ) as answer:
            place = (await answer.json())["content_uri"].removeprefix("mxc://")
        size = 0
        async with alice.session.get(
            f"{server.base_url}/_matrix/client/v1/media/download/{place}", headers=headers
        ) as answer:
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                await asyncio.sleep(0)

        assert size == LARGE
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LARGE / 2


async def test_other_servers_get_it_too_and_what_is_theirs_is_kept_there(
    maintenance_conninfo: str, store: S3Server, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    async with (
        federating(maintenance_conninfo, authority, media=media_in(store), data_directory=tmp_path / "a") as near,
        federating(maintenance_conninfo, authority, media=media_in(store), data_directory=tmp_path / "b") as far,
    ):
        alice, bob = await near.register("alice"), await far.register("bob")
        content = random.Random(2).randbytes(300_000)
        body = await alice.ok("POST", "/_matrix/media/v3/upload", content)
        place = body["content_uri"].removeprefix("mxc://")

        assert (await download(bob, place)).body == content
        assert files_below(tmp_path / "a" / "media") == files_below(tmp_path / "b" / "media") == []


async def test_without_the_store_nothing_is_taken_and_nothing_lost(
    conninfo: str, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.s3.FIRST_PAUSE_SECONDS", 0.01)
    async with running(conninfo, media=media_in(store), data_directory=tmp_path) as server:
        alice = await server.register("alice")
        place = await upload(alice, b"kept")
    away = Media(s3=dataclasses.replace(store.settings, endpoint="http://127.0.0.1:9"))
    async with running(conninfo, media=away, data_directory=tmp_path) as server:
        there = at(server, alice)
        assert (await download(there, place)).status == 503
        assert (await there.request("POST", "/_matrix/media/v3/upload", b"new")).status == 503
        assert files_below(tmp_path) == []
    async with running(conninfo, media=media_in(store), data_directory=tmp_path) as server:
        assert (await download(at(server, alice), place)).body == b"kept"


async def test_media_moves_to_the_store_while_it_is_served(conninfo: str, store: S3Server, tmp_path: Path) -> None:
    async with running(conninfo, data_directory=tmp_path) as server:
        alice = await server.register("alice")
        contents = [f"file {number}".encode() for number in range(5)]
        places = [await upload(alice, content) for content in contents]

    async def served(server: Server) -> list[bytes]:
        return [(await download(at(server, alice), place)).body for place in places]

    config = dataclasses.replace(TEST_CONFIG, data_directory=tmp_path, media=media_in(store))
    async with running(conninfo, media=config.media, data_directory=tmp_path) as server:
        assert await served(server) == contents
        assert len(files_below(tmp_path / "media")) == 5
        said = await asyncio.to_thread(media_commands.move, config)
        assert said == "5 files with 30 bytes are now in the bucket hearth."
        assert await served(server) == contents
        assert files_below(tmp_path / "media") == []
    assert (await asyncio.to_thread(media_commands.move, config)).startswith("0 files")


def test_where_there_is_no_store_nothing_moves(tmp_path: Path) -> None:
    config = dataclasses.replace(TEST_CONFIG, data_directory=tmp_path)
    with pytest.raises(NotMovedError, match=r"set `media.s3`"):
        media_commands.move(config)


def test_a_store_is_named_as_a_whole() -> None:
    assert [name for name, _ in S3(endpoint="https://s3.example.org").complaints()] == [
        "bucket",
        "access_key",
        "secret_key",
    ]
    assert next(name for name, _ in S3(endpoint="s3.example.org", bucket="b").complaints()) == "endpoint"
    assert list(S3().complaints()) == []
