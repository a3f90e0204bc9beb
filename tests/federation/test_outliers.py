"""Events without a place in the graph, and joining anew a room that we know an old part of."""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import pytest

from federation.outbound.keyring import Keyring
from federation.protocol.errors import PeerUnreachable
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import EventID, JsonObject, ServerName, StateKey
from federation.rooms import received_state
from federation.rooms.append import Outcome
from federation.rooms.append_join import GivenEntry
from federation.rooms.received_state import ReceivedState
from storage import events, outliers, room_state, rooms
from storage.database import Tx
from storage.events import Flag
from storage.rooms import Room as StoredRoom
from tests.federation.processes import Process, a_process
from tests.federation.stored_rooms import ids_of, newest_events
from tests.protocol.builders import ALICE, BOB, EVE, HOME, HOME_KEY, Room, a_room


@pytest.fixture
async def process(conninfo: str) -> AsyncIterator[Process]:
    async with a_process(conninfo) as process:
        yield process


class NoKeys:
    """Nobody is to be asked."""

    async def get_keys(self, server_name: ServerName, timeout: float) -> JsonObject:
        raise PeerUnreachable(server_name, "nobody is to be asked")

    async def query_notary(self, notary: ServerName, body: JsonObject) -> JsonObject:
        raise PeerUnreachable(notary, "nobody is to be asked")


async def hold(
    process: Process, room: StoredRoom, pdus: Sequence[VerifiedPDU], rejected: Collection[EventID] = ()
) -> None:
    async with process.database.transaction() as tx:
        reserved = await outliers.reserve(tx, room, len(pdus))
    async with process.database.transaction() as tx:
        await outliers.insert(tx, room, reserved, pdus, rejected)


def state_of(room: Room) -> dict[StateKey, EventID]:
    return {key: pdu.event_id for key, pdu in room.state.items()}


async def known(process: Process, room: Room) -> StoredRoom:
    async with process.database.transaction() as tx:
        return await rooms.create(tx, room.events[0].room_id, room.rules)


async def test_outliers_are_held_in_order_and_nobody_hears_of_them(process: Process, conninfo: str) -> None:
    room = a_room()
    stored = await known(process, room)
    async with a_process(conninfo) as other:
        await hold(process, stored, room.events[:3], rejected=[room.events[2].event_id])
        await hold(process, stored, room.events)
        await other.tail.catch_up()
        assert other.picture.events == []

    async with process.database.read() as tx:
        found = await events.by_id(tx, [pdu.event_id for pdu in room.events])
    in_order = sorted(found.values(), key=lambda event: event.position)
    assert [event.event_id for event in in_order] == [pdu.event_id for pdu in room.events]
    assert [event.flags for event in in_order] == [Flag.OUTLIER, Flag.OUTLIER, Flag.OUTLIER | Flag.REJECTED, 4]
    assert [event.canonical for event in in_order] == [pdu.canonical for pdu in room.events]


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_a_room_joined_anew_has_the_state_that_was_given(process: Process, version: str) -> None:
    room = a_room(version)
    stored = await known(process, room)
    room.add("m.room.member", BOB, {"membership": "join"}, BOB)
    room.add("m.room.name", ALICE, {"name": "old"}, "")
    room.add("m.room.member", BOB, {"membership": "ban"}, BOB)
    for pdu in room.events:
        await process.writer.append_remote(pdu)
    unseen = [
        room.add("m.room.member", EVE, {"membership": "join"}, EVE),
        room.add("m.room.member", ALICE, {"membership": "leave"}, BOB),
    ]
    last = room.add("m.room.message", ALICE, {"body": "unseen"})
    await hold(process, stored, unseen)
    del room.state["m.room.name", ""]
    state = state_of(room)
    join = room.add("m.room.member", BOB, {"membership": "join", "displayname": "B"}, BOB, prev_events=[last])

    entries = [
        GivenEntry(key, event_id, next(pdu for pdu in room.events if pdu.event_id == event_id).membership)
        for key, event_id in state.items()
    ]
    received = await process.writer.append_join(join, entries)

    assert received.outcome is Outcome.ACCEPTED, received
    async with process.database.read() as tx:
        current = await ids_of(tx, await room_state.current_whole(tx, stored.number))
        row = (await rooms.rows(tx, [stored.number]))[stored.number]
        newest = await newest_events(tx, stored, 1)
    assert current == {**state, ("m.room.member", BOB): join.event_id}
    assert row.extremities == (join.event_id,)
    assert row.joined_members == 3
    assert newest[0].event_id == join.event_id


async def positions(process: Process, pdus: Sequence[VerifiedPDU]) -> list[int]:
    async with process.database.read() as tx:
        found = await events.by_id(tx, [pdu.event_id for pdu in pdus])
    return [found[pdu.event_id].position for pdu in pdus]


def overtaken_once(process: Process, room: StoredRoom, by: Sequence[VerifiedPDU], patch: pytest.MonkeyPatch) -> None:
    """Others hold these events between the next reservation and what follows it."""
    insert = outliers.insert

    async def be_overtaken_and_insert(tx: Tx, *arguments: Any) -> dict[str, int]:
        patch.setattr(outliers, "insert", insert)
        await hold(process, room, by)
        return await insert(tx, *arguments)

    patch.setattr(outliers, "insert", be_overtaken_and_insert)


async def test_what_others_held_first_stays_below_what_cites_it(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = a_room()
    stored = await known(process, room)
    overtaken_once(process, stored, room.events[:2], monkeypatch)
    held = await process.writer.append_outliers(stored, room.events)

    assert held == {pdu.event_id for pdu in room.events}
    in_order = await positions(process, room.events)
    assert in_order == sorted(in_order)


async def test_a_state_that_is_received_goes_above_what_others_held_first(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received_state, "CHUNK", 2)
    room = a_room()
    stored = await known(process, room)
    own_keys = {HOME_KEY.key_id: VerifyKey(public_key=HOME_KEY.public_key)}
    keyring = Keyring(process.database, NoKeys(), server_name=HOME, own_keys=own_keys)
    state = ReceivedState(stored.room_id, room.rules, keyring)
    await state.add([("state", pdu.canonical) for pdu in room.events])
    await state.judge(process.database, stored)
    overtaken_once(process, stored, room.events[:3], monkeypatch)
    entries = await state.store(process.database, stored)
    state.close()
    await keyring.close()

    assert {entry.event_id for entry in entries} == {pdu.event_id for pdu in room.events}
    in_order = await positions(process, room.events)
    assert in_order == sorted(in_order)


async def test_what_is_held_is_no_reason_to_take_new_places(process: Process) -> None:
    room = a_room()
    stored = await known(process, room)
    await hold(process, stored, room.events[:2])
    await hold(process, stored, room.events)  # Overtaken is not raised
    in_order = await positions(process, room.events)
    assert in_order == sorted(in_order)
