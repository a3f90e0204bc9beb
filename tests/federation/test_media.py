"""Media between servers: two of ours, and peers that lie."""

import asyncio
import dataclasses
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image

from federation.outbound import remote_media
from federation.protocol.multipart import MultipartReader, boundary_of
from homeserver.config import ByteCount, Media
from homeserver.services import content_repository
from tests.client import Answer, Client, Server
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer
from tests.federation.peer import Peer
from tests.federation.servers import Pair, federating
from tests.homeserver.test_thumbnails import moving

UPLOAD = "/_matrix/media/v3/upload"


async def upload(client: Client, content: bytes, content_type: str = "image/png", filename: str = "cat.png") -> str:
    body = await client.ok(
        "POST", UPLOAD, content, headers={"Content-Type": content_type}, params={"filename": filename}
    )
    uri: str = body["content_uri"]
    return uri.removeprefix("mxc://")


async def download(client: Client, place: str, **params: str) -> Answer:
    client = dataclasses.replace(client, is_held_to_specification=False)
    return await client.request("GET", f"/v1/media/download/{place}", params=params)


class MediaPeer(ListeningPeer):
    """A peer that answers for its media with what a test says, by path."""

    def __init__(self, server: Server, authority: Authority) -> None:
        super().__init__(server, authority)
        self.media: web.Response | None = None
        self.old: web.Response | None = None
        self.asked: list[str] = []
        self.speaks = asyncio.Event()
        """Until it is set the peer takes requests for media and is silent."""
        self.speaks.set()

    def routes(self, application: web.Application) -> None:
        """Both ways to media, and a place to be sent to."""
        application.router.add_get("/_matrix/federation/v1/media/download/{media_id}", self._media)
        application.router.add_get("/_matrix/media/v3/download/{server}/{media_id}", self._old)

    async def _media(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        self._came.set()
        await self.speaks.wait()
        if request.transport is None:  # who asked has gone
            return web.Response()
        return self.media or web.json_response({"errcode": "M_UNRECOGNIZED", "error": "no"}, status=404)

    async def _old(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return self.old or web.json_response({"errcode": "M_NOT_FOUND", "error": "no"}, status=404)


@asynccontextmanager
async def media_peer(server: Server, authority: Authority) -> AsyncIterator[MediaPeer]:
    peer = MediaPeer(server, authority)
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


@pytest.fixture
async def small(
    maintenance_conninfo: str, authority: Authority, tmp_path: Path
) -> AsyncIterator[tuple[Server, Client]]:
    """A server that fetches at most 10,000 bytes, and a user."""
    limits = Media(max_remote_size=ByteCount(10_000))
    async with federating(maintenance_conninfo, authority, media=limits, data_directory=tmp_path) as server:
        yield server, await server.register("alice")


def multipart(body: bytes, headers: str = "Content-Type: image/png\r\n") -> web.Response:
    content = b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n" + headers.encode() + b"\r\n" + body
    return web.Response(body=content + b"\r\n--b--\r\n", headers={"Content-Type": "multipart/mixed; boundary=b"})


async def test_media_of_another_server_is_fetched_once(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    content = os.urandom(700_000) + b"\r\n--" + os.urandom(10)
    place = await upload(alice, content, filename="käse.png")

    for _ in range(2):
        answer = await download(bob, place)
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == "inline; filename*=utf-8''k%C3%A4se.png"


async def test_media_that_is_not_there_is_not_found(pair: Pair) -> None:
    bob = await pair.far.register("bob")

    answer = await bob.get(f"/v1/media/download/{pair.near.name}/unknown")
    assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_an_upload_is_awaited_across_servers(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    created = await alice.ok("POST", "/_matrix/media/v1/create", {})
    place = created["content_uri"].removeprefix("mxc://")

    early = await bob.get(f"/v1/media/download/{place}", timeout_ms=10)
    assert (early.status, early.body["errcode"]) == (504, "M_NOT_YET_UPLOADED")
    await alice.ok("PUT", f"{UPLOAD}/{place}", b"here")
    assert (await download(bob, place)).body == b"here"  # and the server was not taken for one that is away


async def test_only_servers_that_sign_get_media_and_only_ours(server: Server, alice: Client) -> None:
    media_id = (await upload(alice, b"bytes")).partition("/")[2]
    peer = await Peer(server).trust()

    answer = await peer.request("GET", f"/v1/media/download/{media_id}")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("multipart/mixed; boundary=")
    assert answer.body.count(b"bytes") == 1
    assert b'Content-Disposition: attachment; filename="cat.png"' in answer.body
    assert (await peer.request("GET", "/v1/media/download/..%2f..%2fsigning.key")).status == 404
    unsigned = await server.anonymous.get(f"/_matrix/federation/v1/media/download/{media_id}")
    assert unsigned.status == 401


@pytest.mark.parametrize(("animated", "frames"), [("true", 3), ("false", 1)])
async def test_servers_get_thumbnails_too(server: Server, alice: Client, animated: str, frames: int) -> None:
    media_id = (await upload(alice, moving("GIF"), "image/gif", "cat.gif")).partition("/")[2]
    peer = await Peer(server).trust()
    path, query = f"/v1/media/thumbnail/{media_id}", {"width": "32", "height": "32", "method": "crop"}

    answer = await peer.request("GET", path, **query, animated=animated)

    assert answer.status == 200
    reader = MultipartReader(boundary_of(answer.headers["Content-Type"]))
    metadata, empty, described, *pieces = reader.feed(answer.body)
    assert (reader.is_whole, metadata, empty) == (True, {"content-type": "application/json"}, b"{}")
    made = Image.open(io.BytesIO(b"".join(piece for piece in pieces if isinstance(piece, bytes))))
    assert (made.size, getattr(made, "n_frames", 1)) == ((32, 32), frames)
    assert not isinstance(described, bytes)
    assert described["content-type"] == f"image/{(made.format or '').lower()}"


async def test_thumbnails_that_make_no_sense_are_refused(server: Server, alice: Client) -> None:
    media_id = (await upload(alice, b"a text", "text/plain", "a.txt")).partition("/")[2]
    peer, path = await Peer(server).trust(), "/v1/media/thumbnail/"
    good = {"width": "32", "height": "32"}

    refused = [
        await peer.request("GET", path + media_id, **good),
        await peer.request("GET", path + media_id, width="32"),
        await peer.request("GET", path + media_id, width="32", height="-1"),
        await peer.request("GET", path + media_id, **good, method="stretch"),
    ]

    assert [answer.status for answer in refused] == [400] * 4
    assert (await peer.request("GET", path + "unknown", **good)).body["errcode"] == "M_NOT_FOUND"


async def test_the_old_way_is_taken_where_the_new_is_not_known(
    small: tuple[Server, Client], authority: Authority
) -> None:
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.old = web.Response(body=b"old", headers={"Content-Type": "text/html"})
        answer = await download(alice, f"{peer.name}/a")

        assert (answer.status, answer.body) == (200, b"old")
        assert answer.headers["Content-Disposition"] == "attachment"
        assert peer.asked[1].endswith("/a?allow_remote=false")


@pytest.mark.parametrize(("status", "errcode"), [(404, "M_NOT_FOUND"), (405, "M_UNRECOGNIZED"), (403, "M_FORBIDDEN")])
async def test_the_old_way_is_not_taken_for_other_refusals(
    small: tuple[Server, Client], authority: Authority, status: int, errcode: str
) -> None:
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.media = web.json_response({"errcode": errcode, "error": "no"}, status=status)
        peer.old = web.Response(body=b"old")
        answer = await alice.get(f"/v1/media/download/{peer.name}/a")

        assert answer.status == (404 if status == 404 else 502)
        assert len(peer.asked) == 1


@pytest.mark.one_process("its patience is shortened here")
async def test_a_silent_server_is_waited_for_as_long_as_was_asked(
    small: tuple[Server, Client], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_repository, "START_SECONDS", 0.3)
    monkeypatch.setattr(remote_media, "START_SECONDS", 0.6)
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.speaks.clear()
        for _ in range(2):
            answer = await asyncio.wait_for(alice.get(f"/v1/media/download/{peer.name}/a", timeout_ms=200), 5)
            assert (answer.status, answer.body["errcode"]) == (504, "M_NOT_YET_UPLOADED")
            await asyncio.sleep(0.5)

        assert len(peer.asked) == 2, "the request was given up, and the server was not taken for one that is away"
        peer.media = multipart(b"late")
        peer.speaks.set()
        assert (await download(alice, f"{peer.name}/a", timeout_ms="200")).body == b"late"


@pytest.mark.one_process("each asks by itself")
async def test_each_waits_for_a_silent_server_as_long_as_they_said(
    small: tuple[Server, Client], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_repository, "START_SECONDS", 0.3)
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.speaks.clear()
        patient = asyncio.create_task(download(alice, f"{peer.name}/a", timeout_ms="30000"))
        answer = await alice.get(f"/v1/media/download/{peer.name}/a", timeout_ms=0)
        assert (answer.status, patient.done()) == (504, False)

        peer.media = multipart(b"here")
        peer.speaks.set()
        assert (await patient).body == b"here"
        assert len(peer.asked) == 1


async def test_a_silent_server_does_not_hold_up_media_of_others(
    small: tuple[Server, Client], authority: Authority
) -> None:
    server, alice = small
    async with media_peer(server, authority) as silent, media_peer(server, authority) as peer:
        silent.speaks.clear()
        held = [asyncio.create_task(download(alice, f"{silent.name}/m{number}")) for number in range(40)]
        await silent.until(lambda: silent.asked)
        peer.media = multipart(b"at once")

        assert (await asyncio.wait_for(download(alice, f"{peer.name}/a"), 3)).body == b"at once"
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.parametrize("claims", [True, False])
async def test_more_than_the_limit_is_refused(
    small: tuple[Server, Client], authority: Authority, tmp_path: Path, claims: bool
) -> None:
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.media = multipart(b"x" * (10_001 if claims else 300_000))
        if not claims:
            peer.media.enable_chunked_encoding()
        answer = await alice.get(f"/v1/media/download/{peer.name}/a")

        assert (answer.status, answer.body["errcode"]) == (502, "M_TOO_LARGE")
        peer.media = multipart(b"x" * 10_000)
        assert (await download(alice, f"{peer.name}/a")).status == 200
    assert list((tmp_path / "media" / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    "media",
    [
        web.Response(body=b"--b\r\n\r\n{}\r\n--b\r\n\r\ncut", headers={"Content-Type": "multipart/mixed; boundary=b"}),
        web.Response(body=b"--b\r\n\r\n{}\r\n--b--", headers={"Content-Type": "multipart/mixed; boundary=b"}),
        web.Response(body=b"--b--", headers={"Content-Type": "multipart/mixed"}),
        web.Response(body=b"{}", headers={"Content-Type": "application/json"}),
        multipart(b"", "Location: https://10.0.0.1/x\r\n"),
        multipart(b"", "Location: http://127.0.0.1/x\r\n"),
        multipart(b"", "Location: file:///etc/passwd\r\n"),
        multipart(b"", "Location: /relative\r\n"),
        multipart(b"x\r\n--b\r\n\r\nthird"),
    ],
    ids=range(9),
)
async def test_answers_that_mean_nothing_are_refused(
    small: tuple[Server, Client], authority: Authority, media: web.Response
) -> None:
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.media = web.Response(body=media.body, headers=dict(media.headers))
        answer = await alice.get(f"/v1/media/download/{peer.name}/a")
        assert answer.status == 502


async def test_a_location_is_followed(small: tuple[Server, Client], authority: Authority) -> None:
    server, alice = small
    async with media_peer(server, authority) as peer:
        peer.media = multipart(b"", f"Location: https://{peer.name}/_matrix/media/v3/download/x/y\r\n")
        peer.old = web.Response(body=b"elsewhere", headers={"Content-Type": "text/plain"})
        answer = await download(alice, f"{peer.name}/a")
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"elsewhere", "text/plain")

        peer.media = multipart(b"", f"Location: https://{peer.name}/_matrix/media/v3/download/x/y\r\n")
        peer.old = web.Response(body=b"x" * 10_001)
        assert (await alice.get(f"/v1/media/download/{peer.name}/b")).body["errcode"] == "M_TOO_LARGE"
