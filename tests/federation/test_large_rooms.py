"""What another server costs us that joins a large room."""

import asyncio
import tracemalloc
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.pdu import Draft
from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID, ServerName, UserID
from federation.rooms.join_answers import BATCH, JoinAnswer
from federation.rooms.resident import Entered
from storage import events, rooms
from storage.database import Tx
from tests.clients import Client, Server
from tests.federation.handshakes import a_public_room, member_event, path_for
from tests.federation.peer import Peer

MEMBERS = 4_000
"""At 10,000 it is 13 statements, 6.4 MB of answer, 7.8 MB of memory and 0.13 s of CPU."""


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, str]]:
    """Every query that is made meanwhile, with the task that makes it."""
    made: list[tuple[object, str]] = []
    fetch = Tx.fetch

    async def counted(self: Tx, sql: str, params: Any = ()) -> Any:
        made.append((asyncio.current_task(), sql))
        return await fetch(self, sql, params)

    monkeypatch.setattr(Tx, "fetch", counted)
    return made


async def a_large_room(server: Server, owner: Client, members: int) -> str:
    """A room that so many users have joined."""
    room_id = await a_public_room(owner)
    writer = server.application.writer
    for start in range(0, members, 1_000):
        users = [UserID(f"@member{number}:{server.name}") for number in range(start, min(start + 1_000, members))]
        drafts = [
            Draft(
                room_id=RoomID(room_id),
                type="m.room.member",
                sender=user,
                content={"membership": "join"},
                state_key=user,
            )
            for user in users
        ]
        await writer.append(drafts)
    return room_id


async def test_the_state_of_a_large_room_is_streamed(
    server: Server, alice: Client, peer: Peer, statements: list[tuple[object, str]]
) -> None:
    room_id = await a_large_room(server, alice, MEMBERS)
    event = await member_event(peer, room_id)
    answer = await peer.request("PUT", path_for(peer, room_id, event), event)
    assert answer.status == 200
    members = [pdu["state_key"] for pdu in answer.body["state"] if pdu["type"] == "m.room.member"]
    assert len(members) == len(set(members)) == MEMBERS + 1

    application = server.application
    async with application.database.read() as tx:
        room = await rooms.find(tx, room_id)
        event_id = peer.id_of(event, get_rules("11"))
        stored = (await events.by_id(tx, [event_id]))[event_id]
    assert room is not None
    made = JoinAnswer(application.database, ServerName(server.name), Entered(room, stored), omits_members=False)
    statements.clear()
    size = 0
    tracemalloc.start()
    async for chunk in made.chunks():
        size += len(chunk)
        del chunk
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    asked = [sql for task, sql in statements if task is asyncio.current_task()]

    assert 0 < len(asked) <= 5 + MEMBERS / BATCH
    assert size > 500 * MEMBERS
    assert peak < 8_000_000  # a batch as objects, and IDs; all of it at once would be 25 MB
