"""`inbound/streaming.py`: large answers, and peers that ask for many of them or do not read them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from federation.inbound import streaming
from federation.inbound.streaming import LargeAnswers, stream_json
from federation.protocol.errors import LimitExceeded
from federation.protocol.types import ServerName
from federation.web import Answer, Call, Route
from homeserver.config import API, Listener
from homeserver.listening import Listening

PEER, OTHER = ServerName("peer.example"), ServerName("other.example")
PIECE = b" " * 100_000


async def take(answers: LargeAnswers, origin: ServerName, until: asyncio.Event) -> None:
    async with answers.turn(origin):
        await until.wait()


async def started(
    answers: LargeAnswers, origin: ServerName, number: int, until: asyncio.Event
) -> Sequence["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(take(answers, origin, until)) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_a_server_waits_for_its_turn_and_others_do_not_wait_for_it() -> None:
    answers, end, never = LargeAnswers(), asyncio.Event(), asyncio.Event()
    tasks = await started(answers, PEER, streaming.PER_ORIGIN, end)
    waiting = asyncio.create_task(take(answers, PEER, never))
    await asyncio.sleep(0.01)

    async with asyncio.timeout(1), answers.turn(OTHER):
        pass
    end.set()
    await asyncio.gather(*tasks)
    async with asyncio.timeout(1), answers.turn(PEER):
        assert not waiting.done()
    waiting.cancel()


async def test_a_server_that_waits_for_too_many_is_told_so() -> None:
    answers, end = LargeAnswers(), asyncio.Event()
    tasks = await started(answers, PEER, streaming.PER_ORIGIN + streaming.MAX_WAITING, end)

    with pytest.raises(LimitExceeded):
        async with answers.turn(PEER):
            pass

    end.set()
    await asyncio.gather(*tasks)
    async with asyncio.timeout(1), answers.turn(PEER):
        pass


async def test_who_waits_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PATIENCE_SECONDS", 0.01)
    answers, end = LargeAnswers(), asyncio.Event()
    tasks = await started(answers, PEER, streaming.PER_ORIGIN, end)

    with pytest.raises(LimitExceeded):
        async with answers.turn(PEER):
            pass

    end.set()
    await asyncio.gather(*tasks)


@asynccontextmanager
async def streamed(pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[asyncio.StreamReader]:
    """A connection on which these pieces are the answer."""

    async def answer(call: Call) -> Answer:
        return await stream_json(call.request, pieces)

    listening = Listening({API.FEDERATION: [Route("GET", "/large", answer)]})
    await listening.start([Listener(port=0, apis=(API.FEDERATION,))])
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.ports[0])
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        yield reader
    finally:
        writer.close()
        await listening.stop()


async def test_the_answer_to_who_reads_nothing_breaks_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streaming, "STALLED_SECONDS", 0.2)
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield PIECE
        finally:
            ended.set()

    async with streamed(endless()):
        await asyncio.wait_for(ended.wait(), 10)

    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_an_answer_that_fails_is_not_whole() -> None:
    """Its reader must not take it for all there is."""

    async def failing() -> AsyncGenerator[bytes, None]:
        yield PIECE
        raise RuntimeError("of the test")

    async with streamed(failing()) as reader:
        answer = await asyncio.wait_for(reader.read(), 10)

    assert answer.count(b" ") > len(PIECE)
    assert not answer.endswith(b"0\r\n\r\n")
