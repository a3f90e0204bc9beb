"""Two processes of one server write to the same room: nothing is lost, nothing is done twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.client import Client, Server
from tests.rooms import create_room, join, membership_of, pdus_of, put_state, send
from tests.servers import running

TEXT = {"msgtype": "m.text", "body": "hello"}


@pytest_asyncio.fixture
async def other(server: Server, worker_conninfo: str) -> AsyncIterator[Server]:
    """A second process of the server."""
    async with running(worker_conninfo) as other:
        yield other


def through(server: Server, client: Client) -> Client:
    """The same user and device, who speaks to this process."""
    tokens = {"user_id": client.user_id, "device_id": client.device_id, "access_token": client.access_token}
    return server.anonymous.logged_in(tokens)


async def test_messages_by_both_are_all_there(server: Server, other: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(through(other, bob), room_id)

    async def talk(client: Client) -> list[str]:
        return [await send(client, room_id, f"{number}") for number in range(10)]

    sent = await asyncio.gather(
        talk(alice), talk(through(other, alice)), talk(bob), talk(through(other, bob)), talk(through(other, alice))
    )

    pdus = await pdus_of(server, room_id)
    messages = [pdu["event_id"] for pdu in pdus if pdu["type"] == "m.room.message"]
    assert sorted(messages) == sorted(event_id for ids in sent for event_id in ids)
    known: set[str] = set()
    for pdu in pdus:
        assert known.issuperset(pdu["prev_events"])
        known.add(pdu["event_id"])


async def test_state_set_by_both_is_that_of_the_last(server: Server, other: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    async def change(client: Client, name: str) -> None:
        for number in range(10):
            await put_state(client, room_id, "org.example.counter", {"value": f"{name} {number}"})

    await asyncio.gather(change(alice, "here"), change(through(other, alice), "there"))

    values = [pdu["content"]["value"] for pdu in await pdus_of(server, room_id, "org.example.counter")]
    assert [value for value in values if value.startswith("here")] == [f"here {number}" for number in range(10)]
    assert [value for value in values if value.startswith("there")] == [f"there {number}" for number in range(10)]


async def test_a_transaction_through_both_makes_one_event(server: Server, other: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"

    answers = await asyncio.gather(
        *(client.ok("PUT", path, TEXT) for client in (alice, through(other, alice)) for _ in range(5))
    )

    assert len({answer["event_id"] for answer in answers}) == 1
    assert len(await pdus_of(server, room_id, "m.room.message")) == 1
    await send(through(other, alice), room_id, "and it goes on")


async def test_who_is_banned_by_one_says_nothing_through_the_other(
    server: Server, other: Server, alice: Client, bob: Client
) -> None:
    room_id = await create_room(alice, preset="public_chat")
    there = through(other, bob)
    await join(there, room_id)
    await send(there, room_id, "hello")

    await alice.ok("POST", f"/v3/rooms/{room_id}/ban", {"user_id": bob.user_id})

    answer = await there.put(f"/v3/rooms/{room_id}/send/m.room.message/late", TEXT)
    assert (answer.status, await membership_of(server, room_id, bob)) == (403, "ban")
    assert (await pdus_of(server, room_id))[-1]["type"] == "m.room.member"
