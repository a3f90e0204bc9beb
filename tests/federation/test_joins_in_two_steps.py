"""Rooms whose state is more than a server can give at once: it takes the join, and the state is fetched afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from psycopg.conninfo import make_conninfo

from federation.protocol import event_format
from federation.protocol.types import JsonObject
from federation.rooms import join_requests
from tests.client import Client, Server, quote
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.federation.authority import Authority
from tests.federation.lying_resident import LyingResident, resident
from tests.federation.servers import federating, federating_on
from tests.federation.test_interrupted_joins import same, until_joined
from tests.federation.test_joining import join, state_of

pytestmark = pytest.mark.one_process("its patience is shortened here")

MEMBERS = 30


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails may have been too much."""
    monkeypatch.setattr(join_requests, "TOO_MUCH_SECONDS", 0)


@asynccontextmanager
async def overcharged(server: Server, authority: Authority) -> AsyncIterator[LyingResident]:
    """A server with a room that is too large for it."""
    async with resident(server, authority) as other:
        other.add_members(MEMBERS)
        other.gives_all = False
        yield other


@asynccontextmanager
async def another_of(other: LyingResident, server: Server, authority: Authority) -> AsyncIterator[LyingResident]:
    """Another server in the same room, which the first one names."""
    async with resident(server, authority) as another:
        another.room = other.room
        other.servers_in_room = [other.name, another.name]
        yield another


def join_id(other: LyingResident) -> str:
    return event_format.parse(other.sent, other.room.rules).event_id


async def is_in(client: Client, other: LyingResident) -> bool:
    """Whether the client has the room with all of its state."""
    members = await client.ok("GET", f"/v3/rooms/{quote(other.room_id)}/joined_members")
    assert len(members["joined"]) == MEMBERS + 2
    state = await state_of(client, other.room_id)
    expected = {key: pdu.event_id for key, pdu in other.room.state.items()}
    return state == {**expected, ("m.room.member", client.user_id): join_id(other)}


@pytest.mark.parametrize("omits", [False, True])
async def test_who_cannot_give_all_at_once_is_asked_in_two_steps(
    maintenance_conninfo: str, authority: Authority, *, omits: bool
) -> None:
    async with federating(maintenance_conninfo, authority) as server, overcharged(server, authority) as other:
        bob = await server.register("bob")
        other.omits = omits

        answer = await join(bob, other.room_id, other.name)

        assert answer.status == 200, answer.body
        again = [] if omits else ["send_join"]
        assert other.asked == ["make_join", "send_join", *again, f"state {join_id(other)}"]
        assert await is_in(bob, other)


async def test_any_server_in_the_room_may_give_the_state(maintenance_conninfo: str, authority: Authority) -> None:
    async with (
        federating(maintenance_conninfo, authority) as server,
        overcharged(server, authority) as other,
        another_of(other, server, authority) as another,
    ):
        bob = await server.register("bob")
        other.answer_state = lambda _: None

        assert (await join(bob, other.room_id, other.name)).status == 200

        assert another.asked == [f"state {join_id(other)}"]
        assert await is_in(bob, other)


def without_join_rules(answer: JsonObject) -> JsonObject:
    return {**answer, "pdus": [pdu for pdu in answer["pdus"] if pdu["type"] != "m.room.join_rules"]}


def without_an_array(answer: JsonObject) -> JsonObject:
    return {"pdus": answer["pdus"]}


def with_a_topic(other: LyingResident, answer: JsonObject) -> JsonObject:
    topic = other.room.add("m.room.topic", other.user(), {"topic": "only here"}, "")
    del other.room.state["m.room.topic", ""]
    return {**answer, "pdus": [*answer["pdus"], topic.json]}


@pytest.mark.parametrize("lie", [without_join_rules, without_an_array, with_a_topic, lambda _: []])
async def test_a_state_that_is_not_that_of_the_room_is_not_taken(
    maintenance_conninfo: str, authority: Authority, lie: Any
) -> None:
    async with (
        federating(maintenance_conninfo, authority) as server,
        overcharged(server, authority) as other,
        another_of(other, server, authority) as another,
    ):
        bob = await server.register("bob")
        other.answer_state = lambda _: None
        another.answer_state = (lambda answer: with_a_topic(other, answer)) if lie is with_a_topic else lie

        answer = await join(bob, other.room_id, other.name)

        assert answer.status == 502
        assert another.asked == [f"state {join_id(other)}"]
        assert (await bob.ok("GET", "/v3/joined_rooms"))["joined_rooms"] == []


async def test_who_says_no_is_not_asked_again(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, overcharged(server, authority) as other:
        bob = await server.register("bob")
        other.status = 403

        assert (await join(bob, other.room_id, other.name)).status == 403

        assert other.asked == ["make_join", "send_join"]


async def test_what_fails_at_once_was_not_too_much(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_requests, "TOO_MUCH_SECONDS", 10)
    async with federating(maintenance_conninfo, authority) as server, overcharged(server, authority) as other:
        bob = await server.register("bob")

        assert (await join(bob, other.room_id, other.name)).status == 502

        assert other.asked == ["make_join", "send_join"]


async def test_a_server_that_ends_between_the_steps_goes_on_after_its_restart(
    maintenance_conninfo: str, authority: Authority
) -> None:
    database = "hearth_two_steps"
    create_database(maintenance_conninfo, database, TEMPLATE)
    conninfo = make_conninfo(maintenance_conninfo, dbname=database)
    half = asyncio.Event()

    async def hang(response: web.StreamResponse, body: bytes) -> None:
        if not other.asked[-1].startswith("state "):
            await response.write(body)
            return
        await response.write(body[: len(body) // 2])
        half.set()
        await asyncio.sleep(3600)

    try:
        async with federating_on(conninfo, authority, "127.0.0.1", {}) as first:
            bob = await first.register("bob")
            other = LyingResident(first, authority)
            other.add_members(MEMBERS)
            other.omits = True
            await other.trust()
            honest, other.stream = other.stream, hang
            await other.start()
            asking = asyncio.create_task(join(bob, other.room_id, other.name))
            await half.wait()
            settings = same(first)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        sent, other.stream = other.sent, honest

        async with federating_on(conninfo, authority, "127.0.0.1", settings) as second:
            bob.base_url, bob.session = second.base_url, second.anonymous.session
            await until_joined(bob, other.room_id)
            assert await is_in(bob, other)
            assert other.sent == sent
            state = f"state {join_id(other)}"
            assert other.asked == ["make_join", "send_join", state, "send_join", state]
        await other.stop()
    finally:
        drop_database(maintenance_conninfo, database)
