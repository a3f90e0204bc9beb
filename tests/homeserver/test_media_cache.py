"""What is kept of other servers' media, and which files go."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from federation.outbound.remote_media import Description, RemoteMedia, Take
from federation.protocol.types import ServerName, UserID
from homeserver.config import ByteCount, Media
from homeserver.services.media_cache import MediaCache
from storage.media_files import MediaFiles
from tests.client import Client, Server
from tests.homeserver.test_content_repository import UPLOAD, download, files_below, upload
from tests.homeserver.test_media_in_s3 import an_image
from tests.s3_server import S3Server
from tests.servers import running

pytestmark = pytest.mark.one_process("what other servers have is made up in the process of the tests")

SIZE = 1000


class Elsewhere:
    """Other servers' media: a thousand bytes under every ID, which say how often they were asked for."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.content: dict[str, bytes] = {}

    async def fetch(self, server_name: ServerName, media_id: str, timeout_ms: int, take: Take) -> Description:
        """As RemoteMedia does."""
        self.fetched.append(media_id)
        await take(self.content.setdefault(media_id, os.urandom(SIZE)))
        return Description("image/png", None)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    found = Elsewhere()
    monkeypatch.setattr(RemoteMedia, "fetch", lambda _, *arguments: found.fetch(*arguments))
    return found


@pytest_asyncio.fixture
async def small(conninfo: str, tmp_path: Path, elsewhere: Elsewhere) -> AsyncIterator[tuple[Server, Client]]:
    """A server of its own, and a user."""
    async with running(conninfo, data_directory=tmp_path) as server:
        yield server, await server.register("alice")


async def see(client: Client, *media_ids: str) -> None:
    for media_id in media_ids:
        assert (await download(client, f"elsewhere.test/{media_id}")).status == 200


def cache_of(server: Server) -> MediaCache:
    """One that keeps five of these; the server's own keeps more."""
    media = server.application.media.repository
    return MediaCache(server.application.database, media._files, max_bytes=5 * SIZE)


async def test_what_was_not_seen_for_longest_goes(
    small: tuple[Server, Client], elsewhere: Elsewhere, connection: psycopg.Connection, tmp_path: Path
) -> None:
    server, alice = small
    own = await upload(alice, os.urandom(20 * SIZE))
    names = [f"m{number}" for number in range(7)]
    elsewhere.content["m0"] = elsewhere.content["m6"] = os.urandom(SIZE)  # the same bytes under two names
    for number, name in enumerate(names):
        await see(alice, name)
        connection.execute("update media set used_ts = %s where media_id = %s", (number, name))
    await see(alice, "m1")  # now it is the newest

    await cache_of(server).run_once()

    left = {row[0] for row in connection.execute("select media_id from media where user_id is null")}
    assert left == {"m1", "m3", "m4", "m5", "m6"}
    assert (await download(alice, own)).status == 200
    await see(alice, "m0", "m2", "m6")
    assert [elsewhere.fetched.count(name) for name in ("m0", "m2", "m6")] == [2, 2, 1]


async def test_a_server_looks_by_itself(
    conninfo: str, tmp_path: Path, elsewhere: Elsewhere, connection: psycopg.Connection
) -> None:
    limits = Media(max_remote_cache_size=ByteCount(5 * SIZE))
    async with running(conninfo, media=limits, data_directory=tmp_path) as server:
        alice = await server.register("alice")
        for number in range(12):
            await see(alice, f"m{number}")
        async with asyncio.timeout(20):
            while connection.execute("select sum(size) > %s from media", (5 * SIZE,)).fetchone() != (False,):  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.05)
            while len(files_below(tmp_path / "media" / "content")) > 5:  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.05)


async def test_a_file_goes_with_the_last_media_that_has_it(
    small: tuple[Server, Client], elsewhere: Elsewhere, connection: psycopg.Connection, tmp_path: Path
) -> None:
    server, alice = small
    elsewhere.content["a"] = elsewhere.content["b"] = shared = os.urandom(SIZE)
    elsewhere.content["c"] = os.urandom(SIZE)
    await see(alice, "a", "b", "c")
    own = await upload(alice, shared)
    gone = connection.execute("delete from media where user_id is null returning sha256").fetchall()
    connection.execute("update media_content set check_ts = 1 where sha256 = any(%s)", ([row[0] for row in gone],))

    await cache_of(server).run_once()

    assert (await download(alice, own)).body == shared
    assert len(files_below(tmp_path / "media" / "content")) == 1
    connection.execute("delete from media")
    connection.execute("update media_content set check_ts = 1")
    await cache_of(server).run_once()
    assert files_below(tmp_path / "media" / "content") == []
    assert connection.execute("select count(*) from media_content").fetchone() == (0,)


async def test_what_is_being_stored_is_not_removed(
    small: tuple[Server, Client], connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, alice = small
    content = os.urandom(SIZE)
    keep, kept, may_go_on = MediaFiles.keep, asyncio.Event(), asyncio.Event()

    async def slow(files: MediaFiles, incoming: object) -> object:
        found = await keep(files, incoming)  # type: ignore[arg-type]  # handed on
        kept.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(MediaFiles, "keep", slow)
    uploading = asyncio.create_task(upload(alice, content))
    await kept.wait()
    await cache_of(server).run_once()  # it was claimed
    may_go_on.set()
    assert (await download(alice, await uploading)).body == content

    kept.clear()
    may_go_on.clear()
    late = asyncio.create_task(alice.request("POST", UPLOAD, os.urandom(SIZE)))
    await kept.wait()
    connection.execute("update media_content set check_ts = 1 where check_ts is not null")  # so late that it lapsed
    await cache_of(server).run_once()
    may_go_on.set()
    assert (await late).status == 503  # its file is gone: it is not answered as if it were there


async def test_what_is_being_removed_is_stored_afterwards(
    small: tuple[Server, Client], connection: psycopg.Connection
) -> None:
    _, alice = small
    content = os.urandom(SIZE)
    await upload(alice, content)
    connection.execute("update media_content set is_going = true")

    waiting = asyncio.create_task(upload(alice, content))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    connection.execute("delete from media_content")
    assert (await download(alice, await waiting)).body == content


async def test_quarantine_outlives_the_file(
    small: tuple[Server, Client], elsewhere: Elsewhere, connection: psycopg.Connection
) -> None:
    server, alice = small
    await see(alice, "bad")
    connection.execute("update media_content set quarantined_by = '@admin:hearth.test'")
    connection.execute("delete from media")
    connection.execute("update media_content set check_ts = 1")
    await cache_of(server).run_once()

    assert (await download(alice, await upload(alice, elsewhere.content["bad"]))).status == 404
    assert (await download(alice, "elsewhere.test/bad")).status == 404


async def test_a_bucket_is_rid_of_content_and_thumbnails(
    conninfo: str, tmp_path: Path, connection: psycopg.Connection
) -> None:
    store = S3Server()
    try:
        async with running(conninfo, media=Media(s3=store.settings), data_directory=tmp_path) as server:
            alice = await server.register("alice")
            place = await upload(alice, an_image())
            other = await upload(alice, b"another")
            free = dict(width=32, height=32)
            alice.is_held_to_specification = False
            assert (await alice.get(f"/v1/media/thumbnail/{place}", **free)).status == 200
            connection.execute("delete from media where media_id = %s", (place.partition("/")[2],))
            connection.execute("update media_content set check_ts = 1")
            await cache_of(server).run_once()

            media_store = server.application.media.repository._files
            bucket = media_store._bucket  # type: ignore[attr-defined]  # of S3Media
            assert await bucket.list("thumbnails/") == []
            assert len(await bucket.list("content/")) == 1
            assert (await download(alice, other)).body == b"another"
    finally:
        store.close()


async def test_administrators_remove_media(small: tuple[Server, Client], elsewhere: Elsewhere, tmp_path: Path) -> None:
    server, alice = small
    admin = await server.register("admin")
    await server.application.accounts.service.set_admin(UserID(admin.user_id), is_admin=True)
    base = "/_synapse/admin/v1"
    place = await upload(alice, os.urandom(SIZE))
    kept = await upload(alice, os.urandom(SIZE))
    await see(alice, "a", "b")

    assert (await alice.delete(f"{base}/media/{place}")).status == 403
    assert (await admin.delete(f"{base}/media/{place}")).body["total"] == 1
    assert (await admin.delete(f"{base}/media/{place}")).status == 404
    assert (await download(alice, place)).status == 404
    await admin.ok("POST", f"{base}/media/quarantine/{kept}", {})
    assert (await admin.delete(f"{base}/media/{kept}")).status == 404
    assert (await admin.post(f"{base}/purge_media_cache")).body["errcode"] == "M_MISSING_PARAM"
    assert (await admin.post(f"{base}/purge_media_cache", before_ts="1")).body == {"deleted": 0}
    assert (await admin.post(f"{base}/purge_media_cache", before_ts="99999999999999")).body == {"deleted": 2}

    async with asyncio.timeout(20):
        while len(files_below(tmp_path / "media" / "content")) > 1:  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0.05)
    await see(alice, "a")
    assert elsewhere.fetched.count("a") == 2
