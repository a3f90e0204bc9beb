"""Ways in by which the hostile server brings an event itself: transactions, handshakes, invites."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from federation.protocol.types import JsonObject
from tests.client import Answer, quote
from tests.federation.hostile.faults import FAULTS, Fate, canonical
from tests.federation.hostile.world import Case, Stage, transaction_body
from tests.federation.peer import path_of
from tests.federation.their_room import TheirRoom
from tests.rooms import create_room

PDUS = 50
REFUSALS = frozenset(
    (
        "M_BAD_JSON",
        "M_NOT_JSON",
        "M_INVALID_PARAM",
        "M_MISSING_PARAM",
        "M_TOO_LARGE",
        "M_FORBIDDEN",
        "M_NOT_FOUND",
        "M_INCOMPATIBLE_ROOM_VERSION",
    )
)
"""How the specification has a server say no; neither an internal error nor "unknown"."""

_transactions = itertools.count(1)

Way = Callable[[Stage], Awaitable[list[Case]]]


def batches(cases: Sequence[Case], size: int) -> list[list[Case]]:
    """The cases a few at a time; what spoils everything around it alone."""
    calm = [case for case in cases if not case.fault.spoils_body]
    return [
        *(calm[start : start + size] for start in range(0, len(calm), size)),
        *([case] for case in cases if case.fault.spoils_body),
    ]


def check_refused(stage: Stage, case: Case | str, answer: Answer) -> None:
    """Note unless the peer was told no, and why."""
    errcode = answer.body.get("errcode") if isinstance(answer.body, dict) else None
    is_refused = 400 <= answer.status < 500 and errcode in REFUSALS
    stage.world.expect(is_refused, case, f"is answered with {answer.status} {str(answer.body)[:300]}")


# --- transactions


def in_transactions(event_type: str, state_key: str | None = None) -> Way:
    """Events of this type, pushed, each transaction with one that is right at its end."""

    async def way(stage: Stage) -> list[Case]:
        path = "a state event in /send" if state_key is not None else "a message in /send"
        cases = stage.cases(path, FAULTS, stage.template(event_type, state_key=state_key))
        for batch in batches(cases, PDUS - 1):
            await _send(stage, batch, stage.control(stage.template(event_type, state_key=state_key)))
        return cases

    return way


async def _send(stage: Stage, batch: Sequence[Case], right: JsonObject) -> None:
    hostile, right_id = stage.world.hostile, stage.forger.id_of(right)
    wires = [*(case.wire for case in batch), canonical(right)]
    path = path_of("/v1/send/{}", f"hostile{next(_transactions)}")
    answer = await hostile.request("PUT", path, transaction_body(hostile, wires))
    if batch[0].fault.spoils_body:
        check_refused(stage, batch[0], answer)
        return
    stage.world.expect(answer.status == 200, batch[0], f"makes a transaction fail: {answer.status} {answer.body}")
    told = answer.body["pdus"] if answer.status == 200 else {}
    stage.world.expect(told.get(right_id) == {}, batch[0], f"harms another: {told.get(right_id)}")
    if told.get(right_id) == {}:
        stage.room.keep(right)
    for case in batch:
        if case.fault.fate is Fate.DROPPED and case.event_id in told:
            stage.world.expect(told[case.event_id].get("error"), case, "is said to be there")


# --- handshakes


def by_handshake(api: str, membership: str) -> Way:
    """Member events of a user whom the room would let do this, brought with `send_join` and its like."""

    async def way(stage: Stage) -> list[Case]:
        room_id = stage.room.room_id
        if membership == "knock":
            if not stage.forger.rules.knocking:
                return []
            rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
            room_id = await create_room(stage.alice, room_version=stage.version, initial_state=[rule])
        user = f"@{membership}-{api}:{stage.world.hostile.name}"
        if membership == "leave":
            await _hand_in(stage, room_id, user, "v2/send_join", "join")
        template = await _template(stage, room_id, user, membership)
        cases = [
            case for case in stage.cases(f"{api}/send_{membership}", FAULTS, template) if not _may(case, membership)
        ]
        for case in cases:
            await _bring(stage, case, room_id)
        await _check_disagreements(stage, room_id, template, f"{api}/send_{membership}")
        right = stage.control(template)
        path = path_of(f"/{api}/send_{membership}/{{}}/{{}}", room_id, stage.forger.id_of(right))
        await stage.world.hostile.ok("PUT", path, right)
        return cases

    return way


def _may(case: Case, membership: str) -> bool:
    """A stranger may join and knock like anybody."""
    return membership != "leave" and case.fault.name == "a user who is not in the room"


async def _template(stage: Stage, room_id: str, user: str, membership: str) -> JsonObject:
    path = path_of(f"/v1/make_{membership}/{{}}/{{}}", room_id, user)
    answer = await stage.world.hostile.ok("GET", path, ver=[stage.version])
    event = {**answer["event"], "origin_server_ts": 1_700_000_000_000}
    return {key: value for key, value in event.items() if key not in ("signatures", "hashes", "origin", "unsigned")}


async def _hand_in(stage: Stage, room_id: str, user: str, api: str, membership: str) -> None:
    template = await _template(stage, room_id, user, membership)
    event = stage.world.hostile.finish(template, stage.forger.rules)
    path = path_of(f"/{api}/{{}}/{{}}", room_id, stage.room.id_of(event))
    await stage.world.hostile.ok("PUT", path, event)


async def _bring(stage: Stage, case: Case, room_id: str) -> None:
    path = path_of(f"/{case.path}/{{}}/{{}}", room_id, case.event_id or stage.forger.missing())
    check_refused(stage, case, await stage.world.hostile.request("PUT", path, case.wire))


async def _check_disagreements(stage: Stage, room_id: str, template: JsonObject, path: str) -> None:
    """A right event on a path that says something else, or brought by somebody else."""
    if stage.forger.rules.event_id_format == "server":
        template = {**template, "event_id": f"$disagrees{next(_transactions)}:{stage.forger.name}"}
    right = stage.forger.seal(template)
    event_id = stage.forger.id_of(right)
    hostile, honest = stage.world.hostile, stage.world.honest
    tries = [
        ("another event ID", hostile, room_id, stage.forger.missing()),
        ("no event ID", hostile, room_id, "x"),
        ("another room", hostile, stage.other.room_id, event_id),
        ("a room that is nowhere", hostile, "!nowhere:else.test", event_id),
        ("no room ID", hostile, "x" * 300, event_id),
        ("another server that brings it", honest, room_id, event_id),
    ]
    for name, peer, in_room, as_event in tries:
        stage.world.tried[path] += 1
        answer = await peer.request("PUT", path_of(f"/{path}/{{}}/{{}}", in_room, as_event), right)
        check_refused(stage, f"{path} with {name} in its path", answer)
    for other in ("send_join", "send_leave", "send_knock"):
        if other not in path:
            stage.world.tried[path] += 1
            of_path = f"v1/{other}"
            answer = await hostile.request("PUT", path_of(f"/{of_path}/{{}}/{{}}", room_id, event_id), right)
            check_refused(stage, f"{of_path} with an event for {path}", answer)
    rows = await stage.world.rows("select 1 from events where event_id = %s", event_id)
    stage.world.expect(not rows, path, "an event is taken on a path that it does not fit")


# --- invites


def by_invite(api: str) -> Way:
    """Invites of our user to a room that is nowhere but there."""

    async def way(stage: Stage) -> list[Case]:
        rules = stage.forger.rules
        if api == "v1" and not rules.references_carry_hashes:
            return []
        theirs = TheirRoom(stage.world.hostile, stage.version)
        event = theirs.invite(stage.alice.user_id)
        template = {key: value for key, value in event.items() if key not in ("signatures", "hashes", "origin")}
        template["prev_events"] = [stage.forger.reference(stage.forger.missing())]
        faults = [fault for fault in FAULTS if not fault.needs_room]
        cases = stage.cases(f"{api}/invite", faults, template)
        for case in cases:
            path = path_of(f"/{api}/invite/{{}}/{{}}", theirs.room_id, case.event_id or stage.forger.missing())
            check_refused(stage, case, await stage.world.hostile.request("PUT", path, _invite(theirs, case.wire, api)))
        await _check_bodies(stage, theirs, api)
        rows = await stage.world.rows(
            "select count(*) from outside_memberships where user_id = %s", stage.alice.user_id
        )
        stage.world.expect(rows == [(0,)], f"{api}/invite", "our user is invited")
        right = stage.control({**template, "state_key": (await stage.world.visitor.register()).user_id})
        path = path_of(f"/{api}/invite/{{}}/{{}}", theirs.room_id, stage.forger.id_of(right))
        await stage.world.hostile.ok("PUT", path, _invite(theirs, canonical(right), api))
        return cases

    return way


def _invite(theirs: TheirRoom, wire: bytes, api: str) -> bytes:
    if api == "v1":
        return wire
    told = [event for key, event in theirs.state.items() if key[0] != "m.room.member"]
    encoded = b",".join(canonical(event) for event in told)
    version = theirs.rules.version.encode()
    return b'{"event":' + wire + b',"invite_room_state":[' + encoded + b'],"room_version":"' + version + b'"}'


async def _check_bodies(stage: Stage, theirs: TheirRoom, api: str) -> None:
    """A right invite with something wrong around it."""
    hostile, our_user = stage.world.hostile, stage.alice.user_id
    right = theirs.invite(our_user)
    tries: list[tuple[str, JsonObject, JsonObject]] = [
        ("a user that is nowhere", theirs.invite(f"@nobody:{stage.world.server.name}"), {}),
        ("a user of another server", theirs.invite(stage.forger.honest_user), {}),
        ("a join", theirs.make("m.room.member", {"membership": "join"}, our_user), {}),
        ("a ban", theirs.make("m.room.member", {"membership": "ban"}, our_user), {}),
    ]
    if api == "v2":
        tries += [
            ("a room version that is unknown", right, {"room_version": "99"}),
            ("a room version that is a number", right, {"room_version": 11}),
            (
                "another room version",
                right,
                {"room_version": "11" if stage.forger.rules.references_carry_hashes else "1"},
            ),
            ("no room version", right, {"room_version": None}),
        ]
    if stage.forger.rules.room_id_is_create_hash:
        create = theirs.state["m.room.create", ""]
        tries += [
            ("no state", right, {"invite_room_state": []}),
            ("a state that is null", right, {"invite_room_state": None}),
            ("a state that is not signed", right, {"invite_room_state": [{**create, "signatures": {}}]}),
            ("a huge state", right, {"invite_room_state": [create] * 1000}),
            (
                "stripped events",
                right,
                {"invite_room_state": [{"type": "m.room.create", "state_key": "", "content": {}}]},
            ),
        ]
    for name, event, changes in tries:
        stage.world.tried[f"{api}/invite"] += 1
        path = path_of(f"/{api}/invite/{{}}/{{}}", theirs.room_id, hostile.id_of(event, theirs.rules))
        body = theirs.body(event, **changes) if api == "v2" else event
        check_refused(stage, f"{api}/invite with {name}", await hostile.request("PUT", path, body))


# --- third-party invites


async def by_exchange(stage: Stage) -> list[Case]:
    """What the hostile server says that somebody owns an address, without proof."""
    hostile, path_name = stage.world.hostile, "exchange_third_party_invite"
    key = {"public_key": "x" * 43, "key_validity_url": "https://id.test/valid", "display_name": "e..."}
    await stage.alice.ok("PUT", f"/v3/rooms/{quote(stage.room.room_id)}/state/m.room.third_party_invite/promised", key)
    target = hostile.user("bound")
    signed = {"mxid": target, "token": "promised", "signatures": {"id.test": {"ed25519:0": "x" * 86}}}
    right: JsonObject = {
        "type": "m.room.member",
        "room_id": stage.room.room_id,
        "sender": stage.alice.user_id,
        "state_key": target,
        "content": {"membership": "invite", "third_party_invite": {"display_name": "e", "signed": signed}},
    }

    def having(**changes: Any) -> JsonObject:
        return {**right, "content": {"membership": "invite", "third_party_invite": {"signed": {**signed, **changes}}}}

    tries: dict[str, Any] = {
        "a signature that does not hold": right,
        "no signature": having(signatures={}),
        "a thousand signatures": having(signatures={f"s{number}.test": {"ed25519:0": "x"} for number in range(1000)}),
        "signatures as an array": having(signatures=[]),
        "a promise that nobody made": having(token="another"),  # no password
        "a token of a megabyte": having(token="t" * 900_000),
        "somebody else's address": having(mxid=stage.forger.honest_user),
        "a user of ours": {**having(mxid=stage.alice.user_id), "state_key": stage.alice.user_id},
        "a user of another server": {**having(mxid=stage.forger.honest_user), "state_key": stage.forger.honest_user},
        "another sender": {**right, "sender": hostile.user()},
        "another room": {**right, "room_id": stage.other.room_id},
        "another type": {**right, "type": "m.room.power_levels"},
        "a join": {**right, "content": {**right["content"], "membership": "join"}},
        "no invite": {**right, "content": {"membership": "invite"}},
        "content as text": {**right, "content": "x"},
        "an empty object": {},
    }
    for name, body in tries.items():
        stage.world.tried[path_name] += 1
        path = path_of("/v1/exchange_third_party_invite/{}", stage.room.room_id)
        answer = await hostile.request("PUT", path, body)
        check_refused(stage, f"{path_name} with {name}", answer)
    rows = await stage.world.rows("select 1 from strings where value = %s", target)
    stage.world.expect(not rows, path_name, "the user is invited")
    return []


WAYS: list[Way] = [
    in_transactions("m.room.message"),
    in_transactions("test.state", ""),
    by_handshake("v1", "join"),
    by_handshake("v2", "join"),
    by_handshake("v1", "leave"),
    by_handshake("v2", "leave"),
    by_handshake("v1", "knock"),
    by_invite("v1"),
    by_invite("v2"),
    by_exchange,
]
