"""Lazily loaded members in syncs ("Lazy-loading room members")."""

from typing import Any

import pytest

from storage.database import Tx
from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, join, leave
from tests.homeserver.syncs import members, state, sync, timeline
from tests.queries import is_answering
from tests.rooms import send

LAZY: dict[str, Any] = {"room": {"state": {"lazy_load_members": True}}}
REDUNDANT: dict[str, Any] = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}


def lazy_with(limit: int) -> dict[str, Any]:
    return {"room": {**LAZY["room"], "timeline": {"limit": limit}}}


async def a_named_room(owner: Client, *others: Client) -> str:
    """A room that needs no heroes."""
    return await a_room(owner, *others, name="Tea")


async def test_a_first_sync_holds_the_members_who_speak_and_the_reader(
    server: Server, alice: Client, bob: Client
) -> None:
    carol, dave = await server.register("carol"), await server.register("dave")
    room_id = await a_named_room(alice, bob, carol, dave)
    await send(bob, room_id, "1")
    await send(bob, room_id, "2")

    told = state(await sync(dave, filter=lazy_with(2)), room_id)

    assert members(told) == {bob.user_id, dave.user_id}
    assert ("m.room.create", "") in told


async def test_heroes_are_among_the_members(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, bob, carol)
    await send(alice, room_id, "1")

    first = await sync(alice, filter=lazy_with(1))

    assert first["rooms"]["join"][room_id]["summary"]["m.heroes"] == [bob.user_id, carol.user_id]
    assert members(state(first, room_id)) == {alice.user_id, bob.user_id, carol.user_id}


@pytest.mark.one_process("each remembers what it sent, and others repeat it")
async def test_a_member_comes_with_their_first_message_only(alice: Client, bob: Client) -> None:
    room_id = await a_named_room(alice, bob)
    await send(alice, room_id, "0")
    first = await sync(alice, filter=lazy_with(1))
    assert members(state(first, room_id)) == {alice.user_id}
    await send(bob, room_id, "1")
    second = await sync(alice, first["next_batch"], filter=LAZY)
    assert members(state(second, room_id)) == {bob.user_id}
    await send(bob, room_id, "2")
    third = await sync(alice, second["next_batch"], filter=LAZY)
    assert state(third, room_id) == {}
    assert members(state(await sync(alice, second["next_batch"], filter=REDUNDANT), room_id)) == {bob.user_id}


async def test_a_member_in_an_answer_that_got_lost_comes_again(alice: Client, bob: Client) -> None:
    room_id = await a_named_room(alice, bob)
    await send(alice, room_id, "0")
    since = (await sync(alice, filter=lazy_with(1)))["next_batch"]
    await send(bob, room_id, "1")

    for _ in range(2):
        answer = await sync(alice, since, filter=LAZY)
        assert members(state(answer, room_id)) == {bob.user_id}
    await send(bob, room_id, "2")
    assert members(state(await sync(alice, since, filter=LAZY), room_id)) == {bob.user_id}


async def test_another_device_gets_members_of_its_own(alice: Client, bob: Client) -> None:
    room_id = await a_named_room(alice, bob)
    other = await alice.login()
    tokens = [(await sync(each, filter=lazy_with(1)))["next_batch"] for each in (alice, other)]
    await send(bob, room_id, "1")

    for client, since in zip((alice, other), tokens, strict=True):
        answer = await sync(client, since, filter=LAZY)
        assert members(state(answer, room_id)) | {alice.user_id} == {bob.user_id, alice.user_id}
        assert timeline(answer, room_id)[0]["content"]["body"] == "1"
    again = await sync(alice, filter=lazy_with(1))
    assert bob.user_id in members(state(again, room_id))


async def test_changes_of_members_in_a_gap_are_not_lost(server: Server, alice: Client, bob: Client) -> None:
    carol, dave = await server.register("carol"), await server.register("dave")
    room_id = await a_named_room(alice, bob, carol)
    since = (await sync(alice, filter=LAZY))["next_batch"]
    await join(dave, room_id)
    await leave(carol, room_id)
    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})
    await send(alice, room_id, "1")

    told = state(await sync(alice, since, filter=lazy_with(1)), room_id)

    assert {bob.user_id, carol.user_id, dave.user_id} <= members(told)
    assert told["m.room.member", carol.user_id]["content"]["membership"] == "leave"
    assert told["m.room.member", bob.user_id]["content"]["displayname"] == "Bob"


async def test_who_joins_learns_their_own_member_event(alice: Client, bob: Client) -> None:
    room_id = await a_named_room(alice)
    since = (await sync(bob, filter=LAZY))["next_batch"]
    await join(bob, room_id)
    await send(alice, room_id, "1")

    answer = await sync(bob, since, filter=lazy_with(1))

    assert members(state(answer, room_id)) == {alice.user_id, bob.user_id}


@pytest.mark.one_process("its queries are counted here")
async def test_a_message_to_a_waiting_sync_costs_no_query(
    server: Server, alice: Client, bob: Client, monkeypatch: Any
) -> None:
    room_id = await a_named_room(alice, bob)
    since = (await sync(alice, filter=LAZY))["next_batch"]
    await send(bob, room_id, "1")
    since = (await sync(alice, since, filter=LAZY))["next_batch"]
    since = (await sync(alice, since, filter=LAZY))["next_batch"]
    await send(bob, room_id, "2")
    asked: list[str] = []
    for name in ("fetch", "fetch_one", "execute"):
        whole = getattr(Tx, name)

        async def counted(tx: Tx, query: str, *params: Any, whole: Any = whole) -> Any:
            if is_answering():
                asked.append(query)
            return await whole(tx, query, *params)

        monkeypatch.setattr(Tx, name, counted)

    answer = await sync(alice, since, filter=LAZY)

    assert [event["content"]["body"] for event in timeline(answer, room_id)] == ["2"]
    assert [query for query in asked if "filters" not in query] == []  # the filter's look-up
