"""Answers that are wrong as answers, whatever was asked: endless, slow, of another type, elsewhere, no JSON."""

import asyncio
import functools
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.client import Answer, quote
from tests.federation.hostile.flooding import flood
from tests.federation.hostile.pushing import Way
from tests.federation.hostile.residing import HostileResident, a_resident, join
from tests.federation.hostile.world import Case, Stage

JSON = "application/json"
Transport = Callable[["Manners", web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Manners:
    """How a server answers; what it waits for ends with `over`."""

    trap: str
    """Where nobody may go: an address that no request may be sent to."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


async def _begin(request: web.BaseRequest, **headers: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON, **headers})
    await response.prepare(request)
    return response


def _endless(start: bytes, piece: bytes) -> Transport:
    async def answer(manners: Manners, request: web.BaseRequest) -> web.StreamResponse:
        response = await _begin(request)
        await response.write(start)
        while not manners.over.is_set():
            await response.write(piece * max(1, 65_536 // len(piece)))
            await asyncio.sleep(0)
        return response

    return answer


async def _trickle(manners: Manners, request: web.BaseRequest) -> web.StreamResponse:
    response = await _begin(request)
    while not manners.over.is_set():
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


async def _silence(manners: Manners, _request: web.BaseRequest) -> web.StreamResponse:
    await manners.over.wait()
    return web.Response(status=500)


async def _break_off(_manners: Manners, request: web.BaseRequest) -> web.StreamResponse:
    response = await _begin(request, **{"Content-Length": "1000"})
    await response.write(b'{"a":')
    if request.transport is not None:
        request.transport.abort()
    return response


def _whole(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Transport:
    async def answer(_manners: Manners, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers={"Content-Type": JSON, **(headers or {})})

    return answer


def _redirect(scheme: str, status: int) -> Transport:
    async def answer(manners: Manners, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": f"{scheme}://{manners.trap}/secret"})

    return answer


async def _bomb(manners: Manners, request: web.BaseRequest) -> web.StreamResponse:
    return await _whole(_packed(300), headers={"Content-Encoding": "gzip"})(manners, request)


@functools.cache
def _packed(megabytes: int) -> bytes:
    """A JSON object of so many, made when it is asked for first."""
    packer = zlib.compressobj(1, wbits=31)
    pieces = (b'{"a":"', *(b"x" * 1_000_000 for _ in range(megabytes)), b'"}')
    return b"".join((*map(packer.compress, pieces), packer.flush()))


SLOW: Mapping[str, Transport] = {"trickles": _trickle, "is silent": _silence}
QUICK: Mapping[str, Transport] = {
    "never ends, in spaces": _endless(b"", b" "),
    "never ends, in one text": _endless(b'{"x":"', b"x"),
    "never ends, in an array": _endless(b'{"pdus":[', b"{},"),
    "never ends, in brackets": _endless(b"", b"["),
    "breaks off": _break_off,
    "redirects to a private address": _redirect("https", 302),
    "redirects to a private address for good": _redirect("https", 308),
    "redirects to a private address without TLS": _redirect("http", 301),
    "is HTML": _whole(b"<html>", headers={"Content-Type": "text/html"}),
    "is JSON that is called HTML": _whole(b"{}", headers={"Content-Type": "text/html"}),
    "is empty": _whole(b""),
    "is no JSON": _whole(b"{'a': 1}"),
    "is null": _whole(b"null"),
    "is a number": _whole(b"1"),
    "is an array": _whole(b"[]"),
    "is an array of 200": _whole(b"[200,[]]"),
    "is an empty object": _whole(b"{}"),
    "has NaN": _whole(b'{"a":NaN}'),
    "has a key twice": _whole(b'{"pdus":[],"pdus":[],"events":[],"events":[]}'),
    "is deep": _whole(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "is no UTF-8": _whole(b'{"a":"\xff"}'),
    "unpacks to 300 MB": _bomb,
    "says it is packed and is not": _whole(b"{}", headers={"Content-Encoding": "gzip"}),
    "is an error of 300 KB": _whole(b'{"errcode":"M_FORBIDDEN","error":"' + b"x" * 300_000 + b'"}', status=403),
    "is an error that is no JSON": _whole(b"<html>", status=500),
    "is an error that is an array": _whole(b"[]", status=404),
    "is status 204": _whole(b"", status=204),
    "is status 999": _whole(b"{}", status=999),
    "asks for patience": _whole(b'{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1e99}', status=429),
    "has a header of 100 KB": _whole(b"{}", headers={"X-Long": "x" * 100_000}),
    "has 500 headers": _whole(b"{}", headers={f"X-{number}": "x" for number in range(500)}),
}


class Rude(HostileResident):
    """A resident all of whose answers, but its key, are of one kind."""

    transport: Transport | None = None
    manners: Manners

    def routes(self, application: web.Application) -> None:
        super().routes(application)

        @web.middleware
        async def instead(request: web.Request, handler: Any) -> web.StreamResponse:
            if self.transport is None or "/key/" in request.path or "/send/" in request.path:
                answer: web.StreamResponse = await handler(request)
                return answer
            self.asked.append(request.path)
            return await self.transport(self.manners, request)

        application.middlewares.append(instead)


LONGEST_SECONDS = 330.0
"""By then whoever asked has an answer, however slow the other server is; media may take 300."""

Question = Callable[[Stage, Rude], Awaitable[Answer]]


async def _alias(stage: Stage, rude: Rude) -> Answer:
    return await stage.alice.get(f"/v3/directory/room/{quote(f'#a{time.monotonic_ns()}:{rude.name}')}")


async def _profile(stage: Stage, rude: Rude) -> Answer:
    return await stage.alice.get(f"/v3/profile/{quote(f'@a{time.monotonic_ns()}:{rude.name}')}")


async def _rooms(stage: Stage, rude: Rude) -> Answer:
    return await stage.alice.get("/v3/publicRooms", server=rude.name)


async def _hierarchy(stage: Stage, rude: Rude) -> Answer:
    path = f"/v1/rooms/{quote(f'!a{time.monotonic_ns()}:{rude.name}')}/hierarchy"
    return await stage.alice.get(path, via=rude.name)


async def _devices(stage: Stage, rude: Rude) -> Answer:
    users: dict[str, list[str]] = {f"@a{time.monotonic_ns()}:{rude.name}": []}
    return await stage.alice.post("/v3/keys/query", {"device_keys": users, "timeout": 5_000})


async def _claims(stage: Stage, rude: Rude) -> Answer:
    wanted = {f"@a:{rude.name}": {"D": "signed_curve25519"}}
    return await stage.alice.post("/v3/keys/claim", {"one_time_keys": wanted, "timeout": 5_000})


async def _media(stage: Stage, rude: Rude) -> Answer:
    return await stage.alice.get(f"/v1/media/download/{quote(rude.name)}/m{time.monotonic_ns()}", timeout_ms=5000)


async def _join(stage: Stage, rude: Rude) -> Answer:
    return await join(stage.alice, rude)


async def _knock(stage: Stage, rude: Rude) -> Answer:
    return await stage.alice.request("POST", f"/v3/knock/{quote(rude.room_id)}", {}, params=[("via", rude.name)])


async def _invite(stage: Stage, rude: Rude) -> Answer:
    path = f"/v3/rooms/{quote(stage.other.room_id)}/invite"
    return await stage.alice.post(path, {"user_id": f"@a{time.monotonic_ns()}:{rude.name}"})


QUESTIONS: Mapping[str, Question] = {
    "a question for an alias": _alias,
    "a question for a profile": _profile,
    "a question for published rooms": _rooms,
    "a question for a space": _hierarchy,
    "a question for devices": _devices,
    "a claim of keys": _claims,
    "a question for media": _media,
    "make_join": _join,
    "make_knock": _knock,
    "an invite": _invite,
}
MAY_BE_EMPTY = frozenset(("a question for a profile", "a question for devices", "a claim of keys"))
"""An object without anything is an answer to these; and who cannot be asked for keys is named in the answer."""


async def _ask(stage: Stage, rude: Rude, question: str, transport: str) -> None:
    """One question; our user is told that it failed, in a form that the specification has."""
    name = f"{question}, whose answer {transport}"
    stage.world.tried[question] += 1
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            answer = await QUESTIONS[question](stage, rude)
    except TimeoutError:
        stage.world.note(name, "is never answered")
        return
    is_answered = answer.status in (400, 403, 404, 429, 502, 504) or question in MAY_BE_EMPTY
    if transport in ("is an empty object", "has a key twice"):
        is_answered = is_answered or answer.status == 200
    stage.world.expect(is_answered and answer.status != 500, name, f"has us answer {answer.status} {answer.body}"[:500])


async def _rude(stage: Stage) -> tuple[Rude, "asyncio.Server", list[Any]]:
    visits: list[Any] = []
    trap = await asyncio.start_server(lambda *streams: visits.append(streams), "127.0.0.3", 0)
    rude = await a_resident(stage, Rude)
    host, port = trap.sockets[0].getsockname()[:2]
    rude.manners = Manners(f"{host}:{port}")
    return rude, trap, visits


async def by_quick_answers(stage: Stage) -> list[Case]:
    """Every question with every answer that is wrong at once."""
    rude, trap, visits = await _rude(stage)
    for transport, answer in QUICK.items():
        rude.transport = answer
        await asyncio.gather(*(_ask(stage, rude, question, transport) for question in QUESTIONS))
    rude.manners.over.set()
    trap.close()
    stage.world.expect(not visits, "a redirect", "led to a private address")
    return []


def _slowly(seconds: float) -> Callable[[Stage], Coroutine[Any, Any, None]]:
    """Every question with answers that take as long as they are let; all at a time, and at most so many seconds."""

    async def run(stage: Stage) -> None:
        rudes = []
        asked = []
        for transport, answer in SLOW.items():
            rude, trap, _ = await _rude(stage)
            rude.transport = answer
            rudes.append((rude, trap))
            asked += [asyncio.create_task(_ask(stage, rude, question, transport)) for question in QUESTIONS]
        await asyncio.wait(asked, timeout=seconds)
        for rude, trap in rudes:
            rude.manners.over.set()
            trap.close()
        await asyncio.gather(*asked)

    return run


def ways(*, to_the_end: bool) -> list[Way]:
    """All; what is slow until our own patience ends, or only for a little while."""
    return [by_quick_answers, flood("answers that trickle", _slowly(LONGEST_SECONDS if to_the_end else 2.0))]
