"""Sending messages and state (Client-Server API, "Sending events to a room", "Transaction identifiers")."""

import asyncio
from itertools import pairwise

from tests.clients import Client, Server
from tests.rooms import create_room, join, pdus_of, send, state_of

TEXT = {"msgtype": "m.text", "body": "hello"}


async def test_a_message_is_at_the_end_of_its_room(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)

    event_id = await send(bob, room_id, "hello")

    last = (await pdus_of(server, room_id))[-1]
    assert (last["event_id"], last["sender"], last["content"]["body"]) == (event_id, bob.user_id, "hello")


async def test_a_repeated_transaction_gets_the_first_answer(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"

    first = await alice.ok("PUT", path, TEXT)
    again = await alice.ok("PUT", path, {"msgtype": "m.text", "body": "something else"})

    assert again == first
    assert [event["content"] for event in await pdus_of(server, room_id, "m.room.message")] == [TEXT]


async def test_concurrent_requests_of_one_transaction_make_one_event(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"

    answers = await asyncio.gather(*(alice.ok("PUT", path, TEXT) for _ in range(10)))

    assert len({answer["event_id"] for answer in answers}) == 1
    assert len(await pdus_of(server, room_id, "m.room.message")) == 1


async def test_many_concurrent_senders_make_a_line(server: Server, alice: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")

    sent = await asyncio.gather(*(send(alice, room_id, f"message {number}") for number in range(64)))

    events = await pdus_of(server, room_id)
    assert sorted(sent) == sorted(event["event_id"] for event in events if event["type"] == "m.room.message")
    for before, event in pairwise(events):
        assert (event["prev_events"], event["depth"]) == ([before["event_id"]], before["depth"] + 1)


async def test_state_is_set_and_read(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    for path in ("m.room.topic", "m.room.topic/"):
        body = {"topic": f"by {path}"}
        event_id = (await alice.ok("PUT", f"/v3/rooms/{room_id}/state/{path}", body))["event_id"]
        assert (await state_of(server, room_id))["m.room.topic", ""]["content"] == body
        again = (await alice.ok("PUT", f"/v3/rooms/{room_id}/state/{path}", body))["event_id"]
        assert again == event_id
