"""Filters in syncs ("Filtering")."""

from typing import Any

import pytest

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, history
from tests.homeserver.syncs import ids, joined, own, read, say_with, set_state, state, sync, timeline, token
from tests.rooms import send, send_event


async def test_only_the_rooms_asked_for(alice: Client, bob: Client) -> None:
    one, other = await a_room(alice, bob), await a_room(alice, bob)
    since = await token(bob)
    for room_id in (one, other):
        await send(alice, room_id, "hello")

    for options in ({}, {"since": since}):
        assert set((await sync(bob, filter={"room": {"rooms": [one]}}, **options))["rooms"]["join"]) == {one}
        assert set((await sync(bob, filter={"room": {"not_rooms": [one]}}, **options))["rooms"]["join"]) == {other}
        both = {"room": {"rooms": [one, other], "not_rooms": [other]}}
        assert set((await sync(bob, filter=both, **options))["rooms"]["join"]) == {one}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"types": ["m.room.message"]}, ["plain", "picture", "from bob"]),
        ({"not_types": ["m.room.*"]}, ["other"]),
        ({"types": ["*"], "senders": ["BOB"]}, ["from bob"]),
        ({"not_senders": ["BOB"]}, ["plain", "picture", "other", "topic"]),
        ({"contains_url": True}, ["picture"]),
        ({"types": ["m.room.message"], "contains_url": False}, ["plain", "from bob"]),
        ({"limit": 1}, ["from bob"]),
        ({"limit": 1, "not_senders": ["BOB"]}, ["topic"]),
        ({"not_rooms": ["ROOM"]}, []),
        ({"rooms": []}, []),
        ({"types": []}, []),
    ],
)
async def test_what_of_a_timeline(alice: Client, bob: Client, wanted: dict[str, Any], expected: list[str]) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    names = {
        await send(alice, room_id, "plain"): "plain",
        await send(alice, room_id, "picture", url="mxc://hearth.test/a"): "picture",
        await send_event(alice, room_id, "org.example.other", {}): "other",
        await set_state(alice, room_id, "m.room.topic", {"topic": "tea"}): "topic",
        await send(bob, room_id, "from bob"): "from bob",
    }
    named = {"BOB": bob.user_id, "ROOM": room_id}
    part = {
        key: [named.get(each, each) for each in value] if isinstance(value, list) else value
        for key, value in wanted.items()
    }

    answer = await sync(bob, since, filter={"room": {"timeline": part}})

    assert [names[event_id] for event_id in ids(timeline(answer, room_id))] == expected
    if "topic" not in expected:  # what changed is told one way or the other
        assert ("m.room.topic", "") in state(answer, room_id)


async def test_only_what_others_relate_to(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    root = await send(alice, room_id, "root")
    await send(alice, room_id, "alone")
    await say_with(bob, room_id, "reply", {"m.relates_to": {"rel_type": "m.thread", "event_id": root}})

    for part in ({"related_by_rel_types": ["m.thread"]}, {"related_by_senders": [bob.user_id]}):
        for options in ({}, {"since": since}):
            answer = await sync(bob, filter={"room": {"timeline": part}}, **options)
            assert ids(timeline(answer, room_id)) == [root]
    nothing = {"related_by_rel_types": ["m.thread"], "related_by_senders": [alice.user_id]}
    assert timeline(await sync(bob, since, filter={"room": {"timeline": nothing}}), room_id) == []


@pytest.mark.parametrize("limit", [0, 1, 10**6])
async def test_any_limit_ends_well(alice: Client, limit: int) -> None:
    room_id = await a_room(alice)
    for number in range(3):
        await send(alice, room_id, str(number))

    answer = await sync(alice, filter={"room": {"timeline": {"limit": limit}}})

    assert len(timeline(answer, room_id)) == (1 if limit < 2 else len(await history(alice, room_id)))


async def test_a_first_sync_whose_filter_lets_nothing_through_can_be_paged_back_from(alice: Client) -> None:
    room_id = await a_room(alice)
    sent = await send(alice, room_id, "hello")

    answer = await sync(alice, filter={"room": {"timeline": {"types": []}}})

    prev_batch = joined(answer, room_id)["timeline"]["prev_batch"]
    assert ids(await history(alice, room_id, from_=prev_batch))[0] == sent


async def test_what_of_the_state(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="Tea")

    answer = await sync(bob, filter={"room": {"state": {"types": ["m.room.name"]}, "timeline": {"types": []}}})
    assert set(state(answer, room_id)) == {("m.room.name", "")}
    answer = await sync(bob, filter={"room": {"state": {"not_rooms": [room_id]}, "timeline": {"types": []}}})
    assert state(answer, room_id) == {}


async def test_what_besides_events(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    since = await token(bob)
    await read(alice, room_id, event_id)
    await bob.ok("PUT", own(bob, f"rooms/{quote(room_id)}/account_data/org.example"), {"a": 1})
    await bob.ok("PUT", own(bob, "account_data/org.example"), {"a": 1})
    nothing: dict[str, Any] = {"types": []}

    answer = await sync(
        bob, since, filter={"account_data": nothing, "room": {"ephemeral": nothing, "account_data": nothing}}
    )
    assert ("rooms" in answer, "account_data" in answer) == (False, False)
    elsewhere = {"not_rooms": [room_id]}
    answer = await sync(bob, since, filter={"room": {"ephemeral": elsewhere, "account_data": elsewhere}})
    assert "rooms" not in answer
    answer = await sync(bob, since)
    assert joined(answer, room_id)["account_data"]["events"] == [{"type": "org.example", "content": {"a": 1}}]
    assert joined(answer, room_id)["ephemeral"]["events"][0]["type"] == "m.receipt"
    assert answer["account_data"]["events"] == [{"type": "org.example", "content": {"a": 1}}]


async def test_events_as_servers_exchange_them(server: Server, alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    event_id = await send(alice, room_id, "hello")

    (event,) = timeline(await sync(bob, since, filter={"event_format": "federation"}), room_id)

    assert {"auth_events", "prev_events", "depth", "hashes", "signatures", "origin_server_ts"} <= set(event)
    assert "unsigned" not in event
    assert server.name in event["signatures"]
    whole = await bob.ok("GET", f"/v3/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert event["content"] == whole["content"]


async def test_only_some_fields(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    await send(alice, room_id, "hello")

    answer = await sync(bob, since, filter={"event_fields": ["content.body", "sender", "content.nothing"]})

    assert timeline(answer, room_id) == [{"content": {"body": "hello"}, "sender": alice.user_id}]
