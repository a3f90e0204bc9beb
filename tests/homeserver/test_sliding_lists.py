"""Which rooms a sliding sync is about: lists, filters, ranges and subscriptions (MSC4186)."""

from typing import Any

import pytest

from tests.client import Answer, Client
from tests.homeserver.rooms import a_room, act, leave
from tests.homeserver.sliding import Sliding, a_list, room
from tests.homeserver.syncs import own
from tests.rooms import put_state, send, send_event


async def listed(client: Client, **filters: Any) -> set[str]:
    """The rooms that pass; the count says the same."""
    answer = await Sliding(client, {"conn_id": "filters", "lists": {"all": a_list(1, filters=filters)}}).next()
    assert answer["lists"]["all"]["count"] == len(answer["rooms"])
    return set(answer["rooms"])


async def test_the_newest_activity_is_first_whatever_it_is(alice: Client, bob: Client) -> None:
    rooms = [await a_room(alice) for _ in range(3)]
    await send_event(alice, rooms[0], "m.reaction", {})
    await act(bob, "invite", invited := await a_room(bob), alice)
    await put_state(alice, rooms[1], "m.room.topic", {"topic": "x"})

    async def window(*ranges: list[int]) -> set[str]:
        return set((await Sliding(alice, {"lists": {"all": a_list(1, ranges=list(ranges))}}).next())["rooms"])

    assert await window([0, 0]) == {rooms[1]}
    assert await window([1, 1]) == {invited}
    assert await window([2, 3]) == {rooms[0], rooms[2]}
    assert await window([0, 0], [3, 3]) == {rooms[1], rooms[2]}
    assert await window([4, 1000]) == set()


async def test_a_window_that_grows_brings_only_what_was_not_sent(alice: Client) -> None:
    rooms = [await a_room(alice) for _ in range(4)]
    sync = Sliding(alice, {"lists": {"all": a_list(1, ranges=[[0, 1]])}})
    answer = await sync.next()
    assert (set(answer["rooms"]), answer["lists"]["all"]["count"]) == (set(rooms[2:]), 4)

    assert set((await sync.next(lists={"all": a_list(1, ranges=[[0, 9]])}))["rooms"]) == set(rooms[:2])
    assert (await sync.next(lists={"all": a_list(1, ranges=[[0, 0]])}))["rooms"] == {}


async def test_filters(alice: Client, bob: Client) -> None:
    plain = await a_room(alice)
    encrypted = await a_room(alice)
    await put_state(alice, encrypted, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    space = await a_room(alice, creation_content={"type": "m.space"})
    await put_state(alice, space, "m.space.child", {"via": ["hearth.test"]}, plain)
    await put_state(alice, space, "m.space.child", {}, encrypted)
    await alice.ok("PUT", own(alice, "account_data/m.direct"), {bob.user_id: [encrypted]})
    await alice.ok("PUT", own(alice, f"rooms/{plain}/tags/m.favourite"), {})
    await alice.ok("PUT", own(alice, f"rooms/{encrypted}/tags/m.favourite"), {})
    await alice.ok("PUT", own(alice, f"rooms/{encrypted}/tags/u.old"), {})
    await act(bob, "invite", invited := await a_room(bob), alice)

    assert await listed(alice) == {plain, encrypted, space, invited}
    assert await listed(alice, is_dm=True) == {encrypted}
    assert await listed(alice, is_dm=False) == {plain, space, invited}
    assert await listed(alice, is_encrypted=True) == {encrypted}
    assert await listed(alice, is_encrypted=False) == {plain, space, invited}
    assert await listed(alice, is_invite=True) == {invited}
    assert await listed(alice, is_invite=False) == {plain, encrypted, space}
    assert await listed(alice, room_types=["m.space"]) == {space}
    assert await listed(alice, room_types=[None]) == {plain, encrypted, invited}
    assert await listed(alice, room_types=[None, "m.space"]) == {plain, encrypted, space, invited}
    assert await listed(alice, not_room_types=["m.space"]) == {plain, encrypted, invited}
    assert await listed(alice, room_types=["m.space"], not_room_types=["m.space"]) == set()
    assert await listed(alice, tags=["m.favourite"]) == {plain, encrypted}
    assert await listed(alice, tags=["m.favourite", "u.old"], not_tags=["u.old"]) == {plain}
    assert await listed(alice, not_tags=["m.favourite"]) == {space, invited}
    assert await listed(alice, spaces=[space]) == {plain}
    assert await listed(alice, spaces=["!unknown:hearth.test"]) == set()
    assert await listed(alice, is_dm=True, is_encrypted=False) == set()


async def test_a_room_that_comes_to_pass_a_filter_is_sent(alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice, {"lists": {"all": a_list(1, filters={"is_encrypted": True})}})
    assert (await sync.next())["rooms"] == {}
    await put_state(alice, room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    assert room(await sync.next(), room_id)["initial"] is True

    sync = Sliding(alice, {"lists": {"all": a_list(1, filters={"tags": ["u.a"]})}})
    assert (await sync.next())["rooms"] == {}
    await alice.ok("PUT", own(alice, f"rooms/{room_id}/tags/u.a"), {})
    assert room(await sync.next(), room_id)["initial"] is True
    await alice.ok("DELETE", own(alice, f"rooms/{room_id}/tags/u.a"))
    answer = await sync.next()
    assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)


async def test_several_rules_of_one_room_are_one(alice: Client) -> None:
    room_id = await a_room(alice, topic="x")
    sent = [await send(alice, room_id, str(number)) for number in range(3)]
    lists = {
        "one": a_list(1, [["m.room.create", ""]]),
        "two": a_list(3, []),
    }
    subscriptions = {room_id: {"timeline_limit": 2, "required_state": [["m.room.topic", ""]]}}

    told = room(await Sliding(alice, {"lists": lists, "room_subscriptions": subscriptions}).next(), room_id)

    assert [event["event_id"] for event in told["timeline"]] == sent
    assert {event["type"] for event in told["required_state"]} == {"m.room.create", "m.room.topic"}


async def test_subscriptions_are_for_rooms_that_are_or_were_the_users(alice: Client, bob: Client) -> None:
    mine, others, left = await a_room(bob), await a_room(alice), await a_room(alice, bob)
    await leave(bob, left)
    config = {"timeline_limit": 1, "required_state": []}
    wanted = {"room_subscriptions": {room_id: config for room_id in (mine, others, left, "!none:hearth.test", "x")}}
    sync = Sliding(bob, {"lists": {}, **wanted})

    answer = await sync.next()

    assert set(answer["rooms"]) == {mine, left}
    assert answer["lists"] == {}
    assert room(answer, left)["timeline"][-1]["content"]["membership"] == "leave"
    assert (await sync.next())["rooms"] == {}
    await send(bob, mine, "x")
    assert set((await sync.next())["rooms"]) == {mine}
    await send(bob, mine, "y")
    assert (await sync.next(room_subscriptions={}))["rooms"] == {}


@pytest.mark.parametrize("name", ["lists", "room_subscriptions"])
async def test_there_may_be_a_hundred_lists_and_subscriptions(alice: Client, name: str) -> None:
    one = a_list(1) if name == "lists" else {"timeline_limit": 1, "required_state": []}

    async def ask(count: int) -> Answer:
        return await Sliding(alice, {name: {f"!{number}:x": one for number in range(count)}}).ask()

    assert (await ask(100)).status == 200
    answer = await ask(101)
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_what_all_lists_ask_for_together_is_bounded(alice: Client) -> None:
    def lists(number: int, **fields: Any) -> dict[str, Any]:
        return {"lists": {f"{n}": a_list(1, **{name: make(n) for name, make in fields.items()}) for n in range(number)}}

    async def status(body: dict[str, Any]) -> int:
        return (await Sliding(alice, body).ask()).status

    def of_its_own(n: int) -> list[list[str]]:
        return [[f"org.example.{n}", str(key)] for key in range(100)]

    assert await status(lists(20, required_state=of_its_own)) == 200
    assert await status(lists(21, required_state=of_its_own)) == 400
    assert await status(lists(100, required_state=lambda _: of_its_own(0))) == 200
    assert await status(lists(6, ranges=lambda _: [[0, 1]] * 100)) == 400
    assert await status(lists(11, filters=lambda _: {"not_tags": [f"u.{n}" for n in range(500)]})) == 400
