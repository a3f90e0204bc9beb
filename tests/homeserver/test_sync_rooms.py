"""The rooms of a sync: what a client has to be told to know them as they are."""

import asyncio
from typing import Any

import pytest

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, history, join, leave, redact
from tests.homeserver.syncs import (
    ids,
    ignore,
    joined,
    members,
    part,
    set_state,
    state,
    sync,
    timeline,
    token,
    whole_state,
)
from tests.rooms import send

# --- joined rooms


async def test_a_first_sync_tells_state_and_timeline_that_make_the_rooms_state(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="Tea")
    for number in range(12):
        await send(alice, room_id, str(number))
    await set_state(alice, room_id, "m.room.topic", {"topic": "leaves"})

    answer = await sync(alice)

    events = timeline(answer, room_id)
    assert len(events) == 10
    assert joined(answer, room_id)["timeline"]["limited"] is True
    found = {key: event["event_id"] for key, event in state(answer, room_id).items()}
    assert ("m.room.topic", "") not in found
    found |= {(each["type"], each["state_key"]): each["event_id"] for each in events if "state_key" in each}
    assert found == await whole_state(alice, room_id)
    assert joined(answer, room_id)["summary"]["m.joined_member_count"] == 2


async def test_a_room_that_is_short_is_not_limited(alice: Client) -> None:
    room_id = await a_room(alice)

    answer = await sync(alice, filter={"room": {"timeline": {"limit": 100}}})

    assert joined(answer, room_id)["timeline"]["limited"] is False
    assert timeline(answer, room_id)[0]["type"] == "m.room.create"
    assert state(answer, room_id) == {}


async def test_a_message_comes_once(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    event_id = await send(alice, room_id, "one")

    answer = await sync(bob, since)

    assert ids(timeline(answer, room_id)) == [event_id]
    assert joined(answer, room_id)["timeline"]["limited"] is False
    assert state(answer, room_id) == {}
    assert "rooms" not in await sync(bob, answer["next_batch"])
    assert ids(timeline(await sync(bob, since), room_id)) == [event_id]


async def test_nothing_new_is_an_answer_with_a_token(alice: Client) -> None:
    since = await token(alice)

    answer = await sync(alice, since, timeout=50)

    assert set(answer) <= {
        "next_batch",
        "device_one_time_keys_count",
        "device_unused_fallback_key_types",
        "org.matrix.msc2732.device_unused_fallback_key_types",
    }


async def test_the_token_of_who_is_not_concerned_moves_along(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    since = await token(bob)
    await send(alice, room_id, "not for bob")

    later = (await sync(bob, since))["next_batch"]

    assert later != since
    assert "rooms" not in await sync(bob, later)


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_gap_is_filled_by_messages_without_a_hole_or_a_repetition(
    alice: Client, bob: Client, limit: int
) -> None:
    room_id = await a_room(alice, bob)
    last = await send(alice, room_id, "before")
    since = await token(bob)
    sent = [await send(alice, room_id, str(number)) for number in range(8)]

    answer = await sync(bob, since, filter={"room": {"timeline": {"limit": limit}}})

    section = joined(answer, room_id)["timeline"]
    assert section["limited"] is True
    assert ids(section["events"]) == sent[-limit:]
    older = await history(bob, room_id, from_=section["prev_batch"], limit=3)
    assert ids(reversed(older))[-(8 - limit) - 1 :] == [last, *sent[:-limit]]
    only_the_gap = await history(bob, room_id, from_=section["prev_batch"], to=since, limit=3)
    assert ids(reversed(only_the_gap)) == sent[:-limit]


async def test_state_in_a_gap_is_told_before_the_timeline(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    await set_state(alice, room_id, "m.room.topic", {"topic": "1"})
    second = await set_state(alice, room_id, "m.room.topic", {"topic": "2"})
    await send(alice, room_id, "a")
    third = await set_state(alice, room_id, "m.room.topic", {"topic": "3"})

    answer = await sync(bob, since, filter={"room": {"timeline": {"limit": 2}}})

    assert ids(state(answer, room_id).values()) == [second]
    assert ids(timeline(answer, room_id))[-1] == third
    assert timeline(answer, room_id)[-1]["unsigned"]["prev_content"] == {"topic": "2"}


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("use_state_after", "state_after"),
        ("org.matrix.msc4222.use_state_after", "org.matrix.msc4222.state_after"),
    ],
)
@pytest.mark.parametrize("limit", [2, 10])
async def test_state_after_is_the_state_at_the_timelines_end(
    alice: Client, bob: Client, parameter: str, name: str, limit: int
) -> None:
    room_id = await a_room(alice, bob)
    options: dict[str, Any] = {parameter: "true", "filter": {"room": {"timeline": {"limit": limit}}}}
    first = await sync(bob, **options)
    found = {key: event["event_id"] for key, event in state(first, room_id, field=name).items()}
    assert found == await whole_state(alice, room_id)
    assert "state" not in joined(first, room_id)
    await set_state(alice, room_id, "m.room.topic", {"topic": "1"})
    name_id = await set_state(alice, room_id, "m.room.name", {"name": "Tea"})
    await send(alice, room_id, "a")
    topic_id = await set_state(alice, room_id, "m.room.topic", {"topic": "2"})

    second = await sync(bob, first["next_batch"], **options)

    assert set(ids(state(second, room_id, field=name).values())) == {name_id, topic_id}
    assert "state" not in joined(second, room_id)
    await send(alice, room_id, "b")
    third = await sync(bob, second["next_batch"], **options)
    assert joined(third, room_id)[name] == {"events": []}


async def test_full_state_is_told_with_only_the_new_events(alice: Client, bob: Client) -> None:
    room_id, quiet = await a_room(alice, bob), await a_room(alice, bob)
    since = await token(bob)
    event_id = await send(alice, room_id, "new")

    answer = await sync(bob, since, full_state="true", timeout=30_000)

    assert ids(timeline(answer, room_id)) == [event_id]
    assert joined(answer, room_id)["timeline"]["limited"] is False
    assert timeline(answer, quiet) == []
    for each in (room_id, quiet):
        found = {key: event["event_id"] for key, event in state(answer, each).items()}
        assert found == await whole_state(alice, each)
    assert "device_lists" not in answer


# --- what an event says of itself


async def test_only_the_device_that_sent_learns_its_transaction(alice: Client, bob: Client) -> None:
    other = await alice.login()
    room_id = await a_room(alice, bob)
    tokens = [await token(each) for each in (alice, other, bob)]
    path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/mine"
    await alice.ok("PUT", path, {"msgtype": "m.text", "body": "hello"})

    of = []
    for client, since in zip((alice, other, bob), tokens, strict=True):
        (event,) = timeline(await sync(client, since), room_id)
        of.append(event["unsigned"].get("transaction_id"))
        assert event["unsigned"]["membership"] == "join"
        assert event["room_id"] == room_id

    assert of == ["mine", None, None]


async def test_a_redaction_takes_the_content_from_whom_was_not_told_yet(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    before = await token(bob)
    event_id = await send(alice, room_id, "secret")
    seen = await sync(bob, before)
    assert timeline(seen, room_id)[0]["content"]["body"] == "secret"

    redaction = await redact(alice, room_id, event_id)

    (told,) = timeline(await sync(bob, seen["next_batch"]), room_id)
    assert (told["event_id"], told["redacts"]) == (redaction, event_id)
    again = timeline(await sync(bob, before), room_id)
    assert ids(again) == [event_id, redaction]
    assert again[0]["content"] == {}
    assert again[0]["unsigned"]["redacted_because"]["event_id"] == redaction


async def test_a_redacted_name_is_quoted_nowhere(server: Server, alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    secret = await set_state(alice, room_id, "m.room.name", {"name": "secret"})
    await set_state(alice, room_id, "m.room.name", {"name": "public"})
    assert "secret" in str(await sync(bob, since))

    await redact(alice, room_id, secret)

    assert "secret" not in str(await sync(bob, since))
    last = await set_state(alice, room_id, "m.room.name", {"name": "secret"})
    await redact(alice, room_id, last)
    carol = await server.register("carol")
    await act(alice, "invite", room_id, carol)
    assert "secret" not in str(await sync(carol))


async def test_state_that_some_are_told_apart_from_the_timeline_says_to_others_what_it_replaced(
    alice: Client, bob: Client
) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    await set_state(alice, room_id, "m.room.topic", {"topic": "1"})
    await set_state(alice, room_id, "m.room.topic", {"topic": "2"})
    await send(alice, room_id, "a")

    await sync(bob, since, filter={"room": {"timeline": {"limit": 1}}})

    told = timeline(await sync(bob, since), room_id)[1]
    assert (told["content"], told["unsigned"]["prev_content"]) == ({"topic": "2"}, {"topic": "1"})


# --- coming and going


async def test_a_room_that_was_joined_comes_whole(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    since = await token(bob)
    await join(bob, room_id)

    answer = await sync(bob, since, filter={"room": {"timeline": {"limit": 1}}})

    found = {key: event["event_id"] for key, event in state(answer, room_id).items()}
    (event,) = timeline(answer, room_id)
    assert event["content"]["membership"] == "join"
    assert found | {("m.room.member", bob.user_id): event["event_id"]} == await whole_state(alice, room_id)
    assert joined(answer, room_id)["timeline"]["limited"] is True
    assert alice.user_id in answer["device_lists"]["changed"]


async def test_a_room_that_was_left_and_joined_again_comes_whole(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, visibility="joined")
    since = await token(bob)
    await leave(bob, room_id)
    hidden = await send(alice, room_id, "without bob")
    topic = await set_state(alice, room_id, "m.room.topic", {"topic": "gone"})
    await join(bob, room_id)
    heard = await send(alice, room_id, "with bob")

    answer = await sync(bob, since)

    events = timeline(answer, room_id)
    assert hidden not in ids(events)
    assert ids(events)[-1] == heard
    told = {*ids(events), *ids(state(answer, room_id).values())}
    assert topic in told
    assert (await whole_state(alice, room_id)).items() <= {
        **{key: event["event_id"] for key, event in state(answer, room_id).items()},
        **{(each["type"], each["state_key"]): each["event_id"] for each in events if "state_key" in each},
    }.items()


async def test_a_new_display_name_is_no_new_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})

    answer = await sync(bob, since)

    (event,) = timeline(answer, room_id)
    assert event["content"]["displayname"] == "Bob"
    assert event["unsigned"]["prev_content"]["membership"] == "join"
    assert state(answer, room_id) == {}
    assert joined(answer, room_id)["timeline"]["limited"] is False


@pytest.mark.parametrize("how", ["leave", "kick", "ban"])
async def test_a_room_that_was_left_is_told_up_to_the_leave(alice: Client, bob: Client, how: str) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    heard = await send(alice, room_id, "heard")
    if how == "leave":
        await leave(bob, room_id)
    else:
        await act(alice, how, room_id, bob)
    await send(alice, room_id, "not heard")
    await set_state(alice, room_id, "m.room.topic", {"topic": "not heard"})

    answer = await sync(bob, since, timeout=5000)

    events = timeline(answer, room_id, "leave")
    assert ids(events)[0] == heard
    assert len(events) == 2
    assert events[1]["state_key"] == bob.user_id
    assert events[1]["content"]["membership"] == ("ban" if how == "ban" else "leave")
    assert joined(answer, room_id) == {}
    assert state(answer, room_id, "leave") == {}
    assert answer["device_lists"]["left"] == [alice.user_id]
    assert "rooms" not in await sync(bob, answer["next_batch"])


async def test_state_that_changed_in_the_gap_before_a_leave_is_told(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    topic = await set_state(alice, room_id, "m.room.topic", {"topic": "tea"})
    await send(alice, room_id, "a")
    await leave(bob, room_id)
    await set_state(alice, room_id, "m.room.topic", {"topic": "coffee"})

    limited = {"room": {"timeline": {"limit": 1}}}
    answer = await sync(bob, since, filter=limited)
    assert ids(state(answer, room_id, "leave").values()) == [topic]
    after = await sync(bob, since, use_state_after="true", filter=limited)
    assert set(state(after, room_id, "leave", "state_after")) == {
        ("m.room.topic", ""),
        ("m.room.member", bob.user_id),
    }


async def test_state_after_says_what_became_of_a_ban_and_of_an_invite(alice: Client, bob: Client) -> None:
    room_id, other = await a_room(alice, bob), await a_room(alice)
    await act(alice, "ban", room_id, bob)
    await act(alice, "invite", other, bob)
    since = await token(bob)
    await act(alice, "unban", room_id, bob)
    await leave(bob, other)

    answer = await sync(bob, since, use_state_after="true")
    for each in (room_id, other):
        told = state(answer, each, "leave", "state_after")
        assert list(told) == [("m.room.member", bob.user_id)]
        assert told["m.room.member", bob.user_id]["content"]["membership"] == "leave"


async def test_rooms_left_long_ago_are_told_when_asked_for(alice: Client, bob: Client) -> None:
    room_id, forgotten = await a_room(alice, bob), await a_room(alice, bob)
    await send(alice, room_id, "heard")
    for each in (room_id, forgotten):
        await leave(bob, each)
    await set_state(alice, room_id, "m.room.topic", {"topic": "later"})
    await bob.ok("POST", f"/v3/rooms/{quote(forgotten)}/forget")

    assert "leave" not in (await sync(bob)).get("rooms", {})
    answer = await sync(bob, filter={"room": {"include_leave": True, "timeline": {"limit": 2}}})

    assert list(answer["rooms"]["leave"]) == [room_id]
    assert [event["type"] for event in timeline(answer, room_id, "leave")] == ["m.room.message", "m.room.member"]
    told = state(answer, room_id, "leave")
    assert ("m.room.create", "") in told
    assert ("m.room.topic", "") not in told
    assert {alice.user_id, bob.user_id} == members(told)


async def test_the_other_device_learns_of_a_leave_that_was_forgotten(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    other = await bob.login()
    since = await token(other)
    await leave(bob, room_id)
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/forget")

    answer = await sync(other, since)

    assert timeline(answer, room_id, "leave")[-1]["content"]["membership"] == "leave"


# --- invites and knocks


async def test_an_invite_tells_what_the_room_is(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, preset="private_chat", name="Tea", topic="leaves")
    since = await token(bob)
    await act(alice, "invite", room_id, bob)

    answer = await sync(bob, since, timeout=5000)

    told = state(answer, room_id, "invite", "invite_state")
    assert {("m.room.create", ""), ("m.room.name", ""), ("m.room.topic", ""), ("m.room.join_rules", "")} < set(told)
    assert told["m.room.member", bob.user_id]["sender"] == alice.user_id
    assert told["m.room.member", bob.user_id]["content"]["membership"] == "invite"
    assert all(set(event) == {"type", "state_key", "sender", "content"} for event in told.values())
    assert state(await sync(bob), room_id, "invite", "invite_state") == told
    assert "rooms" not in await sync(bob, answer["next_batch"])


async def test_an_invite_that_is_declined_tells_nothing_of_the_room(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, carol)
    await send(alice, room_id, "secret")
    await act(alice, "invite", room_id, bob)
    since = await token(bob)
    await leave(bob, room_id)

    answer = await sync(bob, since)

    (event,) = timeline(answer, room_id, "leave")
    assert (event["state_key"], event["content"]["membership"]) == (bob.user_id, "leave")
    assert state(answer, room_id, "leave") == {}
    assert "device_lists" not in answer


async def test_an_invite_that_is_withdrawn_is_told(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    await act(alice, "invite", room_id, bob)
    since = await token(bob)
    await act(alice, "kick", room_id, bob)

    answer = await sync(bob, since)

    (event,) = timeline(answer, room_id, "leave")
    assert (event["sender"], event["content"]["membership"]) == (alice.user_id, "leave")


async def test_invites_by_who_is_ignored_are_hidden(alice: Client, bob: Client) -> None:
    await ignore(bob, alice)
    since = await token(bob)
    room_id = await a_room(alice)
    await act(alice, "invite", room_id, bob)

    assert part(await sync(bob, since), "invite", room_id) == {}
    assert part(await sync(bob), "invite", room_id) == {}


async def test_a_knock_and_its_end_are_told(alice: Client, bob: Client) -> None:
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await a_room(alice, preset="private_chat", name="Tea", initial_state=[rule])
    since = await token(bob)
    await bob.ok("POST", f"/v3/knock/{quote(room_id)}", {"reason": "thirsty"})

    answer = await sync(bob, since)

    told = state(answer, room_id, "knock", "knock_state")
    assert told["m.room.name", ""]["content"] == {"name": "Tea"}
    assert told["m.room.member", bob.user_id]["content"]["membership"] == "knock"
    assert ("m.room.create", "") in told
    await leave(bob, room_id)
    ended = await sync(bob, answer["next_batch"])
    (event,) = timeline(ended, room_id, "leave")
    assert event["content"]["membership"] == "leave"


# --- ignored users


async def test_messages_of_who_is_ignored_are_in_no_sync(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, bob, carol)
    since = await token(bob)
    await send(carol, room_id, "spam")
    await ignore(bob, carol)
    await act(alice, "invite", room_id, await server.register("dave"))
    hello = await send(alice, room_id, "hello")
    await carol.ok("PUT", f"/v3/profile/{quote(carol.user_id)}/displayname", {"displayname": "Carol"})

    for answer in (await sync(bob), await sync(bob, since), await sync(bob, since, full_state="true")):
        events = timeline(answer, room_id)
        assert hello in ids(events)
        assert "spam" not in str(events)
        assert events[-1]["content"]["displayname"] == "Carol"
    await leave(bob, room_id)
    left = timeline(await sync(bob, since), room_id, "leave")
    assert hello in ids(left)
    assert "spam" not in str(left)


# --- summaries


async def test_heroes_name_a_room_without_a_name(server: Server, alice: Client) -> None:
    others = [await server.register(name) for name in ("zoe", "yves", "xenia", "walt", "vera", "uri")]
    room_id = await a_room(alice, *others)

    summary = joined(await sync(alice), room_id)["summary"]
    assert summary["m.heroes"] == [other.user_id for other in others[:5]]
    assert (summary["m.joined_member_count"], summary["m.invited_member_count"]) == (7, 0)
    await set_state(alice, room_id, "m.room.name", {"name": "Tea"})
    assert "m.heroes" not in joined(await sync(alice), room_id)["summary"]
    since = await token(alice)
    await set_state(alice, room_id, "m.room.name", {"name": ""})
    assert len(joined(await sync(alice, since), room_id)["summary"]["m.heroes"]) == 5


async def test_who_left_names_a_room_where_nobody_else_is(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(alice)
    await leave(bob, room_id)

    summary = joined(await sync(alice, since), room_id)["summary"]

    assert summary == {"m.heroes": [bob.user_id], "m.joined_member_count": 1, "m.invited_member_count": 0}


# --- at the same time


async def test_a_sync_during_joins_never_tells_of_a_room_twice(server: Server, alice: Client, bob: Client) -> None:
    room_ids = [await a_room(alice) for _ in range(8)]
    since = await token(bob)
    told: list[str] = []

    async def enter() -> None:
        for room_id in room_ids:
            await join(bob, room_id)

    entering = asyncio.create_task(enter())
    while len(set(told)) < len(room_ids):
        answer: Any = await sync(bob, since, timeout=5000)
        since = answer["next_batch"]
        for room_id in answer.get("rooms", {}).get("join", {}):
            told.extend(event["room_id"] for event in timeline(answer, room_id) if event["sender"] == bob.user_id)
    await entering
    assert sorted(told) == sorted(room_ids)
