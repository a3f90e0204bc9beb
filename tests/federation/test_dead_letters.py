"""Events that could not be processed are kept, shown to the operator, and tried again."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import EventID, RoomID, ServerName
from homeserver import dead_letters as shown
from storage import dead_letters
from storage.database import Database
from storage.dead_letters import MAX_ATTEMPTS, DeadLetter
from tests.client import Client, Server
from tests.federation.peer import Peer
from tests.federation.remote_room import joined_room
from tests.rooms import pdus_of


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


@pytest.fixture
async def database(conninfo: str) -> AsyncIterator[Database]:
    database = Database(conninfo, max_connections=1)
    await database.open()
    yield database
    await database.close()


async def letters_of(server: Server, room_id: str) -> list[DeadLetter]:
    async with server.application.database.read() as tx:
        return [letter for letter in await dead_letters.listed(tx, 1000) if letter.room_id == room_id]


async def retry(server: Server) -> None:
    """Try everything again now."""
    async with server.application.database.transaction() as tx:
        await dead_letters.retry_all(tx, 1)
    while await server.application.reception.dead_letters.retry_due():
        pass


async def test_what_lacks_something_arrives_later(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    missing, event = room.messages(2)
    assert "error" in (await room.push([event]))[room.id_of(event)]
    (letter,) = await letters_of(server, room.room_id)
    assert (letter.event_id, letter.origin, letter.json) == (room.id_of(event), peer.name, event)

    await room.push([missing])
    await retry(server)
    assert [pdu["event_id"] for pdu in (await pdus_of(server, room.room_id))[-2:]] == [
        room.id_of(missing),
        room.id_of(event),
    ]
    assert await letters_of(server, room.room_id) == []


async def test_what_still_lacks_something_waits_longer(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await room.push([room.make(prev=["$" + "x" * 43])])
    (first,) = await letters_of(server, room.room_id)
    await retry(server)
    (second,) = await letters_of(server, room.room_id)

    assert (first.attempts, second.attempts) == (1, 2)
    assert first.retry_ts is not None
    assert second.retry_ts is not None
    assert second.retry_ts > first.retry_ts


async def test_what_is_signed_with_an_unknown_key_is_kept(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event = room.make()
    await room.push([{**event, "signatures": {peer.name: {"ed25519:later": "x" * 86}}}])

    assert [letter.event_id for letter in await letters_of(server, room.room_id)] == [room.id_of(event)]


async def test_what_will_never_be_right_is_not_kept(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    forged: Any = {**room.make(), "depth": 77}
    await room.push([forged, room.make("m.room.topic", {"topic": "mine"}, state_key=""), room.make(depth=-1)])

    assert await letters_of(server, room.room_id) == []


async def test_what_another_server_sent_under_the_same_id_stays(server: Server, alice: Client, peer: Peer) -> None:
    """An event ID does not cover the signatures: who breaks those of an event must not do away with it."""
    room = await joined_room(alice, peer)
    missing, event = room.messages(2)
    await room.push([event])
    (letter,) = await letters_of(server, room.room_id)
    forged = {**event, "signatures": {peer.name: {peer.key.key_id: "x" * 86}}}
    other = DeadLetter(
        origin=ServerName("other.example"),
        room_id=letter.room_id,
        event_id=letter.event_id,
        json=forged,
        reason="as it came",
    )
    async with server.application.database.transaction() as tx:
        await dead_letters.keep(tx, [other], 1)
    await retry(server)
    assert [each.origin for each in await letters_of(server, room.room_id)] == [peer.name]

    await room.push([missing])
    await retry(server)
    assert (await pdus_of(server, room.room_id))[-1]["event_id"] == room.id_of(event)


# --- the list


def a_letter(number: int = 1, origin: str = "other.example") -> DeadLetter:
    return DeadLetter(
        origin=ServerName(origin),
        room_id=RoomID("!room:example.org"),
        event_id=EventID(f"${number}:other.example"),
        json={"number": number},
        reason="because",
    )


async def test_a_letter_is_given_up_in_the_end(database: Database) -> None:
    async with database.transaction() as tx:
        await dead_letters.keep(tx, [a_letter()], 1_000)
    pauses: list[int] = []
    for _ in range(MAX_ATTEMPTS - 1):
        async with database.transaction() as tx:
            (letter,) = await dead_letters.listed(tx, 10)
            assert letter.retry_ts is not None
            (taken,) = await dead_letters.take_due(tx, letter.retry_ts, 10, 1_000)
            await dead_letters.note_failures(tx, [(taken, "still")], letter.retry_ts)
            pauses.append(letter.retry_ts)
    async with database.transaction() as tx:
        (letter,) = await dead_letters.listed(tx, 10)
        assert (letter.retry_ts, letter.attempts, letter.reason) == (None, MAX_ATTEMPTS, "still")
        assert await dead_letters.take_due(tx, 10**15, 10, 1_000) == []
    assert pauses[-1] - pauses[0] > 20 * 3600 * 1000

    lines = "\n".join(await shown.show(database, 10))
    assert "1 events" in lines
    assert "not tried any more" in lines
    assert "$1:other.example in !room:example.org from other.example" in lines


async def test_a_letter_is_taken_by_one_process(database: Database) -> None:
    async with database.transaction() as tx:
        await dead_letters.keep(tx, [a_letter(1), a_letter(2)], 1_000, 0)
        taken = await dead_letters.take_due(tx, 2_000, 10, 60_000)
        assert [letter.event_id for letter in taken] == ["$1:other.example", "$2:other.example"]
        assert await dead_letters.take_due(tx, 3_000, 10, 60_000) == []
        assert len(await dead_letters.take_due(tx, 63_000, 10, 60_000)) == 2


async def test_a_server_rests_and_others_do_not(database: Database) -> None:
    async with database.transaction() as tx:
        await dead_letters.keep(tx, [a_letter(1), a_letter(2), a_letter(3, "quiet.example")], 1_000, 0)
        await dead_letters.rest(tx, ServerName("other.example"), 50_000)
        assert [letter.origin for letter in await dead_letters.take_due(tx, 49_000, 10, 60_000)] == ["quiet.example"]
        assert [letter.origin for letter in await dead_letters.take_due(tx, 50_000, 10, 1)] == ["other.example"] * 2


async def test_one_server_has_only_so_many_letters(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_PER_ORIGIN", 5)
    async with database.transaction() as tx:
        await dead_letters.keep(tx, [a_letter(100, "quiet.example")], 1_000)
        for number in range(10):
            await dead_letters.keep(tx, [a_letter(number)], 1_000)
        kept = await dead_letters.listed(tx, 100)

    assert [letter.json["number"] for letter in kept] == [9, 8, 7, 6, 5, 100]


async def test_without_letters_all_is_well(database: Database) -> None:
    assert await shown.show(database, 10) == ["Every event that other servers sent was processed."]
