"""Disputes about a room's state that random rooms seldom come upon, decided as with whole states in memory."""

from collections.abc import AsyncIterator, Sequence

import pytest

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import StateKey
from storage import events, room_state, rooms
from tests.federation.processes import Process, a_process
from tests.federation.room_model import RoomModel
from tests.federation.stored_rooms import ids_of
from tests.protocol.builders import ALICE, BOB, EVE, NOW, Room, a_room

LEVELS: StateKey = ("m.room.power_levels", "")


@pytest.fixture
async def process(conninfo: str) -> AsyncIterator[Process]:
    async with a_process(conninfo) as process:
        yield process


async def resolved(process: Process, room: Room) -> RoomModel:
    """Bring the events in, in order, and hold the current state to the model after each."""
    async with process.database.transaction() as tx:
        stored = await rooms.create(tx, room.events[0].room_id, room.rules)
    model = RoomModel(room.rules)
    for pdu in room.events:
        await process.writer.append_remote(pdu)
        model.receive(pdu)
        async with process.database.read() as tx:
            current = await ids_of(tx, await room_state.current_whole(tx, stored.number))
        assert current == model.current
    return model


def levels(room: Room, bob: int, **options: object) -> VerifiedPDU:
    """Alice sets Bob's level."""
    users = {BOB: bob} if room.rules.creators_have_infinite_power else {ALICE: 100, BOB: bob}
    return room.add("m.room.power_levels", ALICE, {"users": users}, "", **options)  # type: ignore[arg-type]  # passed on


def citing(room: Room, power_levels: VerifiedPDU) -> Sequence[VerifiedPDU]:
    """What authorises Alice by these power levels."""
    alice = next(pdu for pdu in room.events if pdu.state_key == ALICE)
    return [power_levels, alice] if room.rules.creators_have_infinite_power else [room.events[0], power_levels, alice]


@pytest.mark.parametrize("version", ["2", "6", "11", "12"])
async def test_what_an_undisputed_entry_cites_is_no_difference(process: Process, version: str) -> None:
    room = a_room(version)
    first = room.state[LEVELS]
    second = levels(room, 1, origin_server_ts=NOW + 1000)
    fork = room.add("m.room.member", BOB, {"membership": "join"}, BOB)  # cites the second, and both sides hold it
    one = levels(room, 2, prev_events=[fork], auth_events=citing(room, second), origin_server_ts=NOW + 10)
    other = levels(room, 3, prev_events=[fork], auth_events=citing(room, first), origin_server_ts=NOW + 20)
    model = await resolved(process, room)

    if version != "12":  # which takes the path between the two into account in any case
        assert model.current[LEVELS] == other.event_id
    assert model.current[LEVELS] in (one.event_id, other.event_id)


@pytest.mark.parametrize("version", ["1", "2", "11", "12"])
async def test_an_old_branch_is_weighed_against_all_that_came_since(process: Process, version: str) -> None:
    room = a_room(version)
    fork = room.add("m.room.member", BOB, {"membership": "join"}, BOB)
    room.add("m.room.member", EVE, {"membership": "join"}, EVE)
    before = dict(room.state)
    for number in range(12):
        levels(room, number)
        room.add("m.room.topic", ALICE, {"topic": f"{number}"}, "")
    room.state = before
    del room.state["m.room.member", EVE]
    name = room.add("m.room.name", ALICE, {"name": "old"}, "", prev_events=[fork])
    room.add("m.room.power_levels", ALICE, room.state[LEVELS].content, "", prev_events=[name])
    model = await resolved(process, room)

    assert model.current["m.room.name", ""] == name.event_id
    assert ("m.room.member", EVE) in model.current


@pytest.mark.parametrize("version", ["2", "11", "12"])
async def test_a_merge_goes_back_to_the_trunk(process: Process, version: str) -> None:
    room = a_room(version)
    fork = room.events[-1]
    one = room.add("m.room.topic", ALICE, {"topic": "1"}, "", prev_events=[fork])
    other = room.add("m.room.name", ALICE, {"name": "1"}, "", prev_events=[fork])
    merge = room.add("m.room.message", ALICE, {"body": "x"}, prev_events=[one, other])
    last = room.add("m.room.message", ALICE, {"body": "y"})
    await resolved(process, room)

    async with process.database.read() as tx:
        stored = await events.by_id(tx, [merge.event_id, last.event_id])
    assert {event.line for event in stored.values()} == {0}
    assert {event.version == event.trunk_version for event in stored.values()} == {True}
