"""Media as clients upload and download it, and what hostile users try with it."""

import asyncio
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import psycopg
import pytest

from homeserver.config import ByteCount, Media
from tests.client import Answer, Client, Server, quote
from tests.servers import TEST_CONFIG, running

UPLOAD = "/_matrix/media/v3/upload"


async def upload(client: Client, content: bytes, content_type: str | None = "image/png", **query: str) -> str:
    """The path of what was uploaded: server and media ID."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    options: dict[str, Any] = {"headers": headers, "params": query}
    body = await client.ok("POST", UPLOAD, content, **options)
    uri: str = body["content_uri"]
    assert uri.startswith("mxc://hearth.test/")
    return uri.removeprefix("mxc://")


async def download(client: Client, place: str, **headers: str) -> Answer:
    client = dataclasses.replace(client, is_held_to_specification=False)
    return await client.request("GET", f"/v1/media/download/{place}", headers=headers)


def files_below(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file()]


async def test_what_is_uploaded_is_downloaded(server: Server, alice: Client, bob: Client) -> None:
    content = bytes(range(256)) * 5000
    place = await upload(alice, content, filename="cat.png")
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register?kind=guest", {}))

    for reader in (alice, bob, guest):
        answer = await download(reader, place)
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == 'inline; filename="cat.png"'
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'; script-src 'none'")


async def test_nobody_reads_or_writes_media_without_a_login(server: Server, alice: Client) -> None:
    place = await upload(alice, b"secret")

    assert (await download(server.anonymous, place)).status == 401
    assert (await server.anonymous.request("POST", UPLOAD, b"x")).status == 401
    for path in ("download", "thumbnail"):
        answer = await alice.get(f"/_matrix/media/v3/{path}/{place}", width=1, height=1)
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
    assert (await server.anonymous.get(f"/_matrix/media/r0/download/{place}/x.png")).status == 404


async def test_the_name_in_the_path_is_the_name_of_the_file(alice: Client) -> None:
    place = await upload(alice, b"x", filename="a.png")

    answer = await download(alice, place + "/" + quote("ä\r\nX: y.png"))
    assert answer.headers["Content-Disposition"] == "inline; filename*=utf-8''%C3%A4%0D%0AX%3A%20y.png"
    assert "X" not in answer.headers


@pytest.mark.parametrize(
    ("content_type", "served", "disposition"),
    [
        ("text/html", "text/html", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("application/xhtml+xml", "application/xhtml+xml", "attachment"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8", "inline"),
        ("IMAGE/PNG", "IMAGE/PNG", "inline"),
        ("image/png, text/html", "application/octet-stream", "attachment"),
        ("nonsense", "application/octet-stream", "attachment"),
    ],
)
async def test_what_a_browser_would_run_is_never_inline(
    alice: Client, content_type: str, served: str, disposition: str
) -> None:
    answer = await download(alice, await upload(alice, b"<script>alert(1)</script>", content_type))

    assert answer.headers["Content-Type"] == served
    assert answer.headers["Content-Disposition"] == disposition


async def test_a_part_can_be_asked_for(alice: Client) -> None:
    place = await upload(alice, b"0123456789")

    answer = await download(alice, place, Range="bytes=2-4")
    assert (answer.status, answer.body, answer.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert (await download(alice, place, Range="bytes=50-60")).status == 416


@pytest.mark.parametrize(
    "media_id",
    [
        "..%2f..%2fsigning.key",
        "%2e%2e",
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "a%2f..%2fb",
        "x" * 300,
        "%e2%80%ae",
        "unknown",
        "a.b",
    ],
)
async def test_an_id_names_no_other_file(server: Server, alice: Client, media_id: str) -> None:
    for server_name in (server.name, "..", "nobody.test:99999999", "%2e%2e%2f"):
        answer = await alice.get(f"/v1/media/download/{server_name}/{media_id}")
        assert answer.status in (400, 404, 502), answer
    answer = await alice.request("PUT", f"{UPLOAD}/{server.name}/{media_id}", b"x")
    assert answer.status == 404


async def test_files_are_named_by_what_they_hold(alice: Client) -> None:
    content = alice.user_id.encode() * 10
    await upload(alice, content, filename="../../../../../tmp/evil")
    name = hashlib.sha256(content).hexdigest()

    media = TEST_CONFIG.data_directory / "media"
    assert (media / "content" / name[:2] / name[2:4] / name).read_bytes() == content
    assert list((media / "incoming").iterdir()) == []


async def test_an_id_is_taken_first_and_uploaded_to_later(server: Server, alice: Client, bob: Client) -> None:
    created = await alice.ok("POST", "/_matrix/media/v1/create", {})
    place = created["content_uri"].removeprefix("mxc://")

    early = await alice.get(f"/v1/media/download/{place}", timeout_ms=10)
    assert (early.status, early.body["errcode"]) == (504, "M_NOT_YET_UPLOADED")
    foreign = await bob.request("PUT", f"{UPLOAD}/{place}", b"mine now")
    assert (foreign.status, foreign.body["errcode"]) == (403, "M_FORBIDDEN")

    waiting = asyncio.create_task(download(bob, place))
    await asyncio.sleep(0.2)
    assert (
        await alice.request("PUT", f"{UPLOAD}/{place}", b"here", headers={"Content-Type": "text/plain"})
    ).status == 200
    assert ((await waiting).body) == b"here"
    again = await alice.request("PUT", f"{UPLOAD}/{place}", b"other")
    assert (again.status, again.body["errcode"]) == (409, "M_CANNOT_OVERWRITE_MEDIA")


async def test_an_id_lapses_when_it_is_not_used(conninfo: str, connection: psycopg.Connection) -> None:
    async with running(conninfo) as server:
        alice = await server.register("alice")
        created = await alice.ok("POST", "/_matrix/media/v1/create", {})
        place = created["content_uri"].removeprefix("mxc://")
        connection.execute("update media set unused_expires_ts = 1")

        assert (await alice.request("PUT", f"{UPLOAD}/{place}", b"late")).status == 404
        assert (await alice.get(f"/v1/media/download/{place}")).status == 404
        await server.application.media.repository.forget_unused()
        assert connection.execute("select count(*) from media").fetchone() == (0,)


async def test_a_user_holds_only_so_many_unused_ids(alice: Client) -> None:
    answers = [await alice.post("/_matrix/media/v1/create") for _ in range(51)]

    assert [answer.status for answer in answers] == [200] * 50 + [429]


async def test_limits(conninfo: str, tmp_path: Path) -> None:
    limits = Media(max_upload_size=ByteCount(1000), max_size_per_user=ByteCount(1500))
    async with running(conninfo, media=limits, data_directory=tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        assert (await alice.get("/v1/media/config")).body == {"m.upload.size": 1000}
        assert (await alice.get("/_matrix/media/v3/config")).body == {"m.upload.size": 1000}

        claimed = await alice.request("POST", UPLOAD, b"x" * 1001)
        assert (claimed.status, claimed.body["errcode"]) == (413, "M_TOO_LARGE")

        async def pieces() -> Any:
            for _ in range(3):
                yield b"x" * 400

        url = server.base_url + UPLOAD
        headers = {"Authorization": f"Bearer {alice.access_token}"}
        async with alice.session.post(url, data=pieces(), headers=headers) as response:
            assert (response.status, (await response.json())["errcode"]) == (413, "M_TOO_LARGE")
        assert not files_below(tmp_path)

        await upload(alice, b"x" * 1000)
        full = await alice.request("POST", UPLOAD, b"y" * 501)
        assert (full.status, full.body["errcode"]) == (403, "M_USER_LIMIT_EXCEEDED")
        assert full.body["info_uri"].startswith("http")
        await upload(alice, b"y" * 500)
        await upload(bob, b"z" * 1000)


async def test_parallel_uploads_share_one_quota(conninfo: str) -> None:
    async with running(
        conninfo, media=Media(max_upload_size=ByteCount(1000), max_size_per_user=ByteCount(1500))
    ) as server:
        alice = await server.register("alice")
        answers = await asyncio.gather(*(alice.request("POST", UPLOAD, bytes([n]) * 1000) for n in range(5)))
        assert sorted(answer.status for answer in answers) == [200, 403, 403, 403, 403]


async def test_an_upload_that_breaks_off_leaves_nothing(conninfo: str, tmp_path: Path) -> None:
    async with running(conninfo, data_directory=tmp_path) as server:
        alice = await server.register("alice")
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.application.ports[0])
        writer.write(
            f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.access_token}\r\n"
            f"Content-Length: 1000000\r\n\r\n".encode()
            + b"x" * 500_000
        )
        await writer.drain()
        await asyncio.sleep(0.3)
        assert files_below(tmp_path)
        writer.close()
        async with asyncio.timeout(5):
            while files_below(tmp_path):  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.05)


async def test_media_whose_file_is_gone_is_not_found(conninfo: str, tmp_path: Path) -> None:
    async with running(conninfo, data_directory=tmp_path) as server:
        alice = await server.register("alice")
        place = await upload(alice, b"x")
        for file in files_below(tmp_path):
            file.unlink()
        assert (await download(alice, place)).status == 404
