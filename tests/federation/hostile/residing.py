"""Ways in while our users join, knock at, or read a room that the hostile server alone is in."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from federation.protocol import signatures
from federation.protocol.types import JsonObject
from tests.client import Answer, Client, quote
from tests.federation.hostile.faults import FAULTS, SIGNATURES, Fault, Forger, canonical
from tests.federation.hostile.pulling import array
from tests.federation.hostile.pushing import Way, batches
from tests.federation.hostile.world import Case, Stage
from tests.federation.lying_resident import LyingResident

BREAKING = frozenset(("200,000 brackets that open", "an event that breaks off"))
DOUBLING = frozenset(("another creation", "power levels of its own"))
"""A state has one event under a key."""
OF_OLD = frozenset(("21 previous events", "previous events that never come", "itself before itself"))
"""What precedes old events may be many, and unknown; and who follows what follows itself has no place."""


class HostileResident(LyingResident):
    """It has history, too: whatever a case says."""

    backfilled = b'{"pdus":[]}'

    def routes(self, application: web.Application) -> None:
        super().routes(application)
        v1 = "/_matrix/federation/v1"
        application.router.add_get(v1 + "/backfill/{room_id}", self._backfill)
        application.router.add_get(v1 + "/state_ids/{room_id}", self._state_ids)
        application.router.add_get(v1 + "/event_auth/{room_id}/{event_id}", self._event_auth)

    async def _backfill(self, _request: web.Request) -> web.Response:
        self.asked.append("backfill")
        return web.Response(body=self.backfilled, content_type="application/json")

    async def _state_ids(self, _request: web.Request) -> web.Response:
        state = [pdu.event_id for pdu in self.room.state.values()]
        return web.json_response({"pdu_ids": state, "auth_chain_ids": state})

    async def _event_auth(self, _request: web.Request) -> web.Response:
        return web.json_response({"auth_chain": [pdu.json for pdu in self.room.state.values()]})

    # --- events

    def forger(self, stage: Stage) -> Forger:
        """Signs for this server."""
        rules = self.room.rules
        return Forger(self.name, self.key, rules, stage.honest.user_id, stage.alice.user_id, stage.other.room_id)

    def event(self, event_type: str, state_key: str | None = None) -> JsonObject:
        """A right event of a user who has no power in the room, not signed."""
        user_id, rules = self.user("member0"), self.room.rules
        member = self.honest_template(user_id)["event"]
        keys = [("m.room.power_levels", ""), ("m.room.member", user_id)]
        keys += [("m.room.create", "")] if rules.create_in_auth_events else []
        cited = [self.room.state[key].event_id for key in keys]
        event = {
            **member,
            "type": event_type,
            "content": {"body": "x"},
            "state_key": state_key,
            "origin_server_ts": 1_700_000_000_000,
            "auth_events": [[each, {"sha256": "h" * 43}] if rules.references_carry_hashes else each for each in cited],
        }
        return {key: value for key, value in event.items() if value is not None}


R = TypeVar("R", bound=HostileResident)


async def a_resident(stage: Stage, kind: type[R]) -> R:
    """A hostile server with a room of this version, which users of ours may join."""
    resident = kind(stage.world.server, stage.world.authority, stage.version)
    users = {} if resident.room.rules.creators_have_infinite_power else {resident.user(): 100}
    levels = {"users": users, "events": {"test.state": 0}}
    resident.room.add("m.room.power_levels", resident.user(), levels, "")
    resident.add_members(1)
    await stage.world.add(resident)
    return resident


async def join(user: Client, resident: LyingResident) -> Answer:
    """Join its room."""
    return await user.request("POST", f"/v3/join/{quote(resident.room_id)}", {}, params=[("via", resident.name)])


def refused(stage: Stage, case: Case | str, answer: Answer) -> None:
    """Note unless our user was told that the other server is to blame."""
    stage.world.expect(answer.status in (400, 403, 404, 502), case, f"is answered with {answer.status} {answer.body}")


# --- the answer to send_join


def in_join_answers(array_name: str) -> Way:
    """Events in `state` or `auth_chain` of the answer, beside those that are right."""

    async def way(stage: Stage) -> list[Case]:
        user = await stage.world.visitor.register("joiner")
        cases: list[Case] = []
        faults = [fault for fault in FAULTS if not fault.of_place and fault.only(stage.forger.rules)]
        doubling = DOUBLING if array_name == "state" else frozenset[str]()
        alone = [fault for fault in faults if fault.is_no_object or fault.name in BREAKING | doubling]
        together = [fault for fault in faults if fault not in alone]
        for batch in (together, *([fault] for fault in alone)):
            cases += await _join_with(stage, user, array_name, batch)
        return cases

    return way


async def _join_with(stage: Stage, user: Client, array_name: str, faults: Sequence[Fault]) -> list[Case]:
    resident = await a_resident(stage, HostileResident)
    forger = resident.forger(stage)
    path = f"send_join's {array_name}"
    cases = [stage.case(path, fault, resident.event("test.state", ""), forger) for fault in faults]
    right = stage.control(resident.event("test.state", ""), forger)
    resident.encode = lambda answer: _spliced(answer, array_name, [*(case.wire for case in cases), canonical(right)])
    answer = await join(user, resident)
    if len(faults) == 1:  # the whole answer may be refused, or the event alone
        stage.world.expect(answer.status in (200, 502), cases[0], f"is answered with {answer.status} {answer.body}")
    else:
        stage.world.expect(answer.status == 200, path, f"keeps a user out: {answer.status} {answer.body}")
        await stage.expect_stored(right, path)
    return cases


def _spliced(answer: JsonObject, name: str, wires: Sequence[bytes]) -> bytes:
    events = [canonical(event) for event in answer[name]]
    others = {key: value for key, value in answer.items() if key != name}
    return array(name, [*events, *wires], **others)


# --- history


async def by_backfill(stage: Stage) -> list[Case]:
    """`/backfill`: what came before the room's end, which our user pages back to."""
    user = await stage.world.visitor.register("reader")
    faults = [fault for fault in FAULTS if fault.only(stage.forger.rules) and fault.name not in OF_OLD]
    placed = [Case("", fault, b"", "") for fault in faults]
    cases: list[Case] = []
    for batch in batches(placed, 18):
        cases += await _page_back(stage, user, [case.fault for case in batch])
    return cases


async def _page_back(stage: Stage, user: Client, faults: Sequence[Fault]) -> list[Case]:
    resident = await a_resident(stage, HostileResident)
    forger = resident.forger(stage)
    cases = [stage.case("backfill", fault, resident.event("m.room.message"), forger) for fault in faults]
    right = stage.control(resident.event("m.room.message"), forger)
    ids = [case.event_id if case.event_id.startswith("$") else forger.missing() for case in cases]
    ids = [each if len(each) < 256 else forger.missing() for each in ids]
    last = resident.event("m.room.message")
    last["prev_events"] = [forger.reference(each) for each in dict.fromkeys([*ids, forger.id_of(right)])]
    last["depth"] += 1
    last = stage.control(last, forger)

    def template(answer: JsonObject) -> JsonObject:
        event = {**answer["event"], "prev_events": [forger.reference(forger.id_of(last))], "depth": last["depth"] + 1}
        return {**answer, "event": event}

    resident.template = template
    wires = [canonical(last), *(case.wire for case in cases), canonical(right)]
    resident.backfilled = array("pdus", wires, origin=resident.name)
    answer = await join(user, resident)
    stage.world.expect(answer.status == 200, "backfill", f"keeps a user out: {answer.status} {answer.body}")
    page = await user.get(f"/v3/rooms/{quote(resident.room_id)}/messages", dir="b", limit=50)
    stage.world.expect(page.status == 200, cases[0], f"breaks paging: {page.status} {page.body}")
    shown = {event["event_id"] for event in page.body.get("chunk", [])}
    stage.world.expect("backfill" in resident.asked, cases[0], "was not asked for")
    if not faults[0].spoils_body:
        for event in (last, right):
            is_shown = forger.id_of(event) in shown
            stage.world.expect(is_shown, cases[0], f"keeps a right event out of the history: {shown}")
    return cases


# --- what our users' events are made of


def in_templates(membership: str) -> Way:
    """`make_join` and its like: what it would have us sign."""

    async def way(stage: Stage) -> list[Case]:
        if membership == "knock" and not stage.forger.rules.knocking:
            return []
        resident = await a_resident(stage, HostileResident)
        user = await stage.world.visitor.register("templated")
        path = f"make_{membership}"
        for name, change in _templates(stage, user).items():
            stage.world.tried[path] += 1
            resident.template = change
            resident.asked.clear()
            answer = await _wish(user, resident, membership)
            refused(stage, f"{path} with {name}", answer)
            stage.world.expect(resident.asked == [path], f"{path} with {name}", f"has us sign: {resident.asked}")
        return []

    return way


async def _wish(user: Client, resident: LyingResident, membership: str) -> Answer:
    if membership == "join":
        return await join(user, resident)
    return await user.request("POST", f"/v3/knock/{quote(resident.room_id)}", {}, params=[("via", resident.name)])


def _templates(stage: Stage, user: Client) -> dict[str, Callable[[JsonObject], Any]]:
    def event(**changes: Any) -> Callable[[JsonObject], Any]:
        return lambda answer: {**answer, "event": {**answer["event"], **changes}}

    ours, many = stage.alice.user_id, [stage.forger.reference(stage.forger.missing()) for _ in range(21)]
    return {
        "another type": event(type="m.room.power_levels", state_key=""),
        "another sender": event(sender=ours),
        "another state key": event(state_key=ours),
        "no state key": event(state_key=None),
        "another room": event(room_id=stage.room.room_id),
        "no room": event(room_id=None),
        "another membership": event(content={"membership": "invite"}),
        "a membership that is a number": event(content={"membership": 5}),
        "no content": event(content=None),
        "a depth of -1": event(depth=-1),
        "a depth of 2^64": event(depth=2**64),
        "a depth of 1.5": event(depth=1.5),
        "no depth": event(depth=None),
        "no previous events": event(prev_events=[]),
        "21 previous events": event(prev_events=many),
        "previous events that are numbers": event(prev_events=[1]),
        "11 auth events": event(auth_events=many[:11]),
        "an auth event twice": event(auth_events=many[:1] * 2),
        "no auth events": event(auth_events=None),
        "a version that is unknown": lambda answer: {**answer, "room_version": "99"},
        "a version that is a number": lambda answer: {**answer, "room_version": 11},
        "a version of 100,000 characters": lambda answer: {**answer, "room_version": "1" * 100_000},
        "an event that is an array": lambda answer: {**answer, "event": []},
        "no event": lambda answer: {"room_version": answer["room_version"]},
        "an array": lambda answer: [answer],
        "null": lambda _answer: None,
    }


async def by_countersignature(stage: Stage) -> list[Case]:
    """A restricted join that the hostile server says it vouches for."""
    if not stage.forger.rules.restricted_joins:
        return []
    resident = await a_resident(stage, HostileResident)
    user, eve = await stage.world.visitor.register("restricted"), resident.user()
    lobby = {"type": "m.room_membership", "room_id": "!lobby:x"}
    resident.room.add("m.room.join_rules", eve, {"join_rule": "restricted", "allow": [lobby]}, "")

    def template(answer: JsonObject) -> JsonObject:
        answer["event"]["content"]["join_authorised_via_users_server"] = eve
        answer["event"]["auth_events"].append(resident.room.events[1].event_id)
        return answer

    resident.template = template
    for name, spoil in _countersignatures(resident, resident.forger(stage)).items():
        stage.world.tried["a restricted join"] += 1
        resident.answer = _with_event(spoil)
        refused(stage, f"a restricted join with {name}", await join(user, resident))
    resident.answer = lambda answer: {
        **answer,
        "event": signatures.sign_event(answer["event"], resident.room.rules, resident.name, resident.key),
    }
    answer = await join(user, resident)
    stage.world.expect(answer.status == 200, "a restricted join", f"keeps a user out: {answer.body}")
    return []


async def by_invited_server(stage: Stage) -> list[Case]:
    """What the hostile server answers to an invite of one of its users."""
    resident = await a_resident(stage, HostileResident)
    path = f"/v3/rooms/{quote(stage.room.room_id)}/invite"
    for name, spoil in _countersignatures(resident, resident.forger(stage)).items():
        stage.world.tried["the answer to an invite"] += 1
        resident.answer = _with_event(spoil)
        refused(stage, f"an invite with {name}", await stage.alice.post(path, {"user_id": resident.user("guest")}))
    resident.answer = lambda answer: answer
    answer = await stage.alice.post(path, {"user_id": resident.user("guest")})
    stage.world.expect(answer.status == 200, "the answer to an invite", f"keeps a user out: {answer.body}")
    return []


def _with_event(spoil: Callable[[JsonObject], Any]) -> Callable[[JsonObject], Any]:
    return lambda answer: {**answer, "event": spoil(answer["event"])}


def _countersignatures(resident: LyingResident, forger: Forger) -> dict[str, Callable[[JsonObject], Any]]:
    spoils: dict[str, Callable[[JsonObject], Any]] = {
        fault.name: partial(fault.spoil, forger)
        for fault in SIGNATURES
        if fault.name not in ("another server's user", "a user of ours")
    }

    def of_another(event: JsonObject) -> JsonObject:
        return forger.seal({**event, "depth": 77})

    spoils |= {
        "a signature of another event": of_another,
        "null": lambda _event: None,
        "an array": lambda _event: [],
        "an empty object": lambda _event: {},
        "text": lambda _event: "x" * 100_000,
    }
    return spoils


# --- what is told of a room


async def by_stripped_state(stage: Stage) -> list[Case]:
    """The answer to a knock: what our user is shown of the room."""
    if not stage.forger.rules.knocking:
        return []
    user = await stage.world.visitor.register("knocker")
    entries: dict[str, Any] = {
        "null": None,
        "text": "x",
        "an object": {},
        "numbers": [1, 2, None, [], "x"],
        "events without content": [{"type": "m.room.name", "state_key": "", "sender": "@a:b"}],
        "content that is null": [{"type": "m.room.name", "state_key": "", "sender": "@a:b", "content": None}],
        "a sender that is no user": [{"type": "m.room.name", "state_key": "", "sender": "x", "content": {}}],
        "a name of a megabyte": [_told({"name": "n" * 900_000})],
        "10,000 events": [_told({"name": "n"}, f"{number}") for number in range(10_000)],
        "deep content": [_told({"a": _deep(120)})],
        "floats and large numbers": [_told({"a": 1.5, "b": 10**40})],
    }
    for name, told in entries.items():
        stage.world.tried["send_knock's answer"] += 1
        resident = await a_resident(stage, HostileResident)
        resident.answer = partial(_knocked, told)
        resident.room.add("m.room.join_rules", resident.user(), {"join_rule": "knock"}, "")
        await _wish(user, resident, "knock")
        answer = await user.get("/v3/sync")
        size = len(canonical(answer.body))
        stage.world.expect(answer.status == 200 and size < 1_000_000, f"send_knock with {name}", "breaks syncs")
    return []


def _knocked(told: Any, _answer: JsonObject) -> JsonObject:
    return {"knock_room_state": told}


def _told(content: JsonObject, state_key: str = "") -> JsonObject:
    return {"type": "m.room.name", "state_key": state_key, "sender": "@a:b", "content": content}


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


WAYS: list[Way] = [
    in_join_answers("state"),
    in_join_answers("auth_chain"),
    by_backfill,
    in_templates("join"),
    in_templates("knock"),
    by_countersignature,
    by_invited_server,
    by_stripped_state,
]
