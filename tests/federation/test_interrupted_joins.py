"""A join that the server did not live to see: the next process ends it."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from psycopg.conninfo import make_conninfo

from federation.protocol import canonical_json, event_format
from federation.protocol.types import RoomID, ServerName, UserID
from homeserver import federation_commands
from storage import remote_joins
from storage.remote_joins import RemoteJoin
from tests.client import Client, Server, quote
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.federation.authority import Authority
from tests.federation.lying_resident import LyingResident, resident
from tests.federation.remote_room import push
from tests.federation.servers import federating, federating_on
from tests.federation.test_joining import join, state_of


async def until_joined(client: Client, room_id: str, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        found: list[str] = []
        while room_id not in found:
            found = (await client.ok("GET", "/v3/joined_rooms"))["joined_rooms"]
            await asyncio.sleep(0.05)


def same(server: Server) -> dict[str, Any]:
    """The settings by which a server is itself again after a restart."""
    config = server.application.config
    return {"server_name": config.server_name, "listeners": config.listeners}


async def status_of(server: Server) -> list[str]:
    """What an operator is shown."""
    lines: list[str] = []
    await federation_commands.status(server.application.database, lines.append)
    return lines


@pytest.mark.one_process("others go on with it at once")
async def test_a_join_goes_on_after_a_restart_with_the_same_event(
    maintenance_conninfo: str, authority: Authority
) -> None:
    database = "hearth_interrupted"
    create_database(maintenance_conninfo, database, TEMPLATE)
    conninfo = make_conninfo(maintenance_conninfo, dbname=database)
    half = asyncio.Event()

    async def hang(response: web.StreamResponse, body: bytes) -> None:
        await response.write(body[: len(body) // 2])
        half.set()
        await asyncio.sleep(3600)

    try:
        async with federating_on(conninfo, authority, "127.0.0.1", {}) as first:
            bob = await first.register("bob")
            other = LyingResident(first, authority)
            other.add_members(300)
            await other.trust()
            other.stream = hang
            await other.start()
            asking = asyncio.create_task(join(bob, other.room_id, other.name))
            await half.wait()
            settings = same(first)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        sent = other.sent
        del other.stream
        other.stream = LyingResident(first, authority).stream

        async with federating_on(conninfo, authority, "127.0.0.1", settings) as second:
            bob.base_url = second.base_url
            bob.session = second.anonymous.session
            await until_joined(bob, other.room_id)
            assert len(await state_of(bob, other.room_id)) == len(other.room.state) + 1
            assert other.sent == sent
            assert other.asked == ["make_join", "send_join", "send_join"]
            async with second.application.database.read() as tx:
                assert await remote_joins.find(tx, RoomID(other.room_id)) is None
        await other.stop()
    finally:
        drop_database(maintenance_conninfo, database)


async def test_a_join_that_a_killed_process_left_is_taken_over_when_its_lease_ends(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, resident(server, authority) as other:
        bob = await server.register("bob")
        left = RemoteJoin(
            room_id=RoomID(other.room_id),
            user_id=UserID(bob.user_id),
            content={"membership": "join"},
            servers=(ServerName(other.name),),
            started_ts=1,
        )
        async with server.application.database.transaction() as tx:
            await remote_joins.insert(tx, left, leased_until_ts=1)

        carol = await server.register("carol")
        attached = await join(carol, other.room_id, other.name)

        assert attached.status == 200, attached.body
        await until_joined(bob, other.room_id)
        members = {key for event_type, key in await state_of(bob, other.room_id) if event_type == "m.room.member"}
        assert members == {other.user(), bob.user_id, carol.user_id}


async def test_what_is_said_while_a_join_is_under_way_is_there_after_it(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, resident(server, authority) as other:
        goes_on, began = asyncio.Event(), asyncio.Event()
        other.add_members(600)

        async def wait(response: web.StreamResponse, body: bytes) -> None:
            await response.write(body[: len(body) - 1000])
            began.set()
            await goes_on.wait()
            await response.write(body[len(body) - 1000 :])

        other.stream = wait
        bob = await server.register("bob")
        joining = asyncio.create_task(join(bob, other.room_id, other.name))
        await began.wait()
        rules = other.room.rules
        join_id = event_format.parse(other.sent, rules).event_id
        bobs = event_format.from_stored(canonical_json.encode(other.sent), join_id, RoomID(other.room_id), rules)
        welcome = other.room.add("m.room.message", other.user(), {"body": "welcome"}, prev_events=[bobs])
        foreign = {**welcome.json, "room_id": "!other:" + other.name}

        told = await push(other, [welcome.json, foreign])

        assert told["pdus"] == {welcome.event_id: {"error": "The room is being joined"}}
        came = 0
        async with asyncio.timeout(30):
            while came < 500:  # it is told as parts of the answer end
                await asyncio.sleep(0.05)
                await server.application.handshaking.joins.note_progress()
                (line,) = [line for line in await status_of(server) if "joins" in line]
                assert line.startswith(f"{bob.user_id} joins {other.room_id}: since ")
                assert line.endswith(" events of its state so far")
                came = int(line.partition(f"; by way of {other.name}; ")[2].split()[0])
        goes_on.set()
        assert (await joining).status == 200
        async with asyncio.timeout(12):
            path = f"/v3/rooms/{quote(other.room_id)}/event/{quote(welcome.event_id)}"
            while (await bob.request("GET", path)).status != 200:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.05)
        assert not [line for line in await status_of(server) if "joins" in line]


async def test_who_comes_later_waits_for_the_join_under_way_and_needs_no_other_server(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, resident(server, authority) as other:
        goes_on, began = asyncio.Event(), asyncio.Event()

        async def wait(response: web.StreamResponse, body: bytes) -> None:
            began.set()
            await goes_on.wait()
            await response.write(body)

        other.stream = wait
        users = [await server.register("user") for _ in range(3)]
        first = asyncio.create_task(join(users[0], other.room_id, other.name))
        await began.wait()
        others = [asyncio.create_task(join(user, other.room_id)) for user in users]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in others)
        goes_on.set()

        answers = [await task for task in (first, *others)]

        assert [answer.status for answer in answers] == [200] * 4
        assert other.asked == ["make_join", "send_join"]
        members = {key for event_type, key in await state_of(users[0], other.room_id) if event_type == "m.room.member"}
        assert members == {other.user(), *(user.user_id for user in users)}


async def test_who_comes_later_tries_for_themselves_when_the_first_is_refused(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, resident(server, authority) as other:
        eve = other.user()
        banned, welcome = await server.register("banned"), await server.register("welcome")
        other.room.add("m.room.member", eve, {"membership": "ban"}, banned.user_id)
        began, goes_on = asyncio.Event(), asyncio.Event()

        async def wait(response: web.StreamResponse, body: bytes) -> None:
            began.set()
            await goes_on.wait()
            await response.write(body)

        other.stream = wait
        first = asyncio.create_task(join(banned, other.room_id, other.name))
        await began.wait()
        second = asyncio.create_task(join(welcome, other.room_id, other.name))
        await asyncio.sleep(0.1)
        goes_on.set()

        assert (await first).status == 502  # the server would have let them in, the room's rules do not
        assert (await second).status == 200
