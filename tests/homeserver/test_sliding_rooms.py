"""The rooms of a sliding sync (MSC4186)."""

from tests.client import Client, quote
from tests.homeserver.rooms import a_room, act, leave
from tests.homeserver.sliding import EVERYTHING, Sliding, a_list, room, state, timeline
from tests.rooms import create_room, join, put_state, send


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
