"""Ways in by which our server fetches events for itself, from the hostile server: what came before an event that it
pushed, the state there, what authorises it."""

from collections.abc import Sequence
from typing import Any

from federation.protocol.types import EventID, JsonObject
from tests.federation.answering_peer import Answerer
from tests.federation.hostile.faults import FAULTS, Fate, canonical
from tests.federation.hostile.pushing import Way, batches
from tests.federation.hostile.world import Case, Stage

MOST_PREV = 19
"""Previous events of one event, besides one that is known."""
TOO_MANY = 301
"""Events of a state that we lack, for which all of it is fetched at once."""


def array(name: str, wires: Sequence[bytes], **others: Any) -> bytes:
    """An answer with these in an array, JSON or not."""
    return canonical(others)[:-1] + (b"," if others else b"") + canonical(name) + b":[" + b",".join(wires) + b"]}"


def always(answer: Any) -> Answerer:
    """The same answer to every question."""
    return lambda _path, _query, _body: answer


async def _follow(stage: Stage, prev: Sequence[str], answers: dict[str, Answerer], why: Case) -> JsonObject:
    """Push a right event that follows these, to questions about which there are such answers; the event.

    The state before it is an honest one unless an answer says otherwise.
    """
    event = stage.room.make(prev=[*prev, *stage.room.last])
    before, last = dict(stage.world.hostile.answers), stage.room.last
    stage.room.keep(event)
    stage.world.hostile.answers.update(answers)
    try:
        told = await stage.push([event])
    finally:
        stage.world.hostile.answers = before
    result = told.get(stage.room.id_of(event))
    if result != {}:
        stage.room.last = last
        stage.world.expect(why.fault.spoils_body or why.fault.is_no_object, why, f"keeps a right event out: {result}")
    return event


def _id(stage: Stage, case: Case) -> str:
    """The ID by which the event is asked for."""
    return case.event_id if case.event_id.startswith("$") and len(case.event_id) < 256 else stage.forger.missing()


async def by_missing_events(stage: Stage) -> list[Case]:
    """`/get_missing_events`: what a right event follows."""
    cases = stage.cases("get_missing_events", FAULTS, stage.template("m.room.message"))
    for batch in batches(cases, MOST_PREV):
        right = stage.control(stage.template("m.room.message"))
        answer = array("events", [*(case.wire for case in batch), canonical(right)])
        ids = [_id(stage, case) for case in batch][: MOST_PREV - 1]
        await _follow(
            stage,
            list(dict.fromkeys([*ids, stage.forger.id_of(right)])),
            {"get_missing_events": always(answer)},
            batch[0],
        )
        if not batch[0].fault.spoils_body:
            await stage.expect_stored(right, batch[0])
    return cases


async def by_single_events(stage: Stage) -> list[Case]:
    """`/state_ids` names them as the state before a right event, and `/event` gives them one by one."""
    faults = [fault for fault in FAULTS if not fault.of_place]
    cases = stage.cases("state_ids and event", faults, stage.template("test.state", state_key=""))
    calm = [case for case in cases if not case.fault.spoils_body]
    wild = [case for case in cases if case.fault.spoils_body]
    # A server that gives no JSON eight times is not asked for more of the state.
    for batch in (calm, *(wild[start : start + 7] for start in range(0, len(wild), 7))):
        right = stage.control(stage.template("test.state", state_key=""))
        await _follow(stage, [stage.forger.missing()], _one_by_one(stage, [*batch, right]), batch[0])
        await stage.expect_stored(right, batch[0])
    return cases


def _one_by_one(stage: Stage, given: Sequence[Case | JsonObject]) -> dict[str, Answerer]:
    wires = {
        _id(stage, each) if isinstance(each, Case) else stage.forger.id_of(each): (
            each.wire if isinstance(each, Case) else canonical(each)
        )
        for each in given
    }
    state, chain = list(stage.room.state.values()), stage.room.chain_of(list(stage.room.state.values()))

    def event(path: list[str], _query: Any, _body: Any) -> Any:
        return array("pdus", [wires[path[0]]], origin="x") if path[0] in wires else None

    def state_ids(_path: Any, _query: Any, _body: Any) -> Any:
        return {"pdu_ids": [*state, *wires, 5, None, "x"], "auth_chain_ids": chain}

    return {"get_missing_events": _none, "event": event, "state_ids": state_ids}


async def by_whole_state(stage: Stage) -> list[Case]:
    """`/state_ids` names more than are asked for one by one, and `/state` gives all."""
    faults = [fault for fault in FAULTS if not fault.of_place]
    cases = stage.cases("state", faults, stage.template("test.state", state_key=""))
    whole = [case for case in cases if not case.fault.is_no_object]
    for batch in (*batches(whole, len(cases)), *([case] for case in cases if case.fault.is_no_object)):
        right = stage.control(stage.template("test.state", state_key=""))
        wires = {_id(stage, case): case.wire for case in batch}
        wires[stage.forger.id_of(right)] = canonical(right)
        state, chain = list(stage.room.state.values()), stage.room.chain_of(list(stage.room.state.values()))
        padding = [stage.forger.missing() for _ in range(TOO_MANY)]
        ids = {"pdu_ids": [*state, *wires, *padding], "auth_chain_ids": chain}
        known = [canonical(stage.room.events[each]) for each in dict.fromkeys([*state, *chain])]
        answer = array("pdus", [*known, *wires.values()], auth_chain=[])
        answers: dict[str, Answerer] = {
            "get_missing_events": _none,
            "state_ids": always(ids),
            "state": always(answer),
        }
        await _follow(stage, [stage.forger.missing()], answers, batch[0])
        if batch[0] is whole[0]:
            await stage.expect_stored(right, batch[0])
    return cases


async def by_auth_chain(stage: Stage) -> list[Case]:
    """`/event_auth` gives what authorises an event: the sender's membership, with which something is wrong."""
    user_id = stage.room.user_id
    member = stage.room.make("m.room.member", {"membership": "join"}, state_key=user_id)
    template = {key: value for key, value in member.items() if key not in ("signatures", "hashes", "origin")}
    cases = stage.cases("event_auth", [fault for fault in FAULTS if not fault.of_place], template)
    right = stage.control(template)
    chain = [canonical(stage.room.events[each]) for each in stage.room.chain_of(list(stage.room.state.values()))]
    citing: dict[str, Case] = {}
    wires: dict[str, list[bytes]] = {}
    pushed = []
    for case in [*cases, None]:
        cited = stage.forger.id_of(right) if case is None else _id(stage, case)
        auth = [each for key, each in stage.room.state.items() if key[0] in ("m.room.create", "m.room.power_levels")]
        auth = [each for each in auth if not (stage.forger.rules.room_id_is_create_hash and each == _create(stage))]
        event = stage.room.make(auth=[*auth, cited])
        event_id = stage.room.id_of(event)
        if case is not None and case.fault.fate is not Fate.REDACTED:
            citing[event_id] = Case("an event that cites one of event_auth", case.fault, canonical(event), event_id)
        wires[event_id] = [*chain, canonical(right) if case is None else case.wire]
        pushed.append(event)
    before = dict(stage.world.hostile.answers)
    stage.world.hostile.answers |= {
        "event_auth": lambda path, _query, _body: array("auth_chain", wires.get(path[1], [])),
        "event": _nothing,
    }
    for start in range(0, len(pushed), 50):
        await stage.push(pushed[start : start + 50])
    stage.world.hostile.answers = before
    await stage.expect_stored(right, cases[0])
    await stage.expect_stored(pushed[-1], cases[0])
    return [*cases, *citing.values()]


def _create(stage: Stage) -> EventID:
    return stage.room.state["m.room.create", ""]


def _none(_path: Any, _query: Any, _body: Any) -> Any:
    return {"events": []}


def _nothing(_path: Any, _query: Any, _body: Any) -> Any:
    return None


WAYS: list[Way] = [by_missing_events, by_single_events, by_whole_state, by_auth_chain]
