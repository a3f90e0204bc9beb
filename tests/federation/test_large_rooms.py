"""What another server costs us that joins a large room."""

import asyncio
import tracemalloc
from typing import Any

import orjson
import pytest
import pytest_asyncio

from federation.protocol.pdu import Draft
from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID, ServerName, UserID
from federation.rooms.join_answers import BATCH, JoinAnswer
from federation.rooms.resident import Entered
from storage import events, rooms
from storage.database import Tx
from tests.client import Client, Server
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


async def an_answer(server: Server, peer: Peer, room_id: str) -> JoinAnswer:
    """What the peer's user, who joins now, will be told."""
    event = await member_event(peer, room_id)
    answer = await peer.request("PUT", path_for(peer, room_id, event), event)
    assert answer.status == 200
    application, event_id = server.application, peer.id_of(event, get_rules("11"))
    async with application.database.read() as tx:
        room = await rooms.find(tx, room_id)
        stored = (await events.by_id(tx, [event_id]))[event_id]
    assert room is not None
    return JoinAnswer(application.database, ServerName(server.name), Entered(room, stored), omits_members=False)


async def until_followers_rest(server: Server) -> None:
    """Wait until nobody works on what was written, who would be measured, too."""
    followers = server.application.followers
    async with asyncio.timeout(60), server.application.database.read() as tx:
        while True:
            rows = await tx.fetch(
                "select name, followers.position, log_head.position from followers, log_head"
                " where not exists (select from directory_backlog) and not exists (select from search_backlog)"
            )
            if rows and all(max(position, followers.position_of(name) or 0) >= head for name, position, head in rows):
                return
            await asyncio.sleep(0.05)


def asked(statements: list[tuple[object, str]]) -> int:
    """How many queries this very test has made."""
    return sum(task is asyncio.current_task() for task, _ in statements)


async def test_a_long_chain_of_authority_takes_few_queries(
    server: Server, alice: Client, peer: Peer, statements: list[tuple[object, str]]
) -> None:
    room_id = await a_public_room(alice)
    drafts = [
        Draft(
            room_id=RoomID(room_id),
            type="m.room.power_levels",
            sender=UserID(alice.user_id),
            content={"users": {alice.user_id: 100}, "events_default": number % 2},
            state_key="",
        )
        for number in range(300)
    ]
    await server.application.writer.append(drafts)
    made = await an_answer(server, peer, room_id)
    statements.clear()

    told = orjson.loads(b"".join([chunk async for chunk in made.chunks()]))
    levels = [pdu for pdu in told["auth_chain"] if pdu["type"] == "m.room.power_levels"]
    assert len(levels) == 301
    assert 0 < asked(statements) < 20


async def test_the_state_of_a_large_room_is_streamed(
    server: Server, alice: Client, peer: Peer, statements: list[tuple[object, str]]
) -> None:
    room_id = await a_large_room(server, alice, MEMBERS)
    made = await an_answer(server, peer, room_id)
    await until_followers_rest(server)
    statements.clear()
    size = members = 0
    tracemalloc.start()
    async for chunk in made.chunks():
        size += len(chunk)
        members += chunk.count(b'"type":"m.room.member"')
        del chunk
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0 < asked(statements) <= 5 + MEMBERS / BATCH
    assert size > 500 * MEMBERS
    assert members == MEMBERS + 3  # besides the join itself, and the owner's in the chain
    assert peak < 8_000_000  # a batch as objects, and IDs; all of it at once would be 25 MB
