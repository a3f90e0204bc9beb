"""What no client would send: long, strange and empty names in every place of the rooms' endpoints."""

import asyncio
from typing import Any

import pytest

from tests.client import Client, Server, quote
from tests.homeserver.test_hostile_keys import variants
from tests.rooms import create_room, pdus_of, send, send_event

NAMES = ["%00", "%ff", "a" * 5000, "!" + "a" * 5000 + ":hearth.test", "%F0%9F%98%80" * 200, ".", "!:", "#:", "%20"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_strange_name_is_the_clients_fault(alice: Client, name: str) -> None:
    room_id = quote(await create_room(alice))
    for method, path in [
        ("POST", f"/v3/join/{name}"),
        ("POST", f"/v3/rooms/{name}/join"),
        ("POST", f"/v3/rooms/{name}/leave"),
        ("POST", f"/v3/rooms/{name}/forget"),
        ("POST", f"/v3/knock/{name}"),
        ("POST", f"/v3/rooms/{name}/upgrade"),
        ("PUT", f"/v3/rooms/{name}/send/m.room.message/t1"),
        ("PUT", f"/v3/rooms/{room_id}/send/m.room.message/{name * 2}"),
        ("PUT", f"/v3/rooms/{room_id}/redact/{name}/t1"),
        ("PUT", f"/v3/rooms/{room_id}/state/m.room.member/{name}"),
        ("GET", f"/v3/directory/room/{name}"),
        ("PUT", f"/v3/directory/room/{name}"),
        ("DELETE", f"/v3/directory/room/{name}"),
        ("GET", f"/v3/directory/list/room/{name}"),
        ("PUT", f"/v3/directory/list/room/{name}"),
        ("GET", f"/v3/rooms/{name}/aliases"),
        ("POST", f"/unstable/org.matrix.msc4140/delayed_events/{name}/cancel"),
    ]:
        answer = await alice.request(method, path, {"membership": "x"})
        is_txn_id = path.endswith(f"/{name * 2}")
        assert 400 <= answer.status < 500 or (is_txn_id and answer.status == 200), (method, path[:80], answer.status)


async def test_a_long_transaction_id_spoils_nobody_elses_event(server: Server, alice: Client, bob: Client) -> None:
    room_id, other = await create_room(alice), await create_room(bob)
    path = f"/v3/rooms/{room_id}/send/m.room.message/{'x' * 4000}"

    hello = asyncio.create_task(send(bob, other, "hello"))
    answers = await asyncio.gather(*(alice.put(path, {"n": n}) for n in range(5)))

    await hello
    assert {answer.status for answer in answers} == {400}
    assert len(await pdus_of(server, other, "m.room.message")) == 1


@pytest.mark.parametrize(
    "relation",
    [
        1,
        [],
        {},
        {"rel_type": 1, "event_id": "$x"},
        {"rel_type": "m.annotation", "event_id": "nothing", "key": "k"},
        {"rel_type": "m.annotation", "event_id": "$" + "a" * 43, "key": 1},
        {"rel_type": "m.annotation", "event_id": "$" + "a" * 43, "key": "\u0000"},
        {"rel_type": "x" * 5000, "event_id": "$" + "a" * 43},
        {"rel_type": "m.thread", "event_id": "$" + "a" * 43},
        {"rel_type": "m.annotation", "event_id": "$" + "a" * 43, "key": "k" * 30_000},
    ],
)
async def test_a_strange_relation_is_stored_as_it_is(server: Server, alice: Client, relation: object) -> None:
    room_id = await create_room(alice)

    event_id = await send_event(alice, room_id, "m.reaction", {"m.relates_to": relation})

    assert (await pdus_of(server, room_id))[-1]["event_id"] == event_id


async def test_more_than_a_room_needs_is_refused(alice: Client) -> None:
    state = [{"type": f"x.{number}", "content": {}} for number in range(1001)]
    users = [f"@u{number}:hearth.test" for number in range(501)]

    for body in ({"initial_state": state}, {"invite": users}):
        answer = await alice.post("/v3/createRoom", body)
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


CREATION: Any = {
    "visibility": "public",
    "preset": "public_chat",
    "name": "name",
    "topic": "topic",
    "is_direct": True,
    "room_version": "11",
    "invite": ["@nobody:hearth.test"],
    "creation_content": {"type": "m.space", "m.federate": True, "additional_creators": ["@nobody:hearth.test"]},
    "initial_state": [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "x"}}],
    "power_level_content_override": {"users_default": 0, "events": {"x": 1}, "notifications": {"room": 50}},
}
LEVELS: Any = {
    "users": {"@nobody:hearth.test": 50},
    "events": {"m.room.name": 50},
    "notifications": {"room": 50},
    "ban": 50,
    "users_default": 0,
}
BODIES: list[tuple[str, str, Any]] = [
    ("POST", "/v3/createRoom", CREATION),
    ("POST", "/v3/createRoom", {**CREATION, "room_version": "12", "preset": "trusted_private_chat"}),
    ("POST", "/v3/createRoom", {**CREATION, "room_version": "1"}),
    ("POST", "/v3/publicRooms", {"limit": 5, "filter": {"generic_search_term": "x", "room_types": ["m.space", None]}}),
    ("PUT", "/v3/rooms/{room}/state/m.room.power_levels", LEVELS),
    ("PUT", "/v3/rooms/{room}/state/m.room.join_rules", {"join_rule": "restricted", "allow": [{"type": "x"}]}),
    ("PUT", "/v3/rooms/{room}/state/m.room.canonical_alias", {"alias": "", "alt_aliases": []}),
    ("PUT", "/v3/rooms/{room}/state/m.room.history_visibility", {"history_visibility": "joined"}),
    ("PUT", "/v3/rooms/{room}/state/m.room.guest_access", {"guest_access": "can_join"}),
    ("PUT", "/v3/rooms/{room}/state/m.room.member/{user}", {"membership": "join", "displayname": "x"}),
    ("POST", "/v3/rooms/{room}/invite", {"user_id": "@nobody:hearth.test", "reason": "x"}),
    (
        "POST",
        "/v3/rooms/{room}/join",
        {"reason": "x", "third_party_signed": {"sender": "@a:hearth.test", "token": "x"}},
    ),
    ("PUT", "/v3/directory/list/room/{room}", {"visibility": "public"}),
]


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_wrong_bodies_are_refused_or_harmless(
    server: Server, alice: Client, method: str, path: str, body: Any
) -> None:
    room_id = await create_room(alice)
    names = {"room": quote(room_id), "user": quote(alice.user_id)}
    failed: list[Any] = []

    async def attempt(variant: Any) -> None:
        answer = await alice.request(method, path.format(**names), variant)
        if answer.status in (500, 503) or (answer.status >= 400 and "errcode" not in answer.body):
            failed.append((answer.status, answer.body, variant))

    bodies = list(variants(body))
    for start in range(0, len(bodies), 20):
        await asyncio.gather(*(attempt(variant) for variant in bodies[start : start + 20]))

    assert not failed, (len(failed), failed[0])
    await alice.ok("POST", "/v3/publicRooms", {})
    bob = await server.register("bob")
    await bob.post(f"/v3/join/{quote(room_id)}")
    answer = await alice.post(f"/v3/rooms/{quote(room_id)}/upgrade", {"new_version": "12"})
    assert answer.status in (200, 400, 403)
