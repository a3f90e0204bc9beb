"""Rooms with a policy server (Server-Server API v1.18, "Policy Servers"): what our users send there."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.event_hashes import encode_base64
from federation.protocol.types import JsonObject
from storage.database import Tx
from tests.client import Client, quote, unique
from tests.federation.policy_peer import OTHER_KEY, PolicyPeer, guarded_room
from tests.federation.remote_room import RemoteRoom
from tests.federation.servers import Pair
from tests.homeserver.syncs import sync, timeline
from tests.queries import is_answering
from tests.rooms import create_room, join, membership_of, pdus_of, put_state, send, send_event, state_of

VERSIONS = ["1", "3", "10", "11", "12"]
MESSAGE = {"msgtype": "m.text", "body": "hello"}


@pytest_asyncio.fixture
async def alice(pair: Pair) -> Client:
    return await pair.near.register("alice")


async def newest(pair: Pair, room: RemoteRoom) -> Any:
    return (await pdus_of(pair.near, room.room_id))[-1]


async def refused(alice: Client, room: RemoteRoom, event_type: str = "m.room.message") -> Any:
    """The answer to a message that must not be sent."""
    return await alice.put(f"/v3/rooms/{quote(room.room_id)}/send/{event_type}/{unique('txn')}", MESSAGE)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_sent_bears_its_signature(pair: Pair, alice: Client, policy: PolicyPeer, version: str) -> None:
    room = await guarded_room(alice, policy, version)
    assert policy.asked == []  # not for m.room.policy
    event_id = await send(alice, room.room_id, "hello")
    topic_id = await put_state(alice, room.room_id, "m.room.topic", {"topic": "Tea"})

    assert [policy.id_of(event, room.rules) for event in policy.asked] == [event_id, topic_id]
    assert policy.asked[0]["content"] == {**MESSAGE}
    topic = (await state_of(pair.near, room.room_id))["m.room.topic", ""]
    assert topic["signatures"] == policy.recommend(policy.asked[1])["signatures"]
    assert set(topic["signatures"]) == {pair.near.name, policy.name}
    await policy.until_messages(["hello"])
    assert policy.signed(policy.pdus[-1] if policy.pdus[-1]["type"] == "m.room.message" else policy.pdus[-2])


async def test_all_but_the_policy_itself_is_shown_to_it(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    await put_state(alice, room.room_id, "m.room.policy", {**policy.content, "note": "again"})
    assert policy.asked == []
    await put_state(alice, room.room_id, "m.room.policy", {}, "other")
    await send_event(alice, room.room_id, "m.room.policy", {})
    bob = await pair.near.register("bob")
    await join(bob, room.room_id)
    await alice.ok("POST", f"/v3/rooms/{quote(room.room_id)}/kick", {"user_id": bob.user_id})
    event_id = await send(alice, room.room_id, "oops")
    await alice.ok("PUT", f"/v3/rooms/{quote(room.room_id)}/redact/{quote(event_id)}/r1", {})

    assert [(event["type"], event.get("state_key")) for event in policy.asked] == [
        ("m.room.policy", "other"),
        ("m.room.policy", None),
        ("m.room.member", bob.user_id),
        ("m.room.member", bob.user_id),
        ("m.room.message", None),
        ("m.room.redaction", None),
    ]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, {"errcode": "M_FORBIDDEN", "error": "It looks like spam"}),
        (400, {"errcode": "ORG.EXAMPLE_SPAM", "error": "No", "org.example.score": 7}),
        (403, {"errcode": "M_FORBIDDEN", "error": "Your server is not allowed to request a signature."}),
        (404, {"errcode": "M_NOT_FOUND", "error": "Unknown room"}),
        (404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"}),
        (429, {"errcode": "M_LIMIT_EXCEEDED", "error": "Slowly", "retry_after_ms": 2000}),
    ],
)
async def test_its_refusal_is_told_as_it_is(
    pair: Pair, alice: Client, policy: PolicyPeer, status: int, answer: JsonObject
) -> None:
    room = await guarded_room(alice, policy)
    before = await newest(pair, room)
    policy.judge = lambda _event: (status, answer)
    assert tuple(await refused(alice, room)) == (status, answer)

    assert await newest(pair, room) == before
    policy.judge = policy.sign_any
    await send(alice, room.room_id, "something else")
    assert (await newest(pair, room))["prev_events"] == [before["event_id"]]


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (401, {"errcode": "M_UNKNOWN_TOKEN", "error": "Out"}, (502, "M_UNKNOWN_TOKEN")),
        (403, {"errcode": "M_UNKNOWN_TOKEN", "error": "Out", "soft_logout": True}, (403, "M_FORBIDDEN")),
        (403, {"errcode": "M_USER_LOCKED", "error": "Out"}, (403, "M_FORBIDDEN")),
        (429, {"errcode": "M_LIMIT_EXCEEDED", "error": "No", "retry_after_ms": "soon"}, (429, "M_LIMIT_EXCEEDED")),
        (400, {"errcode": 7, "error": ["no"]}, (400, "M_UNKNOWN")),
        (500, {"errcode": "M_UNKNOWN", "error": "Broken"}, (502, "M_UNKNOWN")),
    ],
)
async def test_no_refusal_speaks_of_the_clients_session(
    alice: Client, policy: PolicyPeer, status: int, answer: JsonObject, told: tuple[int, str]
) -> None:
    room = await guarded_room(alice, policy)
    policy.judge = lambda _event: (status, answer)
    got = await refused(alice, room)
    assert (got.status, got.body["errcode"]) == told
    assert "soft_logout" not in got.body


async def test_while_it_is_away_only_the_policy_can_be_changed(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    before = await newest(pair, room)
    await policy.stop()
    for _ in range(2):
        answer = await refused(alice, room)
        assert (answer.status, answer.body["errcode"]) == (502, "M_UNKNOWN")
    assert await newest(pair, room) == before

    await policy.start()
    await send(alice, room.room_id, "at once")
    await policy.stop()
    await put_state(alice, room.room_id, "m.room.policy", {})
    await send(alice, room.room_id, "without it")
    assert not policy.signed(await newest(pair, room))


async def test_what_is_no_signature_by_the_rooms_key_will_not_do(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    before = await newest(pair, room)
    good = {}

    def keep(event: JsonObject) -> tuple[int, JsonObject]:
        good["answer"] = policy.sign_any(event)[1]
        return policy.refuse_any(event)

    policy.judge = keep
    await refused(alice, room)
    bad_answers: list[Any] = [
        {},
        {policy.name: {}},
        {policy.name: {"ed25519:policy_server": 7}},
        {policy.name: {"ed25519:policy_server": "x" * 86}},
        {policy.name: "signed"},
        {pair.near.name: {"ed25519:policy_server": "x" * 86}},
        good["answer"],  # of another event
    ]
    for bad in bad_answers:
        policy.judge = lambda _event, bad=bad: (200, bad)  # type: ignore[misc]  # mypy infers no default
        answer = await refused(alice, room)
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN"), bad
    policy.judge = lambda event: (200, policy.recommend(event, OTHER_KEY)["signatures"])
    assert (await refused(alice, room)).status == 403
    assert await newest(pair, room) == before


async def test_nothing_but_its_signature_is_taken(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    policy.judge = lambda event: (
        200,
        {pair.near.name: {"ed25519:test": "forged"}, **policy.sign_any(event)[1], "x.test": {"ed25519:x": "x"}},
    )
    await send(alice, room.room_id, "hello")
    (asked,) = policy.asked
    stored = await newest(pair, room)
    assert stored["signatures"] == policy.recommend(asked)["signatures"]
    assert stored["signatures"][pair.near.name] == asked["signatures"][pair.near.name]


async def test_its_key_is_that_of_the_rooms_state(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    await send(alice, room.room_id, "with the old key")
    keys = {"ed25519": encode_base64(OTHER_KEY.public_key)}
    await put_state(alice, room.room_id, "m.room.policy", {**policy.content, "public_keys": keys})
    assert (await refused(alice, room)).status == 403

    policy.policy_key = OTHER_KEY
    await send(alice, room.room_id, "with the new key")
    assert policy.signed(await newest(pair, room))


async def test_it_is_asked_while_one_of_its_users_is_joined(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    policy.judge = policy.refuse_any
    assert (await refused(alice, room)).status == 400
    room.last = [(await newest(pair, room))["event_id"]]
    leave = room.add("m.room.member", {"membership": "leave"}, state_key=room.user_id, depth=50)
    await room.push([policy.recommend(leave)])
    asked = len(policy.asked)
    await send(alice, room.room_id, "alone")
    assert len(policy.asked) == asked

    room.last = [(await newest(pair, room))["event_id"]]
    await room.push([room.add("m.room.member", {"membership": "join"}, state_key=room.user_id, depth=60)])
    assert await membership_of(pair.near, room.room_id, Client("", alice.session, room.user_id)) == "join"
    assert (await refused(alice, room)).status == 400


@pytest.mark.parametrize(
    "broken",
    [
        {"via": None},
        {"via": 7},
        {"via": "elsewhere.test"},
        {"public_keys": None},
        {"public_keys": {}},
        {"public_keys": {"x": "x"}},
        {"public_keys": {"ed25519": 7}},
    ],
)
async def test_a_policy_that_is_not_valid_means_none(alice: Client, policy: PolicyPeer, broken: JsonObject) -> None:
    room = await guarded_room(alice, policy)
    await put_state(alice, room.room_id, "m.room.policy", {**policy.content, **broken})
    await send(alice, room.room_id, "hello")
    assert policy.asked == []


async def test_a_key_that_is_none_fits_nothing(alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    await put_state(alice, room.room_id, "m.room.policy", {**policy.content, "public_keys": {"ed25519": "no key"}})
    assert (await refused(alice, room)).status == 403


async def test_a_redacted_policy_means_none(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    await send(alice, room.room_id, "shown to it")
    policy_id = (await state_of(pair.near, room.room_id))["m.room.policy", ""]["event_id"]
    await alice.ok("PUT", f"/v3/rooms/{quote(room.room_id)}/redact/{quote(policy_id)}/r1", {})
    assert len(policy.asked) == 2
    await send(alice, room.room_id, "not shown to it")
    assert len(policy.asked) == 2


@pytest.mark.one_process("several that write make the graph fork")
async def test_events_that_wait_for_it_together_all_arrive(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    since = (await sync(alice))["next_batch"]
    policy.answers.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(alice, room.room_id, f"message {number}")) for number in range(12)]
        topics = [
            group.create_task(put_state(alice, room.room_id, "m.room.topic", {"topic": str(number)}))
            for number in range(3)
        ]
        await policy.until(lambda: len(policy.asked) == 15)
        assert await newest(pair, room) == (await state_of(pair.near, room.room_id))["m.room.policy", ""]
        policy.answers.set()

    expected = {task.result() for task in (*tasks, *topics)}
    shown = timeline(await sync(alice, since=since, filter={"room": {"timeline": {"limit": 50}}}), room.room_id)
    assert {event["event_id"] for event in shown} == expected
    assert len(shown) == 15
    assert all(policy.signed(event) for event in (await pdus_of(pair.near, room.room_id))[-15:])
    await send(alice, room.room_id, "after all of them")
    last = await newest(pair, room)
    await send(alice, room.room_id, "and one more")
    assert (await newest(pair, room))["prev_events"] == [last["event_id"]]


async def test_a_repeated_request_makes_one_event(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    policy.answers.clear()
    paths = [f"/v3/rooms/{quote(room.room_id)}/send/m.room.message/same"] * 3
    path = f"/v3/rooms/{quote(room.room_id)}/state/m.room.topic/"
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(alice.ok("PUT", each, MESSAGE)) for each in paths]
        topics = [group.create_task(alice.ok("PUT", path, {"topic": "Tea"})) for _ in range(3)]
        await policy.until(lambda: policy.asked)
        policy.answers.set()
    assert len({task.result()["event_id"] for task in tasks}) == 1
    assert len({task.result()["event_id"] for task in topics}) == 1
    pdus = await pdus_of(pair.near, room.room_id)
    assert len([pdu for pdu in pdus if pdu["type"] in ("m.room.message", "m.room.topic")]) == 2


async def test_who_was_banned_meanwhile_is_refused(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    bob = await pair.near.register("bob")
    await join(bob, room.room_id)
    policy.answers.clear()
    asked = len(policy.asked)
    sending = asyncio.create_task(refused(bob, room))
    await policy.until(lambda: len(policy.asked) == asked + 1)
    room.last = [(await newest(pair, room))["event_id"]]
    policy.judge = policy.sign_any
    banning = asyncio.create_task(alice.ok("POST", f"/v3/rooms/{quote(room.room_id)}/ban", {"user_id": bob.user_id}))
    await policy.until(lambda: len(policy.asked) == asked + 2)
    policy.answers.set()
    await banning
    answer = await sending
    if answer.status != 200:  # it was the second to be answered
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
        assert not [pdu for pdu in await pdus_of(pair.near, room.room_id, "m.room.message")]


async def test_an_invite_to_another_server_bears_its_signature(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    bob = await pair.far.register("bob")
    path = f"/v3/rooms/{quote(room.room_id)}/invite"
    policy.judge = policy.refuse_any
    assert (await alice.post(path, {"user_id": bob.user_id})).status == 400
    assert "invite" not in (await sync(bob)).get("rooms", {})

    policy.judge = policy.sign_any
    await alice.ok("POST", path, {"user_id": bob.user_id})
    invite = await newest(pair, room)
    assert policy.signed(invite)
    assert set(invite["signatures"]) == {pair.near.name, pair.far.name, policy.name}
    assert len(policy.asked) == 2


async def test_users_of_other_servers_join_with_its_signature(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy)
    bob = await pair.far.register("bob")
    path = f"/v3/join/{quote(room.room_id)}?via={quote(pair.near.name)}"
    policy.judge = policy.refuse_any
    answer = await bob.post(path)
    assert answer.status >= 400
    assert await membership_of(pair.near, room.room_id, bob) is None

    policy.judge = policy.sign_any
    await bob.ok("POST", path, {})
    member = (await state_of(pair.near, room.room_id))["m.room.member", bob.user_id]
    assert member["content"]["membership"] == "join"
    assert policy.signed(member)


async def test_who_is_in_the_room_asks_before_another_server_lets_their_user_in(
    pair: Pair, alice: Client, policy: PolicyPeer
) -> None:
    bob, carol = [await pair.far.register(name) for name in ("bob", "carol")]
    club = await create_room(alice, preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    room = await guarded_room(alice, policy)
    policy.public_keys[pair.far.name] = pair.far.application.outbound.keys.signing_key.public_key
    via = f"?via={quote(pair.near.name)}"
    for who, room_id in ((bob, club), (carol, club), (bob, room.room_id)):
        await who.ok("POST", f"/v3/join/{quote(room_id)}{via}", {})
    await put_state(alice, room.room_id, "m.room.join_rules", rule)
    levels = await put_state(alice, room.room_id, "m.room.power_levels", {"users": {alice.user_id: 100}, "invite": 50})
    async with asyncio.timeout(10):
        while levels not in [event["event_id"] for event in timeline(await sync(bob), room.room_id)]:  # noqa: ASYNC110  # by HTTP
            await asyncio.sleep(0.05)
    policy.asked.clear()

    policy.judge = policy.refuse_any
    answer = await carol.post(f"/v3/join/{quote(room.room_id)}{via}")
    assert answer.status == 400
    assert answer.body == policy.refuse_any({})[1]
    policy.judge = policy.sign_any
    await carol.ok("POST", f"/v3/join/{quote(room.room_id)}{via}", {})

    for server in (pair.near, pair.far):
        member = (await state_of(server, room.room_id))["m.room.member", carol.user_id]
        assert policy.signed(member)
        assert set(member["signatures"]) == {pair.near.name, pair.far.name, policy.name}
    assert [event["signatures"].keys() for event in policy.asked] == [{pair.far.name}] * 2


async def test_a_room_is_upgraded_with_its_signatures(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room = await guarded_room(alice, policy, "10")
    await alice.ok("POST", f"/v3/rooms/{quote(room.room_id)}/upgrade", {"new_version": "11"})
    tombstone = (await state_of(pair.near, room.room_id))["m.room.tombstone", ""]
    assert policy.signed(tombstone)


async def test_a_name_of_ours_is_asked_like_any_other(pair: Pair, alice: Client, policy: PolicyPeer) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await put_state(alice, room_id, "m.room.policy", {**policy.content, "via": pair.near.name})
    answer = await alice.put(f"/v3/rooms/{quote(room_id)}/send/m.room.message/1", MESSAGE)
    assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")  # there is none here
    await put_state(alice, room_id, "m.room.policy", {})
    await send(alice, room_id, "hello")


@pytest.mark.one_process("its queries are counted here")
async def test_a_room_without_one_costs_nothing(
    alice: Client, monkeypatch: pytest.MonkeyPatch, policy: PolicyPeer
) -> None:
    plain = await create_room(alice, preset="public_chat")
    guarded = (await guarded_room(alice, policy)).room_id
    for room_id in (plain, guarded):
        await send(alice, room_id, "the first one looks around")
    queries: list[str] = []
    for name in ("fetch", "fetch_one", "execute"):
        whole = getattr(Tx, name)

        async def counted(tx: Tx, query: str, *params: Any, whole: Any = whole) -> Any:
            if is_answering():
                queries.append(query)
            return await whole(tx, query, *params)

        monkeypatch.setattr(Tx, name, counted)
    for room_id in (plain, guarded):
        await send(alice, room_id, "hello")
    assert queries == []  # nor does one with it
