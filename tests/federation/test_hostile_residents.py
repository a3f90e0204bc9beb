"""What a resident server may answer to who wants to join: nothing of it gets in unchecked, and nothing hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from federation.protocol import signatures
from federation.protocol.types import JsonObject
from federation.rooms import received_state
from storage.events import Flag
from tests.client import Client, Server, quote
from tests.federation.authority import Authority
from tests.federation.lying_resident import LyingResident, resident
from tests.federation.servers import federating
from tests.federation.test_joining import create, join, state_of
from tests.homeserver.syncs import part, sync
from tests.protocol.builders import VERSIONS, a_signed_event, resigned
from tests.rooms import send


@pytest_asyncio.fixture(scope="module")
async def server(maintenance_conninfo: str, authority: Authority) -> AsyncIterator[Server]:
    async with federating(maintenance_conninfo, authority) as running:
        yield running


@pytest_asyncio.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


@pytest_asyncio.fixture
async def other(server: Server, authority: Authority) -> AsyncIterator[LyingResident]:
    async with resident(server, authority) as found:
        yield found


async def refused(bob: Client, other: LyingResident) -> Any:
    """The join must fail because of the other server, and leave nothing behind."""
    answer = await join(bob, other.room_id, other.name)
    assert answer.status == 502, answer.body
    assert (await bob.get("/v3/joined_rooms")).body["joined_rooms"] == []
    assert "rooms" not in (await bob.get("/v3/sync")).body
    return answer


async def members_after(bob: Client, other: LyingResident) -> set[str]:
    """The join must succeed; who is in the room by the state that we took."""
    answer = await join(bob, other.room_id, other.name)
    assert answer.status == 200, answer.body
    return {key for event_type, key in await state_of(bob, other.room_id) if event_type == "m.room.member"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_honest_resident_lets_us_in(server: Server, authority: Authority, bob: Client, version: str) -> None:
    async with resident(server, authority, version) as other:
        other.add_members(3)
        assert len(await members_after(bob, other)) == 5


async def test_our_first_users_join_is_told_by_who_helped_us_alone(bob: Client, other: LyingResident) -> None:
    await members_after(bob, other)
    await send(bob, other.room_id, "hello")

    await other.until_messages(["hello"])
    assert [pdu["type"] for pdu in other.pdus] == ["m.room.message"]


async def test_an_old_resident_knows_version_1_of_the_endpoint_alone(bob: Client, other: LyingResident) -> None:
    other.knows_v2 = False
    assert await members_after(bob, other) == {other.user(), bob.user_id}


@pytest.mark.parametrize("version", ["2", "11"])
async def test_history_may_hold_events_with_more_references_than_are_allowed_now(
    server: Server, authority: Authority, bob: Client, version: str
) -> None:
    async with resident(server, authority, version) as other:
        eve, fork = other.user(), other.room.events[-1]
        ends = [
            other.room.add("m.room.message", eve, {"msgtype": "m.text", "body": f"{number}"}, prev_events=[fork])
            for number in range(25)
        ]
        other.room.add("m.room.message", eve, {"msgtype": "m.text", "body": "merge"}, prev_events=ends)
        await members_after(bob, other)

        page = await bob.ok("GET", f"/v3/rooms/{quote(other.room_id)}/messages", params={"dir": "b", "limit": "50"})

    assert {"merge", *(f"{number}" for number in range(25))} <= {each["content"].get("body") for each in page["chunk"]}


# --- templates


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "m.room.power_levels"},
        {"sender": "@admin:example.org"},
        {"state_key": "@admin:example.org"},
        {"room_id": "!other:example.org"},
        {"content": {"membership": "ban"}},
        {"prev_events": []},
        {"depth": 2**60},
    ],
)
async def test_what_we_did_not_ask_for_is_not_signed(bob: Client, other: LyingResident, changes: JsonObject) -> None:
    other.template = lambda answer: {**answer, "event": {**answer["event"], **changes}}
    await refused(bob, other)
    assert other.asked == ["make_join"]


async def test_of_a_template_only_its_place_is_taken_over(bob: Client, other: LyingResident) -> None:
    extra = {"content": {"membership": "join", "displayname": "Mallory", "evil": 1}, "unsigned": {"a": 1}, "evil": 1}
    other.template = lambda answer: {**answer, "event": {**answer["event"], **extra}}
    await members_after(bob, other)
    assert other.sent["content"] == {"membership": "join"}
    assert "evil" not in other.sent


async def test_a_version_that_we_do_not_know_is_named(bob: Client, other: LyingResident) -> None:
    other.template = lambda answer: {**answer, "room_version": "99"}
    answer = await join(bob, other.room_id, other.name)
    assert (answer.status, answer.body["errcode"]) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer.body["room_version"] == "99"


# --- single events


async def test_a_state_event_with_a_wrong_signature_is_left_out(bob: Client, other: LyingResident) -> None:
    other.add_members(1)

    def lie(answer: JsonObject) -> JsonObject:
        forged = {**answer["state"][-1], "signatures": {other.name: {other.key.key_id: "x" * 86}}}
        return {**answer, "state": [*answer["state"][:-1], forged], "auth_chain": answer["state"][:4]}

    other.answer = lie
    assert await members_after(bob, other) == {other.user(), bob.user_id}


async def test_a_state_event_with_a_wrong_hash_is_redacted(bob: Client, other: LyingResident) -> None:
    other.add_members(1)

    def lie(answer: JsonObject) -> JsonObject:
        last = answer["state"][-1]
        forged = {**last, "content": {**last["content"], "displayname": "Mallory"}}
        return {**answer, "state": [*answer["state"][:-1], forged], "auth_chain": answer["state"][:4]}

    other.answer = lie
    await members_after(bob, other)
    events = (await bob.get(f"/v3/rooms/{other.room_id}/members")).body["chunk"]
    assert [event["content"] for event in events if event["sender"] == other.user("member0")] == [
        {"membership": "join"}
    ]


async def test_an_event_of_another_room_is_left_out(server: Server, bob: Client, other: LyingResident) -> None:
    foreign = a_signed_event(
        type="m.room.member", sender=other.user("x"), state_key=other.user("x"), content={"membership": "join"}
    )
    other.answer = lambda answer: {**answer, "state": [*answer["state"], foreign.json]}
    assert await members_after(bob, other) == {other.user(), bob.user_id}
    async with server.application.database.read() as tx:
        assert await tx.fetch("select from events where event_id = %s", (foreign.event_id,)) == []


async def test_an_event_that_its_auth_events_do_not_allow_is_none_of_the_state(
    server: Server, bob: Client, other: LyingResident
) -> None:
    topic = other.room.add("m.room.topic", other.user("stranger"), {"topic": "not in the room"}, "")

    await members_after(bob, other)

    assert ("m.room.topic", "") not in await state_of(bob, other.room_id)
    async with server.application.database.read() as tx:
        (row,) = await tx.fetch("select flags from events where event_id = %s", (topic.event_id,))
    assert row[0] == Flag.OUTLIER | Flag.REJECTED


async def test_an_event_in_the_name_of_another_server_is_left_out(bob: Client, other: LyingResident) -> None:
    victim = "@victim:victim.example"
    event = {**other.room.events[1].json, "sender": victim, "state_key": victim}
    event["auth_events"] = [other.room.events[0].event_id, other.room.events[2].event_id, other.room.events[3].event_id]
    forged = resigned(event, other.room.rules, other.name)
    other.answer = lambda answer: {**answer, "state": [*answer["state"], forged]}
    assert await members_after(bob, other) == {other.user(), bob.user_id}


@pytest.mark.parametrize(
    "broken", [{}, {"type": 1}, {"depth": 1.5}, {"content": {"x": 2**60}}, {"content": {"x": "y" * 70_000}}]
)
async def test_what_is_no_event_is_left_out(bob: Client, other: LyingResident, broken: JsonObject) -> None:
    event = {**other.room.events[-1].json, **broken, "state_key": "x"} if broken else {}
    other.answer = lambda answer: {**answer, "state": [*answer["state"], event]}
    await members_after(bob, other)


# --- whole answers


def without(*types: str) -> Callable[[JsonObject], Any]:
    def lie(answer: JsonObject) -> JsonObject:
        return {name: [e for e in answer[name] if e["type"] not in types] for name in ("state", "auth_chain")}

    return lie


LIES: dict[str, Callable[[JsonObject], Any]] = {
    "no create event": without("m.room.create"),
    "nothing that authorises the join": without("m.room.join_rules"),
    "an empty state": lambda answer: {**answer, "state": []},
    "nothing at all": lambda answer: {},
    "no auth chain": lambda answer: {"state": answer["state"]},
    "an array": lambda answer: [answer],
    "null for the state": lambda answer: {**answer, "state": None},
    "no objects in the state": lambda answer: {**answer, "state": [1, 2]},
}


@pytest.mark.parametrize("name", LIES)
async def test_a_state_that_is_none_is_refused(bob: Client, other: LyingResident, name: str) -> None:
    other.answer = LIES[name]
    await refused(bob, other)


async def test_members_that_are_left_out_and_that_nobody_gives_make_no_state(bob: Client, other: LyingResident) -> None:
    other.answer = lambda answer: {**answer, "members_omitted": True, "servers_in_room": ["x", 1, bob.user_id]}
    other.answer_state = lambda _: None
    await refused(bob, other)
    assert other.asked[-1].startswith("state ")


async def test_a_room_of_another_version_than_was_said_is_refused(
    server: Server, authority: Authority, bob: Client
) -> None:
    async with resident(server, authority, "9") as other:
        other.template = lambda answer: {**answer, "room_version": "8"}
        await refused(bob, other)


async def test_a_room_that_is_known_by_another_version_is_refused(
    server: Server, authority: Authority, bob: Client
) -> None:
    async with resident(server, authority, "10") as other:
        await members_after(bob, other)
        await bob.ok("POST", f"/v3/rooms/{quote(other.room_id)}/leave", {})
        other.room = other.found_room("11")

        answer = await join(bob, other.room_id, other.name)

        assert answer.status == 502, answer.body
        assert (await bob.get("/v3/joined_rooms")).body["joined_rooms"] == []
        other.room = other.found_room("10")
        assert await members_after(bob, other) == {other.user(), bob.user_id}


async def test_two_events_under_one_key_are_no_state(bob: Client, other: LyingResident) -> None:
    first = other.room.add("m.room.name", other.user(), {"name": "one"}, "")
    other.room.add("m.room.name", other.user(), {"name": "two"}, "")
    other.answer = lambda answer: {**answer, "state": [*answer["state"], first.json]}
    await refused(bob, other)


@pytest.mark.parametrize("version", ["2", "11", "12"])
@pytest.mark.parametrize("cited", ["too little", "of another room", "what was rejected"])
async def test_what_authorises_the_join_must_allow_it_too(
    server: Server, authority: Authority, bob: Client, version: str, cited: str
) -> None:
    async with resident(server, authority, version) as other:
        elsewhere, eve = other.found_room(version), other.user()
        rejected = other.room.add("m.room.join_rules", other.user("mallory"), {"join_rule": "public"}, "x")
        del other.room.state["m.room.join_rules", "x"]
        elsewhere.add("m.room.name", eve, {"name": "so that it is another"}, "")
        foreign = elsewhere.add("m.room.join_rules", eve, {"join_rule": "public"}, "")
        good = other.honest_template(bob.user_id)["event"]["auth_events"]
        bad = {
            "too little": good[:1],
            "of another room": other.refer([foreign.event_id]) + good[1:],
            "what was rejected": good + other.refer([rejected.event_id]),
        }[cited]
        other.template = lambda answer: {**answer, "event": {**answer["event"], "auth_events": bad}}
        other.answer = lambda answer: {**answer, "auth_chain": [*answer["auth_chain"], foreign.json, rejected.json]}

        await refused(bob, other)


@pytest.mark.parametrize("is_cited", [True, False])
async def test_a_state_that_does_not_allow_the_join_is_refused(
    bob: Client, other: LyingResident, *, is_cited: bool
) -> None:
    before = other.honest_template(bob.user_id)["event"]["auth_events"]
    other.room.add("m.room.member", other.user(), {"membership": "ban"}, bob.user_id)
    if not is_cited:
        other.template = lambda answer: {**answer, "event": {**answer["event"], "auth_events": before}}
    await refused(bob, other)


async def test_a_key_that_is_repeated_is_refused(bob: Client, other: LyingResident) -> None:
    other.encode = lambda answer: b'{"state":[],"x":1,"x":2,' + orjson.dumps(answer)[1:]
    await refused(bob, other)


REFUSALS = [
    ("join", 403, "M_FORBIDDEN", 403),
    ("join", 400, "M_UNABLE_TO_AUTHORISE_JOIN", 400),
    ("join", 400, "M_UNABLE_TO_GRANT_JOIN", 400),
    ("join", 400, "M_INCOMPATIBLE_ROOM_VERSION", 400),
    ("join", 404, "M_NOT_FOUND", 404),
    ("join", 400, "M_INVALID_PARAM", 502),
    ("join", 400, "M_MISSING_PARAM", 502),
    ("invite", 403, "M_FORBIDDEN", 403),
    ("invite", 403, "M_INVITE_BLOCKED", 403),
    ("invite", 400, "M_INCOMPATIBLE_ROOM_VERSION", 400),
    ("invite", 400, "M_INVALID_PARAM", 502),
    ("invite", 400, "M_MISSING_PARAM", 502),
]
"""What is asked for, how the other server refuses it, and the client's status: of our mistakes it is not told."""


@pytest.mark.parametrize(("what", "status", "errcode", "told"), REFUSALS)
async def test_what_a_client_is_told_of_a_refusal(
    bob: Client, other: LyingResident, what: str, status: int, errcode: str, told: int
) -> None:
    other.status, other.refusal = status, {"errcode": errcode, "error": "no", "room_version": "99"}

    if what == "join":
        answer = await join(bob, other.room_id, other.name)
    else:
        room_id = await create(bob)
        answer = await bob.post(f"/v3/rooms/{quote(room_id)}/invite", {"user_id": other.user()})

    assert (answer.status, answer.body["errcode"]) == (told, errcode)


async def test_a_large_state_waits_on_disk(bob: Client, other: LyingResident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received_state, "MAX_BYTES_IN_MEMORY", 2_000)
    monkeypatch.setattr(received_state, "CHUNK", 7)
    other.add_members(50)

    assert len(await members_after(bob, other)) == 52
    events = (await bob.get(f"/v3/rooms/{other.room_id}/members")).body["chunk"]
    names = {event["content"].get("displayname") for event in events}
    assert names == {None, *(f"M {number}" for number in range(50))}


@pytest.mark.parametrize("lie", ["unsigned", "signed wrongly", "signed by us alone", "nothing"])
async def test_who_is_vouched_for_needs_the_signature(bob: Client, other: LyingResident, lie: str) -> None:
    eve = other.user()
    lobby = {"type": "m.room_membership", "room_id": "!lobby:x"}
    other.room.add("m.room.join_rules", eve, {"join_rule": "restricted", "allow": [lobby]}, "")

    def template(answer: JsonObject) -> JsonObject:
        answer["event"]["content"]["join_authorised_via_users_server"] = eve
        answer["event"]["auth_events"].append(other.room.events[1].event_id)
        return answer

    def answered(answer: JsonObject) -> JsonObject:
        event = signatures.sign_event(answer["event"], other.room.rules, other.name, other.key)
        if lie == "unsigned":
            event = {**event, "signatures": {}}
        elif lie == "signed wrongly":
            event["signatures"][other.name] = {other.key.key_id: "x" * 86}
        elif lie == "signed by us alone":
            event = answer["event"]
        elif lie == "nothing":
            return {**answer, "event": None}
        return {**answer, "event": event}

    other.template, other.answer = template, answered
    await refused(bob, other)
    lie = "none"
    assert (await join(bob, other.room_id, other.name)).status == 200


# --- invites


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_a_server_that_knows_an_old_invite_alone(bob: Client, other: LyingResident, version: str) -> None:
    room_id = await create(bob, room_version=version)
    other.knows_v2 = False

    answer = await bob.post(f"/v3/rooms/{quote(room_id)}/invite", {"user_id": other.user()})

    assert answer.status == (200 if version == "1" else 502), answer.body
    assert (("m.room.member", other.user()) in await state_of(bob, room_id)) == (version == "1")


@pytest.mark.parametrize("lie", ["unsigned", "signed wrongly", "nothing", "refused"])
async def test_an_invite_that_is_not_signed_is_not_in_the_room(bob: Client, other: LyingResident, lie: str) -> None:
    room_id = await create(bob)
    if lie == "unsigned":
        other.answer = lambda answer: {"event": {**answer["event"], "signatures": {}}}
    elif lie == "signed wrongly":
        wrong = {other.name: {other.key.key_id: "x" * 86}}
        other.answer = lambda answer: {"event": {**answer["event"], "signatures": wrong}}
    elif lie == "nothing":
        other.answer = lambda answer: {}
    else:
        other.status = 403

    answer = await bob.post(f"/v3/rooms/{quote(room_id)}/invite", {"user_id": other.user()})

    assert answer.status == (403 if lie == "refused" else 502), answer.body
    assert ("m.room.member", other.user()) not in await state_of(bob, room_id)


async def test_of_an_invite_that_is_signed_only_the_signature_is_taken(bob: Client, other: LyingResident) -> None:
    room_id = await create(bob)
    other.answer = lambda answer: {
        "event": {**answer["event"], "content": {"membership": "join"}, "unsigned": {"a": 1}}
    }

    answer = await bob.post(f"/v3/rooms/{quote(room_id)}/invite", {"user_id": other.user()})

    assert answer.status == 200, answer.body
    member = await bob.get(f"/v3/rooms/{quote(room_id)}/state/m.room.member/{quote(other.user())}")
    assert member.body == {"membership": "invite"}


# --- endless, slow, broken off


async def test_an_answer_that_breaks_off_is_refused_and_the_next_server_asked(
    server: Server, authority: Authority, bob: Client, other: LyingResident
) -> None:
    async def break_off(response: web.StreamResponse, body: bytes) -> None:
        await response.write(body[: len(body) // 2])

    other.stream = break_off
    await refused(bob, other)
    async with resident(server, authority) as honest:
        honest.room = other.room
        answer = await join(bob, other.room_id, other.name, honest.name)
    assert answer.status == 200, answer.body
    assert other.asked == ["make_join", "send_join"] * 2
    assert honest.asked == ["make_join", "send_join"]


async def endless(response: web.StreamResponse, start: bytes, piece: bytes) -> None:
    """Until the other side hangs up."""
    await response.write(start)
    while True:
        await response.write(piece * max(1, 65536 // len(piece)))
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["a string", "an object", "the rest", "the same event", "no events"])
async def test_an_endless_answer_is_not_read_to_its_end(bob: Client, other: LyingResident, kind: str) -> None:
    event = orjson.dumps(other.room.events[0].json)
    start, piece = {
        "a string": (b'{"state":[{"x":"', b"x"),
        "an object": (b'{"state":[{"x":[', b"[],"),
        "the rest": (b'{"x":[', b"[],"),
        "the same event": (b'{"state":[', event + b","),
        "no events": (b'{"auth_chain":[', b"{},"),
    }[kind]
    other.stream = lambda response, _body: endless(response, start, piece)
    async with asyncio.timeout(30):
        await refused(bob, other)


@pytest.mark.one_process("its patience is shortened here")
async def test_an_answer_that_trickles_is_given_up(server: Server, bob: Client, other: LyingResident) -> None:
    async def trickle(response: web.StreamResponse, body: bytes) -> None:
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.05)

    other.stream = trickle
    joins = server.application.handshaking.joins
    joins.answer_seconds, normal = 0.5, joins.answer_seconds
    try:
        await refused(bob, other)
    finally:
        joins.answer_seconds = normal


# --- what is told of a room to who knocks


@pytest.mark.parametrize("version", ["7", "11", "12"])
async def test_of_what_a_knocking_user_is_told_only_that_is_shown_which_holds(
    server: Server, authority: Authority, bob: Client, version: str
) -> None:
    async with resident(server, authority, version) as other:
        eve = other.user()
        name = other.room.add("m.room.name", eve, {"name": "Door"}, "").json
        topic = other.room.add("m.room.topic", eve, {"topic": "Forged"}, "").json
        avatar = other.room.add("m.room.avatar", eve, {"url": "mxc://a/b"}, "").json
        elsewhere = LyingResident(server, authority, version)
        foreign = elsewhere.room.add("m.room.encryption", eve, {"algorithm": "x"}, "").json
        stripped = {"type": "m.room.canonical_alias", "state_key": "", "sender": eve, "content": {"alias": "#a:b"}}
        told = [
            other.room.events[0].json,
            {**topic, "signatures": {other.name: {other.key.key_id: "A" * 86}}},
            {**avatar, "content": {"url": "mxc://c/d"}},
            {**avatar, "depth": "deep"},
            foreign,
            name,
            stripped,
            "m.room.topic",
        ]
        other.answer = lambda _answer: {"knock_room_state": told}
        path = f"/v3/knock/{quote(other.room_id)}"

        answer = await bob.request("POST", path, {}, params={"via": other.name})

    assert answer.status == 200, answer.body
    shown = part(await sync(bob), "knock", other.room_id)["knock_state"]["events"]
    # Of the avatar only what is left of an event whose hash does not hold, and what nobody signed as servers told
    # it before version 1.16 of the specification.
    contents = {event["type"]: event["content"] for event in shown}
    expected = {"m.room.create", "m.room.avatar", "m.room.name", "m.room.member"}
    assert set(contents) == expected | (set() if version == "12" else {"m.room.canonical_alias"})
    assert (contents["m.room.avatar"], contents["m.room.name"]) == ({}, {"name": "Door"})
