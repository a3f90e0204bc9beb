"""A store that fails now and then: what passes is tried again, and nothing is stored or read in part."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from federation.protocol.errors import Unavailable
from storage import s3
from storage.s3 import S3Bucket
from storage.s3_signing import Credentials

CONTENT = bytes(range(256)) * 2000


class Failing:
    """A bucket with one object; its next answers are these statuses, or a body that breaks off (-1)."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.content = CONTENT
        self.requests = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Anything."""
        self.requests += 1
        failure = self.failures.pop(0) if self.failures else 0
        if failure > 0:
            return web.Response(status=failure, text="<Error/>")
        if request.method == "PUT":
            body = await request.read()
            assert hashlib.sha256(body).hexdigest() == request.headers["x-amz-content-sha256"]
            self.content = body
            return web.Response()
        part = self.content[request.http_range]
        response = web.StreamResponse(status=206 if "Range" in request.headers else 200)
        response.content_length = len(part)
        await response.prepare(request)
        if request.method == "GET":
            await response.write(part[: len(part) // 2] if failure else part)
            if failure:
                assert request.transport is not None
                request.transport.close()
        return response


@pytest_asyncio.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Failing, S3Bucket]]:
    """The store, and what speaks with it."""
    monkeypatch.setattr(s3, "FIRST_PAUSE_SECONDS", 0.01)
    failing = Failing()
    application = web.Application()
    application.router.add_route("*", "/bucket/{key:.*}", failing.answer)
    async with TestServer(application) as server:
        bucket = S3Bucket(str(server.make_url("/bucket/")), Credentials("key", "secret", "here"))
        yield failing, bucket
        await bucket.close()


async def read(bucket: S3Bucket, first: int = 0, end: int = len(CONTENT)) -> bytes:
    return b"".join([piece async for piece in bucket.read("a", first, end)])


async def test_what_fails_for_a_moment_is_tried_again(store: tuple[Failing, S3Bucket]) -> None:
    failing, bucket = store
    failing.failures = [503, 500]
    await bucket.put_bytes("a", CONTENT[:5000], "text/plain")
    failing.failures = [502]
    found = await bucket.find("a")

    assert found is not None
    assert (failing.content, found.size) == (CONTENT[:5000], 5000)


async def test_reading_goes_on_where_it_broke_off(store: tuple[Failing, S3Bucket]) -> None:
    failing, bucket = store
    failing.failures = [-1, 503, -1]

    assert await read(bucket) == CONTENT
    failing.failures = [-1]
    assert await read(bucket, 1000, 300_000) == CONTENT[1000:300_000]


@pytest.mark.parametrize("status", [403, 400, 301])
async def test_a_refusal_is_not_tried_again(store: tuple[Failing, S3Bucket], status: int) -> None:
    failing, bucket = store
    failing.failures = [status]
    with pytest.raises(Unavailable):
        await bucket.put_bytes("a", b"x", "text/plain")
    assert (failing.requests, failing.content) == (1, CONTENT)


async def test_a_store_that_is_gone_is_unavailable(store: tuple[Failing, S3Bucket]) -> None:
    failing, bucket = store
    failing.failures = [503] * 100
    with pytest.raises(Unavailable):
        await bucket.find("a")
    assert failing.requests == s3.ATTEMPTS
    with pytest.raises(Unavailable):
        await read(bucket)
    nowhere = S3Bucket("http://127.0.0.1:9/bucket", Credentials("key", "secret", "here"))
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await nowhere.find("a")
    await nowhere.close()
