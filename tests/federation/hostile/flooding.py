"""Much of what is right or nearly so: forks, endless histories, huge answers. It costs its sender; others work on."""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from federation.protocol.types import JsonObject
from tests.federation.answering_peer import Answerer
from tests.federation.hostile.pulling import always
from tests.federation.hostile.pushing import Way
from tests.federation.hostile.world import Case, Stage
from tests.federation.peer import path_of
from tests.rooms import send

FORKS = 1_000
STATE_FORKS = 500
HISTORY = 2_000
LOST = 500
MEGABYTE = 1_000_000

_numbers = itertools.count(1)


def flood(name: str, run: Callable[[Stage], Coroutine[Any, Any, None]]) -> Way:
    """One flood: while it goes on our user's messages reach the honest server, and what it costs is noted."""

    async def way(stage: Stage) -> list[Case]:
        world = stage.world
        world.tried[name] += 1
        before, asked, honest = world.cpu_seconds(), world.hostile.asked.total(), world.honest.asked.total()
        answers, started = dict(world.hostile.answers), time.monotonic()
        flooding = asyncio.create_task(run(stage))
        while not flooding.done():
            await asyncio.wait([flooding], timeout=0.2)
            said_at = time.monotonic()
            said = await send(stage.alice, stage.room.room_id, "meanwhile")
            await world.honest.until(said)
            world.slowest = max(world.slowest, time.monotonic() - said_at)
        world.hostile.answers = answers
        await flooding
        world.costs[name] = (
            f"{world.cpu_seconds() - before:.1f} s of CPU in {time.monotonic() - started:.1f} s,"
            f" {world.hostile.asked.total() - asked} requests to it, {world.honest.asked.total() - honest} to others,"
            f" peak +{world.grown_megabytes():.0f} MB"
        )
        return []

    return way


async def _forks(stage: Stage, *, count: int) -> None:
    """Right events that all follow the same one."""
    start = stage.room.last
    for first in range(0, count, 50):
        forks = [stage.room.make(content={"body": f"{first + number}"}, prev=start) for number in range(50)]
        await stage.push(forks)
    await _check_extremities(stage)


async def _state_forks(stage: Stage, *, count: int) -> None:
    """Right state events of one key and of others that all follow the same one: each is in conflict with the rest."""
    start = stage.room.last
    for first in range(0, count, 50):
        keys = ["same" if number % 2 else f"k{first + number}" for number in range(50)]
        await stage.push([stage.room.make("test.state", {"n": first}, prev=start, state_key=key) for key in keys])
    await _check_extremities(stage)


async def _check_extremities(stage: Stage) -> None:
    rows = await stage.world.rows("select cardinality(extremities) from rooms where room_id = %s", stage.room.room_id)
    stage.world.expect(rows[0][0] <= 60, "forks", f"leave {rows[0][0]} extremities")


async def _endless_history(stage: Stage, *, count: int) -> None:
    """The newest of a long line: each answer brings one event, which lacks another."""
    line = [stage.room.add(content={"body": f"{number}"}) for number in range(count)]
    ids = [stage.room.id_of(event) for event in line]
    places = {event_id: number for number, event_id in enumerate(ids)}

    def missing(_path: Any, _query: Any, body: Any) -> Any:
        oldest = min((places[each] for each in body["latest_events"] if each in places), default=0)
        return {"events": [line[oldest - 1]]} if oldest else {"events": []}

    before = stage.world.hostile.asked.total()
    stage.world.hostile.answers |= {"get_missing_events": missing, "state_ids": _nothing, "event_auth": _nothing}
    await stage.push(line[-50:][::-1])
    cost = stage.world.hostile.asked.total() - before
    stage.world.expect(cost < 50 * 60, "endless history", f"has us ask {cost} times")
    stage.room.last = list(stage.room.before)[-count - 1 :][:1]


async def _lost_references(stage: Stage, *, count: int) -> None:
    """Events that follow 20 others each which never come."""
    for first in range(0, count, 50):
        prev = [[stage.forger.missing() for _ in range(20)] for _ in range(50)]
        await stage.push([stage.room.make(content={"body": f"{first}"}, prev=each) for each in prev])
    rows = await stage.world.rows("select count(*) from dead_letters")
    stage.world.expect(rows[0][0] <= 2_000, "lost references", f"leave {rows[0][0]} dead letters")


async def _long_auth_chain(stage: Stage) -> None:
    """An event whose auth chain is long, and grows with each question."""
    stage.world.hostile.answers["event_auth"] = _nothing
    chain: dict[str, JsonObject] = {}
    cited = stage.room.state["m.room.member", stage.room.user_id]
    auth = [stage.room.state[key, ""] for key in ("m.room.create", "m.room.power_levels")]
    if stage.forger.rules.room_id_is_create_hash:
        auth = auth[1:]
    joining = [stage.room.state["m.room.join_rules", ""]]
    for number in range(500):
        member = {"membership": "join", "displayname": f"{number}"}
        event = stage.room.make("m.room.member", member, state_key=stage.room.user_id, auth=[*auth, *joining, cited])
        cited = stage.room.id_of(event)
        chain[cited] = event

    def given(path: list[str], _query: Any, _body: Any) -> Any:
        return {"pdus": [chain[path[0]]]} if path[0] in chain else None

    stage.world.hostile.answers["event"] = given
    await stage.push([stage.room.make(content={"body": f"{number}"}, auth=[*auth, cited]) for number in range(5)])


def _nothing(_path: Any, _query: Any, _body: Any) -> Any:
    return None


# --- huge answers


def bomb(piece: bytes, size: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """JSON of about so many bytes that becomes far more once it is read."""
    count = size // (len(piece) + 1)
    return before + b",".join([piece] * count) + after


PIECES = {"empty objects": b"{}", "empty arrays": b"[]", "numbers": b"1000", "texts": b'"a"', "floats": b"0.5"}


def _huge(name: str, member: str, size: int, piece: bytes) -> Callable[[Stage], Coroutine[Any, Any, None]]:
    async def run(stage: Stage) -> None:
        ids = {"pdu_ids": [stage.forger.missing() for _ in range(301)], "auth_chain_ids": []}
        content = bomb(piece, size * MEGABYTE, before=b'{"' + member.encode() + b'":[', after=b"]}")
        answers: dict[str, Answerer] = {"get_missing_events": always({"events": []}), "state_ids": always(ids)}
        stage.world.hostile.answers |= answers | {name: always(content)}
        last = stage.room.last
        auth = [*list(stage.room.state.values())[:2], stage.forger.missing()] if name == "event_auth" else None
        prev = last if auth else [stage.forger.missing()]
        await stage.push([stage.room.make(prev=prev, auth=auth) for _ in range(3)])

    return run


async def _huge_transactions(stage: Stage, *, pieces: Sequence[str]) -> None:
    """Bodies of as many bytes as are read."""
    hostile = stage.world.hostile
    for piece in map(PIECES.__getitem__, pieces):
        for member in (b"pdus", b"edus", b"x"):
            start = b'{"origin":"' + hostile.name.encode() + b'","origin_server_ts":1,"pdus":[],"' + member + b'":['
            start = start.replace(b'"pdus":[],"pdus"', b'"pdus"')
            body = bomb(piece, 10 * MEGABYTE, before=start, after=b"]}")
            path = path_of("/v1/send/{}", f"huge{next(_numbers)}")
            await hostile.request("PUT", path, body)


SIZES = {
    "get_missing_events": ("events", 15),
    "state_ids": ("pdu_ids", 31),
    "state": ("pdus", 47),
    "event_auth": ("auth_chain", 15),
}
"""Questions, each with what the answer has, and in how many megabytes: as many as are read."""


def ways(*, is_long: bool) -> list[Way]:
    """All; for the short form fewer events, and of the huge answers those that took most memory."""
    scale = 1.0 if is_long else 0.1
    huge = [
        flood(f"{name} with {size} MB of {kind}", _huge(name, member, size, piece))
        for name, (member, size) in SIZES.items()
        for kind, piece in PIECES.items()
        if is_long or (name, kind) in (("state", "empty objects"), ("state_ids", "empty arrays"))
    ]
    return [
        flood("forks", partial(_forks, count=int(FORKS * (1.0 if is_long else 0.2)))),
        flood("forks of the state", partial(_state_forks, count=int(STATE_FORKS * (1.0 if is_long else 0.2)))),
        flood("endless history", partial(_endless_history, count=int(HISTORY * scale))),
        flood("references that never come", partial(_lost_references, count=int(LOST * scale))),
        flood("long auth chains", _long_auth_chain),
        flood("huge transactions", partial(_huge_transactions, pieces=list(PIECES)[: None if is_long else 1])),
        *huge,
    ]
