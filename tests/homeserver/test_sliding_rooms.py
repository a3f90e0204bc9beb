"""The rooms of a sliding sync (MSC4186)."""

from typing import Any

import pytest
import pytest_asyncio

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, leave, page, redact
from tests.homeserver.sliding import EVERYTHING, Sliding, a_list, room, state, timeline
from tests.homeserver.syncs import ignore, own, read
from tests.rooms import create_room, join, put_state, send, send_event

KNOCK = {"join_rule": "knock"}


@pytest_asyncio.fixture
async def carol(server: Server) -> Client:
    """A third user."""
    return await server.register("carol")


def members(answer: Any, room_id: str) -> set[str]:
    """Whose member events came besides the timeline."""
    return {state_key for event_type, state_key in state(answer, room_id) if event_type == "m.room.member"}


def a_room_config() -> Any:
    """What a subscription asks for."""
    return {"timeline_limit": 5, "required_state": []}


async def test_a_room_is_sent_whole_once_and_then_what_is_new(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="Kitchen")
    first = await send(bob, room_id, "one")
    sync = Sliding(alice, {"lists": {"all": a_list(3, [["m.room.name", ""], ["m.room.create", ""]])}})

    answer = await sync.next()
    told = room(answer, room_id)

    assert told["initial"] is True
    assert (told["name"], told["joined_count"], told["invited_count"]) == ("Kitchen", 2, 0)
    assert timeline(answer, room_id)[-1] == first
    assert told["limited"] is True
    assert told["num_live"] == 0
    assert set(state(answer, room_id)) == {("m.room.name", ""), ("m.room.create", "")}
    assert answer["lists"]["all"]["count"] == 1

    assert (await sync.next())["rooms"] == {}

    second = await send(bob, room_id, "two")
    answer = await sync.next()

    assert timeline(answer, room_id) == [second]
    told = room(answer, room_id)
    assert "initial" not in told
    assert told["num_live"] == 1
    assert "name" not in told
    assert told["notification_count"] == 2
    assert (await sync.next())["rooms"] == {}


async def test_state_that_is_wanted_is_sent_when_it_changes(alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice, {"lists": {"all": a_list(1, [["m.room.topic", ""]])}})
    await sync.next()

    topic = await put_state(alice, room_id, "m.room.topic", {"topic": "x"})
    await put_state(alice, room_id, "m.room.name", {"name": "Hall"})
    answer = await sync.next()

    assert {key: event["event_id"] for key, event in state(answer, room_id).items()} == {("m.room.topic", ""): topic}
    assert room(answer, room_id)["name"] == "Hall"
    assert room(answer, room_id)["limited"] is True


async def test_an_invite_a_join_and_a_leave(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, name="Hall")
    sync = Sliding(bob, {"lists": {"all": a_list(5, EVERYTHING)}})
    assert room_id not in (await sync.next())["rooms"]

    await act(alice, "invite", room_id, bob)
    told = room(await sync.next(), room_id)
    assert told["initial"] is True
    assert ("m.room.name", "Hall") in {(event["type"], event["content"].get("name")) for event in told["invite_state"]}
    assert "timeline" not in told

    await bob.ok("POST", f"/v3/join/{room_id}", {})
    told = room(await sync.next(), room_id)
    assert told["initial"] is True
    assert told["joined_count"] == 2

    await leave(bob, room_id)
    await send(alice, room_id, "not for bob")
    answer = await sync.next()
    assert [event["content"].get("membership") for event in room(answer, room_id)["timeline"]] == ["leave"]
    assert room_id not in (await sync.next())["rooms"]
    assert room_id not in (await Sliding(bob).next())["rooms"]


async def test_who_was_removed_sees_the_room_until_they_forget_it(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    await alice.ok("POST", f"/v3/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    assert room(await Sliding(bob).next(), room_id)

    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/forget", {})

    assert not room(await Sliding(bob).next(), room_id)


async def test_members_come_with_what_they_sent(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await a_room(alice, bob, carol)
    await send(bob, room_id, "hello")
    sync = Sliding(alice, {"lists": {"all": a_list(1, [["m.room.member", "$LAZY"], ["m.room.member", "$ME"]])}})

    assert members(await sync.next(), room_id) == {alice.user_id, bob.user_id}

    await send(carol, room_id, "me too")
    assert members(await sync.next(), room_id) == {carol.user_id}


@pytest.mark.one_process("each remembers what it sent, and others repeat it")
async def test_members_who_were_sent_are_not_sent_again(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await a_room(alice, bob, carol)
    await send(bob, room_id, "hello")
    sync = Sliding(alice, {"lists": {"all": a_list(1, [["m.room.member", "$LAZY"]])}})
    await sync.next()

    await send(bob, room_id, "again")
    assert members(await sync.next(), room_id) == set(), "bob's was sent"
    await send(carol, room_id, "me too")
    assert members(await sync.next(), room_id) == {carol.user_id}


async def test_members_are_sent_again_behind_a_gap(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    await send(bob, room_id, "hello")
    sync = Sliding(alice, {"lists": {"all": a_list(1, [["m.room.member", "$LAZY"]])}})
    await sync.next()

    await send(bob, room_id, "two")
    await send(bob, room_id, "three")
    answer = await sync.next()

    assert room(answer, room_id)["limited"] is True
    assert members(answer, room_id) == {bob.user_id}


async def test_all_state_and_single_state_keys(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    for key in ("a", "b"):
        await put_state(alice, room_id, "org.example.one", {}, key)
        await put_state(alice, room_id, "org.example.two", {}, key)

    async def wanted(*pairs: list[str]) -> set[tuple[str, str]]:
        return set(state(await Sliding(alice, {"lists": {"all": a_list(1, pairs)}}).next(), room_id))

    assert await wanted(["org.example.one", "*"]) == {("org.example.one", "a"), ("org.example.one", "b")}
    assert await wanted(["*", "b"]) == {("org.example.one", "b"), ("org.example.two", "b")}
    assert await wanted(["m.room.member", "$ME"]) == {("m.room.member", alice.user_id)}
    everything = await wanted(["*", "*"])
    assert {("m.room.member", alice.user_id), ("m.room.member", bob.user_id), ("m.room.create", "")} <= everything
    without_bob = await wanted(["*", "*"], ["m.room.member", "$LAZY"])
    assert everything - without_bob == {("m.room.member", bob.user_id)}, "alice sent what the timeline holds"


async def test_more_of_a_timeline_and_more_state_are_sent_at_once(alice: Client) -> None:
    room_id = await a_room(alice)
    sent = [await send(alice, room_id, str(number)) for number in range(5)]
    await put_state(alice, room_id, "m.room.topic", {"topic": "x"})
    sync = Sliding(alice, {"lists": {"all": a_list(1, [["m.room.create", ""]])}})
    await sync.next()

    answer = await sync.next(lists={"all": a_list(4, [["m.room.create", ""], ["m.room.topic", ""]])})
    told = room(answer, room_id)
    assert timeline(answer, room_id)[:3] == sent[2:]
    assert told["unstable_expanded_timeline"] is True
    assert told["num_live"] == 0
    assert "initial" not in told
    assert set(state(answer, room_id)) == {("m.room.topic", "")}

    assert (await sync.next(lists={"all": a_list(1)}))["rooms"] == {}
    assert (await sync.next(lists={"all": a_list(4)}))["rooms"] == {}, "it has all of that"


async def test_a_room_that_is_looked_at_again_goes_on_where_it_was(alice: Client) -> None:
    first, second = await a_room(alice), await a_room(alice)
    await send(alice, first, "so that it is first")
    sync = Sliding(alice, {"lists": {"all": a_list(10, ranges=[[0, 1]])}})
    await sync.next()
    await sync.next(lists={"all": a_list(10, ranges=[[0, 0]])})

    seen = await send(alice, second, "one")
    await send(alice, first, "two")
    assert set((await sync.next())["rooms"]) == {first}
    answer = await sync.next(lists={"all": a_list(10, ranges=[[0, 1]])})

    assert timeline(answer, second) == [seen]
    assert "initial" not in room(answer, second)
    assert room(answer, second)["num_live"] == 0, "it happened before the last answer"


async def test_names_avatars_and_heroes(alice: Client, bob: Client) -> None:
    await bob.ok("PUT", f"/v3/profile/{bob.user_id}/displayname", {"displayname": "Bob"})
    room_id = await a_room(alice, bob)
    sync = Sliding(alice, {"lists": {"all": a_list(5)}})

    told = room(await sync.next(), room_id)
    assert told["heroes"] == [{"user_id": bob.user_id, "displayname": "Bob"}]
    assert "name" not in told
    assert "avatar" not in told

    await put_state(alice, room_id, "m.room.name", {"name": "Hall"})
    await put_state(alice, room_id, "m.room.avatar", {"url": "mxc://hearth.test/a"})
    told = room(await sync.next(), room_id)
    assert (told["name"], told["avatar"]) == ("Hall", "mxc://hearth.test/a")
    assert "heroes" not in told

    event_id = await put_state(alice, room_id, "m.room.name", {})
    told = room(await sync.next(), room_id)
    assert told["name"] is None
    assert told["heroes"] == [{"user_id": bob.user_id, "displayname": "Bob"}]

    named = await put_state(alice, room_id, "m.room.name", {"name": "Hall"})
    await sync.next()
    await redact(alice, room_id, named)
    assert room(await sync.next(), room_id)["name"] is None
    assert event_id != named


async def test_only_what_people_do_moves_the_bump_stamp(alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice, {"lists": {"all": a_list(5)}})
    stamp = room(await sync.next(), room_id)["bump_stamp"]

    await put_state(alice, room_id, "m.room.topic", {"topic": "x"})
    await send_event(alice, room_id, "m.reaction", {})
    assert "bump_stamp" not in room(await sync.next(), room_id)

    for event_type in ("m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start"):
        await send_event(alice, room_id, event_type, {"body": "x", "msgtype": "m.text"})
        newer = room(await sync.next(), room_id)["bump_stamp"]
        assert newer > stamp
        stamp = newer


async def test_reading_on_another_device_changes_the_counts(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sync = Sliding(alice, {"lists": {"all": a_list(5)}})
    await sync.next()
    event_id = await send(bob, room_id, "ping", **{"m.mentions": {"user_ids": [alice.user_id]}})
    told = room(await sync.next(), room_id)
    assert (told["notification_count"], told["highlight_count"]) == (1, 1)

    await read(alice, room_id, event_id)
    assert room(await sync.next(), room_id) == {"notification_count": 0, "highlight_count": 0}


async def test_a_room_becomes_a_direct_chat_and_no_longer_is(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sync = Sliding(alice, {"lists": {"all": a_list(5)}})
    assert "is_dm" not in room(await sync.next(), room_id)

    await alice.ok("PUT", own(alice, "account_data/m.direct"), {bob.user_id: [room_id, 7], "x": "malformed"})
    assert room(await sync.next(), room_id) == {"is_dm": True}
    await alice.ok("PUT", own(alice, "account_data/m.direct"), {})
    assert room(await sync.next(), room_id) == {"is_dm": False}


async def test_who_is_removed_is_told_and_still_has_the_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sync = Sliding(bob, {"lists": {"all": a_list(5)}})
    await sync.next()

    await act(alice, "kick", room_id, bob)
    await send(alice, room_id, "bob may not see this")
    answer = await sync.next()
    assert [event["content"].get("membership") for event in room(answer, room_id)["timeline"]] == ["leave"]
    assert (await sync.next())["rooms"] == {}

    fresh = Sliding(bob, {"lists": {"all": a_list(1)}, "conn_id": "fresh"})
    answer = await fresh.next()
    assert answer["lists"]["all"]["count"] == 1
    assert room(answer, room_id)["timeline"][0]["content"]["membership"] == "leave"

    await bob.ok("POST", f"/v3/rooms/{room_id}/forget", {})
    assert (await Sliding(bob, {**fresh.body, "conn_id": "again"}).next())["lists"]["all"]["count"] == 0


async def test_a_ban_of_who_never_was_there_is_no_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    await act(alice, "ban", room_id, bob)

    answer = await Sliding(bob, {"lists": {"all": a_list(1)}, "room_subscriptions": {room_id: a_room_config()}}).next()

    assert answer["lists"]["all"]["count"] == 0


async def test_an_invite_that_is_taken_back_is_told(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, preset="private_chat")
    await act(alice, "invite", room_id, bob)
    sync = Sliding(bob, {"lists": {"all": a_list(5)}})
    assert "invite_state" in room(await sync.next(), room_id)

    await act(alice, "kick", room_id, bob)

    assert room(await sync.next(), room_id)["timeline"][-1]["content"]["membership"] == "leave"
    answer = await sync.next()
    assert answer["rooms"] == {}
    assert answer["lists"]["all"]["count"] == 0


async def test_a_knock_is_told_with_what_may_be_known_of_the_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, name="Hall", initial_state=[{"type": "m.room.join_rules", "content": KNOCK}])
    await bob.ok("POST", f"/v3/knock/{room_id}", {})

    told = room(await Sliding(bob, {"lists": {"all": a_list(5)}}).next(), room_id)

    memberships = [each["content"]["membership"] for each in told["invite_state"] if each["type"] == "m.room.member"]
    assert memberships == ["knock"]


async def test_whoever_is_ignored_invites_nobody(alice: Client, bob: Client) -> None:
    await ignore(bob, alice)
    await act(alice, "invite", await a_room(alice), bob)

    answer = await Sliding(bob, {"lists": {"all": a_list(5)}}).next()

    assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)


async def test_a_page_goes_on_from_a_rooms_prev_batch_and_from_a_pos(alice: Client) -> None:
    room_id = await a_room(alice)
    sent = [await send(alice, room_id, str(number)) for number in range(5)]
    sync = Sliding(alice, {"lists": {"all": a_list(2)}})
    answer = await sync.next()

    before = await page(alice, room_id, from_=room(answer, room_id)["prev_batch"], limit=2)
    assert [event["event_id"] for event in before["chunk"]] == [sent[2], sent[1]]
    newest = await page(alice, room_id, from_=answer["pos"], limit=1)
    assert [event["event_id"] for event in newest["chunk"]] == [sent[4]]
