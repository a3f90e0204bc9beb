"""Right events in which chance changes something, before or after they are signed: nobody knows what comes of them.

What is kept must be signed by whom it is said to be, as everything in the database (`Stage.check`); every answer is one
that the specification has, and the room goes on.
"""

import itertools
import json
import random
from typing import Any

from federation.protocol.types import JsonObject
from tests.every_endpoint.damage import JUNK
from tests.federation.hostile.faults import Fate, Fault, Forger
from tests.federation.hostile.pushing import REFUSALS, Way
from tests.federation.hostile.world import Case, Stage, transaction_body
from tests.federation.peer import path_of

AT_ONCE = 50

_numbers = itertools.count(1)


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


VALUES = [value for value in JUNK if _is_encodable(value)]
"""What spoils whole bodies is tried by `faults.py`."""


def changed(value: Any, chance: random.Random) -> Any:
    """The value with something in it replaced, left out, added or repeated."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        others = {key: each for key, each in value.items() if key != name}
        match chance.randrange(5):
            case 0:
                return others
            case 1:
                return {
                    **value,
                    chance.choice(("", "a", "\0", "event_id", "unsigned", "redacts")): chance.choice(VALUES),
                }
            case _:
                return {**others, name: changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if chance.random() < 0.2:
            return value * chance.randrange(2, 30)
        return [*value[:at], changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(VALUES)


def mutation(chance: random.Random) -> Fault:
    """One that nobody has thought of."""
    seed, is_signed = chance.getrandbits(64), chance.random() < 0.7

    def spoil(forger: Forger, event: JsonObject) -> Any:
        if is_signed:
            made = changed(event, random.Random(seed))
            return forger.seal(made) if isinstance(made, dict) else made
        return changed(forger.seal(event), random.Random(seed))

    return Fault(f"mutation {seed}", spoil, Fate.ANYTHING)


def at_random(seed: int, count: int) -> Way:
    """So many transactions of events, and as many handshakes."""
    chance = random.Random(seed)

    async def way(stage: Stage) -> list[Case]:
        cases: list[Case] = []
        # What the server was made to take, such as references without the hashes that nobody needs, it tells again.
        stage.world.hostile.is_told_events = False
        for _ in range(count):
            state_key = chance.choice((None, ""))
            template = stage.template("m.room.message" if state_key is None else "test.state", state_key=state_key)
            batch = [stage.case("mutations in /send", mutation(chance), template) for _ in range(AT_ONCE)]
            path = path_of("/v1/send/{}", f"mutated{next(_numbers)}")
            await _bring(stage, path, transaction_body(stage.world.hostile, [case.wire for case in batch]))
            cases += batch
            cases += await _handshake(stage, chance)
        stage.world.hostile.is_told_events = True
        return cases

    return way


async def _handshake(stage: Stage, chance: random.Random) -> list[Case]:
    hostile, name = stage.world.hostile, f"mutant{next(_numbers)}"
    user, room_id = hostile.user(name), stage.room.room_id
    made = await hostile.ok("GET", path_of("/v1/make_join/{}/{}", room_id, user), ver=[stage.version])
    template = {key: each for key, each in made["event"].items() if key not in ("hashes", "signatures", "unsigned")}
    case = stage.case("mutations in send_join", mutation(chance), {**template, "origin_server_ts": 1})
    path = path_of("/v2/send_join/{}/{}", room_id, case.event_id or "$x")
    await _bring(stage, path, case.wire)
    return [case]


async def _bring(stage: Stage, path: str, body: bytes) -> None:
    answer = await stage.world.hostile.request("PUT", path, body)
    errcode = answer.body.get("errcode") if isinstance(answer.body, dict) else None
    is_answer = answer.status == 200 or (400 <= answer.status < 500 and errcode in REFUSALS)
    stage.world.expect(is_answer, path, f"is answered with {answer.status} {str(answer.body)[:200]}: {body[:2000]!r}")
