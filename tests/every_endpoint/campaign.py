"""Sends random requests to every endpoint, and holds each answer, and the server afterwards, to the specification.

A campaign takes the operations in random order, so that what one request leaves behind is what the next ones meet.
Every so often it makes a new world and looks whether the users of the old one can still sync.
"""

import asyncio
import io
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import yarl

from tests.client import Client, Server
from tests.every_endpoint import world as worlds
from tests.every_endpoint.beyond import operations_beyond
from tests.every_endpoint.damage import Prepared, damage
from tests.every_endpoint.making import ENDING, Making, is_harmful
from tests.every_endpoint.world import Pick, World
from tests.openapi import Operation, Specification, specification

REQUESTS_PER_WORLD = 1500
DAMAGED = 0.5
"""The share of requests that are made invalid."""
PATIENCE_SECONDS = 0.5
"""How long a client waits for an answer that may wait; 60 s for any other."""
LARGE_BYTES = 1_000_000
"""More than aiohttp wants to be given as bytes."""
WAITING = frozenset(("sync", "getEvents", "peekEvents"))
PAGES = ("/fallback/web", "/static/client/login/", "/hearth.email/confirm", "/hearth.push/unsubscribe")
"""What answers people in browsers, also errors."""
HARVESTED = {
    "filter_id": "filter_id",
    "next_batch": "sync_token",
    "start": "page_token",
    "end": "page_token",
    "version": "backup_version",
    "login_token": "login_token",
    "refresh_token": "refresh_token",
    "session": "session",
}
"""Members of answers that later requests use."""


class Wrong(AssertionError):
    """An answer that must not be, with the request that it was given to."""


@dataclass(slots=True)
class Figures:
    """What one operation answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_cpu_ms: float = 0
    slowest: str = ""


class ErrorLines(logging.Handler):
    """Keeps what the server writes of its own failures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(logging.Formatter("%(name)s: %(message)s").format(record))


@dataclass(slots=True)
class Campaign:
    """One run against one server."""

    server: Server
    seed: int
    at_once: int = 1
    """Requests under way. With more than one, what happens depends on time, and processor time is that of all."""
    figures: dict[str, Figures] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What must not have been; empty at the end of a good run."""
    unserved: list[str] = field(default_factory=list)
    """Operations of the specification that the server does not know."""
    specification: Specification = field(default_factory=specification)

    async def run(self, requests: int) -> None:
        """Send so many requests to each operation that is served."""
        operations = await self.served()
        chance = random.Random(self.seed)
        order = [operation for operation in operations for _ in range(requests)]
        chance.shuffle(order)
        errors = ErrorLines()
        logging.getLogger().addHandler(errors)
        try:
            for start in range(0, len(order), REQUESTS_PER_WORLD):
                world = await worlds.create(self.server, chance)
                rest = iter(order[start : start + REQUESTS_PER_WORLD])
                async with asyncio.TaskGroup() as lanes:
                    for _ in range(self.at_once):
                        lanes.create_task(self._lane(rest, Making(self.specification, world), errors))
                await self._check_that_nothing_is_harmed(world)
                self.progress(min(start + REQUESTS_PER_WORLD, len(order)), len(order))
        finally:
            logging.getLogger().removeHandler(errors)
        self.wrong.extend(errors.lines)

    def progress(self, done: int, of: int) -> None:
        """Told now and then; for those who watch."""

    async def served(self) -> list[Operation]:
        """The operations that this server knows, also those that the specification has not.

        Any other answers 404 M_UNRECOGNIZED: whatever does not is taken for one that is served.
        """
        operations: list[Operation] = []
        for operation in self.specification.operations:
            path = Prepared(operation.method, operation.template, ("x",) * operation.parameters).whole_path
            status, body = await self.server.anonymous.request(operation.method, path)
            if (status, isinstance(body, dict) and body.get("errcode")) != (404, "M_UNRECOGNIZED"):
                operations.append(operation)
            else:
                self.unserved.append(f"{operation.method} {operation.template}")
        routes = [route for each in self.server.application.listening.routes.values() for route in each]
        return [*operations, *operations_beyond(self.specification, routes)]

    async def _lane(self, rest: Iterator[Operation], making: Making, errors: ErrorLines) -> None:
        for operation in rest:
            await self._one(operation, making, errors)

    async def _one(self, operation: Operation, making: Making, errors: ErrorLines) -> None:
        world = making.world
        chance = world.chance
        request, pick = making.make(operation)
        if chance.random() < DAMAGED:
            request = damage(request, chance)
        figures = self.figures.setdefault(operation.name, Figures())
        cpu = time.process_time()
        try:
            status, body = await self._send(request, PATIENCE_SECONDS if operation.name in WAITING else 60)
        except TimeoutError:
            status, body = 0, None
        except aiohttp.ClientResponseError as error:
            if request.method != "HEAD":
                raise
            status, body = error.status, None  # what is no HTTP has no method: the error has a body
        cpu_ms = (time.process_time() - cpu) * 1000
        figures.statuses[status] += 1
        if cpu_ms > figures.slowest_cpu_ms:
            figures.slowest_cpu_ms, figures.slowest = cpu_ms, _described(request)
        if status == 0:
            if operation.name not in WAITING:
                self.wrong.append(f"{_described(request)}\n  no answer in a minute")
            return
        try:
            self._check(request, status, body)
        except AssertionError as error:
            logged = "\n".join(errors.lines)
            errors.lines.clear()
            self.wrong.append(
                f"{_described(request)}\n  {error}\n  {orjson.dumps(body, default=str)[:600]!r}\n{logged}"
            )
        if status == 200 and isinstance(body, dict):
            self._harvest(body, pick)
            if operation.name in ENDING or is_harmful(operation):
                await world.new_victim()

    async def _send(self, request: Prepared, patience: float) -> tuple[int, Any]:
        anonymous = self.server.anonymous
        url = yarl.URL(anonymous.base_url + request.target, encoded=True)
        headers = dict(request.headers)
        content = request.content
        skipped = () if "Content-Type" in headers else ("Content-Type",)
        async with (
            asyncio.timeout(patience),
            anonymous.session.request(
                request.method,
                url,
                headers=headers,
                data=io.BytesIO(content) if content is not None and len(content) > LARGE_BYTES else content,
                skip_auto_headers=skipped,
                allow_redirects=False,
            ) as response,
        ):
            content = await response.read()
            if response.content_type == "application/json" and content:
                return response.status, orjson.loads(content)
            return response.status, content

    def _check(self, request: Prepared, status: int, body: Any) -> None:
        assert status < 500 or status in (502, 504), f"status {status}"  # another server, which there is none of
        if request.method in {"HEAD", "OPTIONS"}:
            return
        path = request.whole_path
        if isinstance(body, bytes) and request.path.endswith(PAGES):
            return
        if status >= 400:
            self.specification.check_error(f"{request.method} {path}: {status}", status, body)
        if status == 200 and any(name == "filter" for name, _ in request.query):
            return  # which may take away what the schema requires
        self.specification.check(request.method, path, status, body)

    def _harvest(self, body: dict[str, Any], pick: Pick) -> None:
        world = pick.world
        for name, kind in HARVESTED.items():
            if isinstance(body.get(name), str):
                world.add(kind, body[name])
        if isinstance(body.get("event_id"), str):
            world.add_event(pick.room_id, body["event_id"])
        if isinstance(body.get("room_id"), str) and len(world.rooms) < 60:
            world.rooms.append(body["room_id"])
        if "access_token" in body:
            for actor in world.actors:
                if (actor.user_id, actor.device_id) == (body.get("user_id"), body.get("device_id")):
                    actor.access_token = body["access_token"]

    async def _check_that_nothing_is_harmed(self, world: World) -> None:
        """Every user of the world is still logged in, and their first sync follows the schema."""
        for actor in {id(actor): actor for actor in [*world.actors, world.admin]}.values():
            assert isinstance(actor, Client)
            try:
                await actor.ok("GET", "/v3/sync?timeout=0")
                await actor.ok("GET", "/v3/sync?timeout=0&full_state=true&use_state_after=true")
            except (AssertionError, aiohttp.ClientError) as error:
                self.wrong.append(f"{actor.user_id} cannot sync any more: {str(error)[:2000]}")

    def table(self) -> Iterator[str]:
        """What was answered, a line an operation."""
        for name, figures in sorted(self.figures.items()):
            statuses = "  ".join(f"{status or 'waited'}: {count}" for status, count in sorted(figures.statuses.items()))
            shown = name.replace("/_matrix/client/", "")
            yield f"{shown:40} {figures.statuses.total():6}  {figures.slowest_cpu_ms:7.1f} ms  {statuses}"

    def slowest(self, count: int = 5) -> Iterator[str]:
        """The requests that took most of the processor."""
        ranked = sorted(self.figures.values(), key=lambda figures: -figures.slowest_cpu_ms)
        for figures in ranked[:count]:
            yield f"{figures.slowest_cpu_ms:7.1f} ms  {figures.slowest}"


def _described(request: Prepared) -> str:
    content = request.content
    shown = "" if content is None else f" {content[:500]!r}{f' ({len(content)} bytes)' if len(content) > 500 else ''}"
    headers = {name: value for name, value in request.headers.items() if name != "Authorization"}
    return f"{request.method} {request.target[:600]} {headers}{shown}"
