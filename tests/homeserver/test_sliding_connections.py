"""Connections of sliding sync: who may go on from where (MSC4186, "Connections")."""

import asyncio
import dataclasses

import pytest

from federation.protocol.types import UserID
from homeserver.services import sliding_connections
from homeserver.services.sliding_connections import Held, SentRoom, SlidingConnections
from storage.sync_connections import MAX_OF_DEVICE, ConnectionKey
from tests.client import Client, Server
from tests.homeserver.rooms import a_room
from tests.homeserver.sliding import Sliding, a_list, new_sliding, room, timeline
from tests.rooms import send
from tests.servers import running


async def is_unknown(sync: Sliding) -> bool:
    """Whether the place is refused as the specification says."""
    answer = await sync.ask()
    assert answer.status in (200, 400)
    return answer.status == 400 and answer.body["errcode"] == "M_UNKNOWN_POS"


async def test_an_answer_that_was_lost_is_given_again(alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice, {"lists": {"all": a_list(5, ranges=[[0, 0]])}})
    await sync.next()
    other = await a_room(alice)
    event_id = await send(alice, room_id, "one")
    await sync.ask(lists={"all": a_list(5)})
    await sync.ask()

    answer = await sync.next()

    assert timeline(answer, room_id) == [event_id]
    assert room(answer, other)["initial"] is True
    assert (await sync.next())["rooms"] == {}


async def test_a_place_before_the_previous_one_is_unknown(alice: Client) -> None:
    sync = Sliding(alice)
    await sync.next()
    places = [sync.pos]
    for _ in range(3):
        await a_room(alice)
        await sync.next()
        places.append(sync.pos)

    for index, is_kept in ((3, True), (2, True), (1, False), (0, False)):
        assert await is_unknown(dataclasses.replace(sync, pos=places[index])) is not is_kept, index


async def test_the_answer_that_was_not_taken_leads_nowhere(alice: Client) -> None:
    sync = Sliding(alice)
    await sync.next()
    await a_room(alice)
    lost = (await sync.ask()).body["pos"]
    await a_room(alice)
    await sync.next()
    await a_room(alice)
    await sync.next()

    assert await is_unknown(dataclasses.replace(sync, pos=lost))


@pytest.mark.parametrize(
    "pos", ["", "x", "s1_0_0_0", "c1_s999999999999_0_0_0", "c999999999999_s0_0_0_0", "c1_" + "s" * 99]
)
async def test_what_is_no_place_is_unknown(alice: Client, pos: str) -> None:
    sync = Sliding(alice)
    await sync.next()

    assert await is_unknown(dataclasses.replace(sync, pos=pos)) is bool(pos)


async def test_places_are_of_one_user_device_connection_and_form(alice: Client, bob: Client) -> None:
    sync = Sliding(alice, {"lists": {"all": a_list()}, "conn_id": "a"})
    await sync.next()
    others = [
        Sliding(bob, sync.body, sync.pos),
        Sliding(await alice.login(), sync.body, sync.pos),
        Sliding(alice, {**sync.body, "conn_id": "b"}, sync.pos),
        Sliding(alice, {"lists": {}, "conn_id": "a"}, sync.pos, is_accepted=True),
    ]

    assert [await is_unknown(other) for other in others] == [True] * 4
    assert not await is_unknown(sync)


@pytest.mark.one_process("another that remembers the place learns that it is gone when it writes the next one")
async def test_a_connection_that_begins_anew_knows_no_place_of_before(alice: Client) -> None:
    sync = Sliding(alice)
    await sync.next()
    before = sync.pos
    await Sliding(alice).next()

    assert await is_unknown(dataclasses.replace(sync, pos=before))


async def test_a_device_has_a_bounded_number_of_connections(alice: Client) -> None:
    connections = [Sliding(alice, {"lists": {}, "conn_id": str(number)}) for number in range(MAX_OF_DEVICE + 1)]
    for sync in connections:
        await sync.next(lists={"all": a_list()})
    for sync in connections:
        await a_room(alice)
        sync.body["lists"] = {"all": a_list(2)}

    assert [await is_unknown(sync) for sync in connections] == [True] + [False] * MAX_OF_DEVICE


async def test_only_what_a_client_has_is_written(server: Server, alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice)
    await sync.next()
    number = (sync.pos or "").split("_")[0]
    for _ in range(3):
        await send(alice, room_id, "x")
        await sync.next()
    assert (sync.pos or "").split("_")[0] == number

    async with server.application.database.read() as tx:
        rows = await tx.fetch("select length(state) from sync_connections where user_id = %s", (alice.user_id,))
    assert [row[0] < 200 for row in rows] == [True]


async def test_a_connection_outlives_its_process(conninfo: str) -> None:
    async with running(conninfo) as server:
        alice = await server.register("alice")
        room_id, other = await a_room(alice), await a_room(alice)
        sync, accepted = Sliding(alice), new_sliding(alice)
        await sync.next()
        await accepted.next()
        event_id = await send(alice, room_id, "x")
    async with running(conninfo) as server:
        alice = dataclasses.replace(alice, base_url=server.base_url, session=server.anonymous.session)
        for each in (sync, accepted):
            answer = await dataclasses.replace(each, client=alice).next()
            assert timeline(answer, room_id) == [event_id]
            assert other not in answer["rooms"]


async def test_a_request_waits_until_something_comes_or_is_over(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sync = Sliding(alice, timeout=30_000)
    await sync.next()
    waiting = asyncio.ensure_future(sync.next())
    await asyncio.sleep(0.1)
    event_id = await send(bob, room_id, "x")
    assert timeline(await waiting, room_id) == [event_id]

    sync.timeout = 50
    answer = await sync.next()
    assert (answer["rooms"], answer["lists"]) == ({}, {"all": {"count": 1}})


@pytest.mark.one_process("between processes only a client that has gone is known to have")
async def test_a_request_that_another_one_followed_leads_nowhere(alice: Client, bob: Client) -> None:
    rooms = [await a_room(alice, bob) for _ in range(2)]
    sync = Sliding(alice, {"lists": {"all": a_list(1, ranges=[[0, 0]])}}, timeout=30_000)
    await sync.next()
    abandoned = asyncio.ensure_future(dataclasses.replace(sync).ask())
    await asyncio.sleep(0.1)
    waiting = asyncio.ensure_future(sync.next())
    await asyncio.sleep(0.1)
    await send(bob, rooms[0], "x")

    assert set((await waiting)["rooms"]) == {rooms[0]}
    assert (await abandoned).body.get("errcode") == "M_UNKNOWN_POS"
    for _ in range(2):
        event_id = await send(bob, rooms[1], "y")
        assert timeline(await sync.next(), rooms[1]) == [event_id]


async def test_what_was_asked_anew_is_answered_at_once(alice: Client) -> None:
    room_id = await a_room(alice)
    sync = Sliding(alice, {"lists": {}}, timeout=30_000)
    await sync.next()

    assert room(await sync.next(lists={"all": a_list()}), room_id)["initial"] is True


async def test_a_process_remembers_few_connections_of_a_user_and_goes_on_with_all(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_connections, "MAX_KEPT_OF_USER", 2)
    connections = SlidingConnections(server.application.database)
    keys = [ConnectionKey(UserID(alice.user_id), 0, f"s{number}") for number in range(4)]
    numbers = [await connections.begin(key, {number: SentRoom(1)}, Held()) for number, key in enumerate(keys)]
    kept = [connections.held(key).states for key in keys[2:]]

    assert [len(states) for states in kept] == [1, 1]
    assert not connections.held(keys[0]).states
    for number, key in enumerate(keys):
        assert await connections.rooms(key, numbers[number]) == {number: SentRoom(1)}
