"""What other servers get of rooms' events, over HTTP with signed requests: who, what, and in which form."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from federation.protocol import canonical_json, event_hashes
from federation.protocol.redaction import redact as redacted_form
from federation.protocol.types import JsonObject
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.server_access import ServerAccess
from federation.rooms.server_reader import ServerReader
from storage.database import Database
from tests.client import Client, Server
from tests.federation.peer import Peer, path_of
from tests.federation.resident_rooms import SharedRoom
from tests.homeserver.rooms import redact, set_state, set_visibility
from tests.rooms import send

VERSIONS = ("1", "2", "3", "11", "12")


@pytest.fixture
async def world(server: Server, alice: Client, peer: Peer) -> SharedRoom:
    """A room that a user of the peer is in."""
    world = await SharedRoom.made(server, alice, peer)
    await world.join(peer.user())
    return world


def ids(world: SharedRoom, pdus: list[JsonObject]) -> list[str]:
    return [world.peer.id_of(pdu, world.room.rules) for pdu in pdus]


async def ask_all(world: SharedRoom, event_id: str) -> Mapping[str, Any]:
    """Every endpoint's answer about an event."""
    peer, room_id = world.peer, world.room_id
    body = {"latest_events": [event_id], "earliest_events": [], "limit": 10}
    return {
        "event": await peer.request("GET", path_of("/v1/event/{}", event_id)),
        "state": await peer.request("GET", path_of("/v1/state/{}", room_id), event_id=event_id),
        "state_ids": await peer.request("GET", path_of("/v1/state_ids/{}", room_id), event_id=event_id),
        "event_auth": await peer.request("GET", path_of("/v1/event_auth/{}/{}", room_id, event_id)),
        "backfill": await peer.request("GET", path_of("/v1/backfill/{}", room_id), v=event_id, limit=5),
        "get_missing_events": await peer.request("POST", path_of("/v1/get_missing_events/{}", room_id), body),
        "timestamp_to_event": await peer.request("GET", path_of("/v1/timestamp_to_event/{}", room_id), ts=0, dir="f"),
    }


def statuses(answers: Mapping[str, Any]) -> dict[str, int]:
    return {name: answer.status for name, answer in answers.items()}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_server_in_the_room_gets_events_as_they_were_signed(
    server: Server, alice: Client, peer: Peer, version: str
) -> None:
    world = await SharedRoom.made(server, alice, peer, room_version=version)
    await world.join(peer.user())
    event_id = await send(alice, world.room_id, "hello")

    answers = await ask_all(world, event_id)

    assert set(statuses(answers).values()) == {200}
    (pdu,) = answers["event"].body["pdus"]
    assert answers["event"].body["origin"] == server.application.config.server_name
    assert canonical_json.encode(pdu) == (await world.stored(event_id)).canonical
    assert ids(world, [pdu]) == [event_id]
    assert event_hashes.content_hash(pdu) == pdu["hashes"]["sha256"]
    state = answers["state"].body
    assert set(ids(world, state["pdus"])) == set(answers["state_ids"].body["pdu_ids"])
    assert set(ids(world, state["auth_chain"])) == set(answers["state_ids"].body["auth_chain_ids"])
    assert {"m.room.create", "m.room.power_levels", "m.room.join_rules"} <= {pdu["type"] for pdu in state["pdus"]}
    assert next(pdu["type"] for pdu in answers["event_auth"].body["auth_chain"]) == "m.room.create"
    backfilled = answers["backfill"].body["pdus"]
    assert [pdu["depth"] for pdu in backfilled] == sorted((pdu["depth"] for pdu in backfilled), reverse=True)
    assert (ids(world, backfilled)[0], len(backfilled)) == (event_id, 5)
    missing = ids(world, answers["get_missing_events"].body["events"])
    assert missing[-4:] == ids(world, backfilled)[:0:-1]


NOT_ALLOWED = {
    "event": 404,
    "state": 403,
    "state_ids": 403,
    "event_auth": 403,
    "backfill": 403,
    "get_missing_events": 403,
    "timestamp_to_event": 403,
}


async def test_a_server_that_was_never_in_the_room_gets_nothing(server: Server, alice: Client, peer: Peer) -> None:
    world = await SharedRoom.made(server, alice, peer)
    event_id = await send(alice, world.room_id, "secret")

    assert statuses(await ask_all(world, event_id)) == NOT_ALLOWED


async def test_a_server_that_left_gets_single_events_of_its_time_alone(world: SharedRoom, peer: Peer) -> None:
    before = await send(world.owner, world.room_id, "then")
    await world.member(peer.user(), "leave")
    after = await send(world.owner, world.room_id, "now")

    assert statuses(await ask_all(world, after)) == NOT_ALLOWED
    assert statuses(await ask_all(world, before)) == {**NOT_ALLOWED, "event": 200}


async def test_a_server_under_an_acl_gets_nothing(world: SharedRoom, peer: Peer) -> None:
    event_id = await send(world.owner, world.room_id, "secret")
    await set_state(world.owner, world.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [peer.name]})

    assert statuses(await ask_all(world, event_id)) == {**NOT_ALLOWED, "event": 403}


async def test_a_room_that_does_not_exist_is_answered_like_one_of_others(world: SharedRoom, alice: Client) -> None:
    event_id = await send(alice, world.room_id, "hello")
    others = await SharedRoom.made(world.server, alice, world.peer)
    nowhere = SharedRoom(world.server, alice, world.peer, world.room)
    nowhere.room = type(world.room)(0, "!nowhere:peer.test", world.room.rules)  # type: ignore[arg-type]  # as a peer may write it

    for name, answer in (await ask_all(nowhere, event_id)).items():
        if name != "event":
            assert (answer.status, answer.body) == (403, (await ask_all(others, event_id))[name].body)


# --- history visibility


@pytest.mark.parametrize(
    ("visibility", "before_invite", "while_invited"),
    [("world_readable", True, True), ("shared", True, True), ("invited", False, True), ("joined", False, False)],
)
async def test_what_a_server_may_not_see_comes_redacted(
    server: Server, alice: Client, peer: Peer, visibility: str, *, before_invite: bool, while_invited: bool
) -> None:
    world = await SharedRoom.made(server, alice, peer, visibility=visibility)
    messages = {await send(alice, world.room_id, "before"): before_invite}
    await world.invite(peer.user())
    messages[await send(alice, world.room_id, "invited")] = while_invited
    await world.join(peer.user())
    messages[last := await send(alice, world.room_id, "joined")] = True

    backfilled = await peer.ok("GET", path_of("/v1/backfill/{}", world.room_id), v=last, limit=50)
    missing = await peer.ok(
        "POST",
        path_of("/v1/get_missing_events/{}", world.room_id),
        {"latest_events": [last], "earliest_events": [], "limit": 50},
    )

    for pdus in (backfilled["pdus"], [*missing["events"], backfilled["pdus"][0]]):
        assert len(pdus) == len(set(ids(world, pdus)))
        shown = {event_id: bool(pdu["content"]) for event_id, pdu in zip(ids(world, pdus), pdus, strict=True)}
        assert {event_id: shown[event_id] for event_id in messages} == messages
    for event_id, is_shown in messages.items():
        (pdu,) = (await peer.ok("GET", path_of("/v1/event/{}", event_id)))["pdus"]
        whole = (await world.stored(event_id)).json
        assert pdu == (whole if is_shown else redacted_form(whole, world.room.rules))


async def test_a_world_readable_event_is_for_everybody(server: Server, alice: Client, peer: Peer) -> None:
    world = await SharedRoom.made(server, alice, peer, visibility="world_readable")
    readable = await send(alice, world.room_id, "for all")
    await set_visibility(alice, world.room_id, "shared")
    later = await send(alice, world.room_id, "for us")

    assert (await peer.request("GET", path_of("/v1/event/{}", readable))).status == 200
    assert (await peer.request("GET", path_of("/v1/event/{}", later))).status == 404


async def test_redacted_events_stay_redacted(world: SharedRoom, peer: Peer) -> None:
    event_id = await send(world.owner, world.room_id, "regretted")
    topic = await set_state(world.owner, world.room_id, "m.room.topic", {"topic": "regretted"})
    await redact(world.owner, world.room_id, event_id)
    await redact(world.owner, world.room_id, topic)
    last = await send(world.owner, world.room_id, "end")

    answers = await ask_all(world, last)

    for name in ("state", "backfill", "get_missing_events"):
        assert answers[name].status == 200
        assert b"regretted" not in canonical_json.encode(answers[name].body)
    for redacted in (event_id, topic):
        (pdu,) = (await peer.ok("GET", path_of("/v1/event/{}", redacted)))["pdus"]
        assert pdu["content"] == {}
        assert ids(world, [pdu]) == [redacted]


async def test_messages_of_an_erased_account_are_not_handed_out(
    server: Server, alice: Client, world: SharedRoom, peer: Peer
) -> None:
    carol = await server.register("carol")
    await carol.ok("POST", f"/v3/join/{world.room_id}", {})
    event_id = await send(carol, world.room_id, "mine")
    await carol.ok("POST", "/v3/account/deactivate", {"auth": carol.password_auth(), "erase": True})

    (pdu,) = (await peer.ok("GET", path_of("/v1/event/{}", event_id)))["pdus"]
    assert pdu["content"] == {}
    last = await send(alice, world.room_id, "end")
    backfilled = (await peer.ok("GET", path_of("/v1/backfill/{}", world.room_id), v=last, limit=50))["pdus"]
    assert event_id in ids(world, backfilled)
    assert b"mine" not in canonical_json.encode({"pdus": backfilled})


# --- events that did not pass all checks


async def test_soft_failed_events_are_given_and_rejected_ones_are_not(
    server: Server, alice: Client, world: SharedRoom, peer: Peer
) -> None:
    eve = peer.user("banned")
    join = await world.join(eve)
    evading = await world.build(eve, "m.room.message", {"body": "still here"}, prev_events=[join])
    powerless = await world.build(eve, "m.room.name", {"name": "mine"}, "", prev_events=[join])
    await alice.ok("POST", f"/v3/rooms/{world.room_id}/ban", {"user_id": eve})
    writer = server.application.writer
    assert (await writer.append_remote(evading)).outcome.value == "soft-failed"
    assert (await writer.append_remote(powerless)).outcome.value == "rejected"

    assert (await peer.request("GET", path_of("/v1/event/{}", evading.event_id))).status == 200
    assert (await peer.request("GET", path_of("/v1/event/{}", powerless.event_id))).status == 404
    asked = [evading.event_id, powerless.event_id]
    pdus = (await peer.ok("GET", path_of("/v1/backfill/{}", world.room_id), v=asked, limit=10))["pdus"]
    assert evading.event_id in ids(world, pdus)
    assert powerless.event_id not in ids(world, pdus)
    assert join.event_id in ids(world, pdus)


# --- states, chains, walks


async def test_the_state_is_that_before_the_event(world: SharedRoom, peer: Peer) -> None:
    first = await set_state(world.owner, world.room_id, "m.room.topic", {"topic": "1"})
    second = await set_state(world.owner, world.room_id, "m.room.topic", {"topic": "2"})

    states = [
        await peer.ok("GET", path_of("/v1/state_ids/{}", world.room_id), event_id=event_id)
        for event_id in (first, second)
    ]

    assert first not in states[0]["pdu_ids"]
    assert (first in states[1]["pdu_ids"], second in states[1]["pdu_ids"]) == (True, False)


async def test_an_auth_chain_is_whole(world: SharedRoom, peer: Peer) -> None:
    for name in ("a", "b", "c"):
        await world.send(peer.user(), "m.room.member", {"membership": "join", "displayname": name}, peer.user())
    message = await world.send(peer.user(), "m.room.message", {"body": "x"})

    answer = await peer.ok("GET", path_of("/v1/event_auth/{}/{}", world.room_id, message.event_id))

    chain = {peer.id_of(pdu, world.room.rules): pdu for pdu in answer["auth_chain"]}
    cited = {event_id for pdu in [*chain.values(), message.json] for event_id in pdu["auth_events"]}
    create = await world.stored("$" + world.room_id[1:])  # which the room's ID names for all
    assert {*cited, create.event_id} == chain.keys()
    assert len([pdu for pdu in chain.values() if pdu.get("state_key") == peer.user()]) == 4


async def test_a_large_state_is_streamed_whole(server: Server, alice: Client, peer: Peer) -> None:
    world = await SharedRoom.made(server, alice, peer)
    await world.join(peer.user())
    for start in range(0, 520, 20):
        state = [("test.state", f"{number}") for number in range(start, start + 20)]
        for event_type, key in state:
            await alice.ok("PUT", f"/v3/rooms/{world.room_id}/state/{event_type}/{key}", {"n": key})
    last = await send(alice, world.room_id, "end")

    state = await peer.ok("GET", path_of("/v1/state/{}", world.room_id), event_id=last)

    keys = {pdu["state_key"] for pdu in state["pdus"] if pdu["type"] == "test.state"}
    assert keys == {f"{number}" for number in range(520)}
    assert {pdu["type"] for pdu in state["auth_chain"]} >= {"m.room.create", "m.room.power_levels"}


async def test_who_reads_a_state_slowly_holds_no_connection_to_the_database(world: SharedRoom) -> None:
    """The only one of a pool can be had between any two pieces."""
    database = Database(world.server.application.database.conninfo, max_connections=1)
    await database.open()
    try:
        reader = ServerReader(database, ServerAccess(IncompleteRooms()))
        last = await send(world.owner, world.room_id, "end")
        state = await reader.state(world.peer.name, world.room_id, last)
        pieces = 0
        async for _ in reader.pdus(state.room, state.state):
            pieces += 1
            async with asyncio.timeout(5), database.read() as tx:
                assert await tx.fetch_one("select 1") == (1,)
        assert pieces
    finally:
        await database.close()


async def test_missing_events_stop_where_the_asker_knows_the_room(world: SharedRoom, peer: Peer) -> None:
    said = [await send(world.owner, world.room_id, f"{number}") for number in range(30)]
    path = path_of("/v1/get_missing_events/{}", world.room_id)

    async def missing(**body: Any) -> list[str]:
        asked = {"latest_events": [said[-1]], "earliest_events": [said[9]], **body}
        return ids(world, (await peer.ok("POST", path, asked))["events"])

    assert await missing(limit=50) == said[10:29]
    assert await missing() == said[19:29]
    assert await missing(limit=3) == said[26:29]
    depth = (await world.stored(said[20])).json["depth"]
    assert await missing(limit=50, min_depth=depth) == said[20:29]
    assert await missing(limit=50, latest_events=["$unknown"]) == []
    assert await missing(limit=0) == []


async def test_backfill_follows_several_branches(world: SharedRoom, peer: Peer) -> None:
    end = await world.pdu(await send(world.owner, world.room_id, "end"))
    branches = [
        await world.send(peer.user(), "m.room.message", {"body": f"{number}"}, prev_events=[end]) for number in range(2)
    ]
    asked = [branch.event_id for branch in branches]

    pdus = (await peer.ok("GET", path_of("/v1/backfill/{}", world.room_id), v=asked, limit=3))["pdus"]

    assert set(ids(world, pdus)) == {*asked, end.event_id}


async def test_the_nearest_event_the_server_may_see_is_found_by_time(server: Server, alice: Client, peer: Peer) -> None:
    world = await SharedRoom.made(server, alice, peer, visibility="joined")
    hidden = await send(alice, world.room_id, "hidden")
    await world.join(peer.user())
    shown = await send(alice, world.room_id, "shown")
    path = path_of("/v1/timestamp_to_event/{}", world.room_id)
    ts = (await world.stored(hidden)).json["origin_server_ts"]

    later = await peer.ok("GET", path, ts=ts, dir="f")
    last = await peer.ok("GET", path, ts=10**15, dir="b")

    assert later["event_id"] != hidden
    assert later["origin_server_ts"] >= ts
    assert last == {"event_id": shown, "origin_server_ts": (await world.stored(shown)).json["origin_server_ts"]}
    assert (await peer.request("GET", path, ts=10**15, dir="f")).status == 404


# --- wrong and hostile requests


@pytest.mark.parametrize(
    ("method", "template", "body", "query", "status"),
    [
        ("GET", "/v1/state/{}", None, {}, 400),
        ("GET", "/v1/state_ids/{}", None, {"event_id": "$unknown"}, 404),
        ("GET", "/v1/state/{}", None, {"event_id": "\0"}, 400),
        ("GET", "/v1/backfill/{}", None, {"limit": 5}, 400),
        ("GET", "/v1/backfill/{}", None, {"v": "$unknown"}, 400),
        ("GET", "/v1/backfill/{}", None, {"v": "$unknown", "limit": -1}, 400),
        ("GET", "/v1/backfill/{}", None, {"v": "$unknown", "limit": "many"}, 400),
        ("GET", "/v1/backfill/{}", None, {"v": [f"${each}" for each in range(101)], "limit": 5}, 400),
        ("GET", "/v1/backfill/{}", None, {"v": "$unknown", "limit": 10**9}, 200),
        ("POST", "/v1/get_missing_events/{}", {}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": "x", "earliest_events": []}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": [5], "earliest_events": []}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": ["\0"], "earliest_events": []}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": [], "earliest_events": [], "limit": "1"}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": [], "earliest_events": [], "min_depth": -1}, {}, 400),
        ("POST", "/v1/get_missing_events/{}", {"latest_events": [], "earliest_events": []}, {}, 200),
        ("GET", "/v1/timestamp_to_event/{}", None, {"ts": 5}, 400),
        ("GET", "/v1/timestamp_to_event/{}", None, {"dir": "b"}, 400),
        ("GET", "/v1/timestamp_to_event/{}", None, {"ts": "now", "dir": "b"}, 400),
    ],
)
async def test_malformed_requests_are_refused(
    world: SharedRoom, method: str, template: str, body: JsonObject | None, query: JsonObject, status: int
) -> None:
    answer = await world.peer.request(method, path_of(template, world.room_id), body, **query)

    assert answer.status == status, answer.body


async def test_events_of_another_room_are_not_reached_through_this_one(world: SharedRoom, alice: Client) -> None:
    others = await SharedRoom.made(world.server, alice, world.peer)
    secret = await send(alice, others.room_id, "secret")

    answers = await ask_all(world, secret)

    assert statuses(answers) == {
        "event": 404,
        "state": 404,
        "state_ids": 404,
        "event_auth": 404,
        "backfill": 200,
        "get_missing_events": 200,
        "timestamp_to_event": 200,
    }
    assert answers["backfill"].body["pdus"] == answers["get_missing_events"].body["events"] == []


async def test_requests_without_a_signature_are_refused(world: SharedRoom) -> None:
    uri = f"/_matrix/federation/v1/backfill/{world.room_id}?v=$x&limit=5"

    assert (await world.peer.send("GET", uri, None)).status == 401
