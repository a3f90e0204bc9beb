"""What a sliding sync tells besides rooms (MSC3884, MSC3885, MSC3959, MSC3960, MSC3961)."""

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.client import Client, quote, unique
from tests.homeserver.rooms import a_room, leave
from tests.homeserver.sliding import Sliding, a_list, extension
from tests.homeserver.syncs import own, read
from tests.rooms import join, send
from tests.servers import running

ON: Any = {"enabled": True}


def asking(client: Client, name: str, **fields: Any) -> Sliding:
    """A connection that wants one extension."""
    return Sliding(client, {"lists": {"all": a_list(1)}, "extensions": {name: {**ON, **fields}}})


async def message(sender: Client, receiver: Client) -> str:
    """Send a message to all devices; its text."""
    text = unique()
    body = {"messages": {receiver.user_id: {"*": {"text": text}}}}
    await sender.ok("PUT", f"/v3/sendToDevice/org.example/{unique('t')}", body)
    return text


def texts(answer: Any) -> list[str]:
    """The messages of an answer."""
    return [event["content"]["text"] for event in extension(answer, "to_device")["events"]]


async def test_nothing_is_told_that_is_not_wanted(alice: Client) -> None:
    every: list[Any] = [{}, {"typing": {}}, {"e2ee": {"enabled": False}, "org.example": ON}]
    for wanted in every:
        assert (await Sliding(alice, {"lists": {}, "extensions": wanted}).next())["extensions"] == {}


# --- to_device


async def test_messages_come_until_a_since_proves_that_they_arrived(alice: Client, bob: Client) -> None:
    sync = asking(alice, "to_device")
    assert texts(await sync.next()) == []
    sent = [await message(bob, alice) for _ in range(3)]

    answer = await sync.next()
    assert texts(answer) == sent
    assert texts(await sync.next()) == sent, "nothing says that they arrived"
    since = extension(answer, "to_device")["next_batch"]
    answer = await sync.next(extensions={"to_device": {**ON, "since": since}})
    assert texts(answer) == []
    assert extension(answer, "to_device")["next_batch"] == since
    assert texts(await sync.next(extensions={"to_device": ON})) == [], "they are deleted"


@pytest.mark.one_process("each of its two servers is one")
async def test_messages_that_another_process_told_come_again_as_well(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        sync = asking(alice, "to_device")
        for _ in range(2):  # the first process knows that nothing else is to be told
            assert texts(await sync.next()) == []
        sent = [await message(bob, alice)]
        sync.client = dataclasses.replace(alice, base_url=other.anonymous.base_url)
        assert texts(await sync.next()) == sent
        sync.client = alice
        assert texts(await sync.next()) == sent


async def test_messages_come_in_parts(alice: Client, bob: Client) -> None:
    sent = [await message(bob, alice) for _ in range(5)]
    sync = asking(alice, "to_device", limit=2)
    sync.timeout = 10_000
    got: list[str] = []
    while len(got) < len(sent):
        answer = await sync.next()
        got += texts(answer)
        sync.body["extensions"]["to_device"]["since"] = extension(answer, "to_device")["next_batch"]
    assert got == sent


async def test_a_message_ends_the_wait(alice: Client, bob: Client) -> None:
    sync = asking(alice, "to_device")
    answer = await sync.next()
    sync.body["extensions"]["to_device"]["since"] = extension(answer, "to_device")["next_batch"]
    sync.timeout = 30_000
    waiting = asyncio.ensure_future(sync.next())
    await asyncio.sleep(0.1)
    text = await message(bob, alice)
    assert texts(await waiting) == [text]


@pytest.mark.parametrize("since", ["x", "-1", "99999999999999999", "1" * 400, "s1_1_0_0"])
async def test_a_since_that_was_not_given_out_is_refused(alice: Client, since: str) -> None:
    answer = await asking(alice, "to_device", since=since).ask()
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


# --- e2ee


async def test_changed_devices_are_told_whatever_rooms_are_looked_at(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sync = Sliding(alice, {"lists": {}, "extensions": {"e2ee": ON}})
    answer = extension(await sync.next(), "e2ee")
    assert "device_lists" not in answer
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert answer["device_unused_fallback_key_types"] == []

    await bob.ok("PUT", f"/v3/devices/{bob.device_id}", {"display_name": "phone"})
    assert extension(await sync.next(), "e2ee")["device_lists"] == {"changed": [bob.user_id], "left": []}
    assert "device_lists" not in extension(await sync.next(), "e2ee")

    await leave(bob, room_id)
    assert extension(await sync.next(), "e2ee")["device_lists"] == {"changed": [], "left": [bob.user_id]}
    await join(bob, room_id)
    assert extension(await sync.next(), "e2ee")["device_lists"] == {"changed": [bob.user_id], "left": []}


async def test_a_taken_key_ends_the_wait(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    sync = asking(alice, "e2ee")
    await sync.next()
    await sync.next()
    sync.timeout = 30_000
    waiting = asyncio.ensure_future(sync.next())
    await asyncio.sleep(0.1)
    key = {"key": "wjLpTLRqbqBzLs63aYaEv2Boi6cFEbbM/sSRQ2oAKk4"}
    await alice.request("POST", "/v3/keys/upload", {"one_time_keys": {"curve25519:AAAAAQ": key["key"]}})
    assert "device_one_time_keys_count" in extension(await waiting, "e2ee")


# --- account data


def of_type(events: Any, name: str) -> list[Any]:
    """The contents of one type of data."""
    return [event["content"] for event in events if event["type"] == name]


async def test_account_data_is_sent_once_and_when_it_changes(alice: Client) -> None:
    room_id = await a_room(alice)
    await alice.ok("PUT", own(alice, "account_data/org.example"), {"a": 1})
    await alice.ok("PUT", own(alice, f"rooms/{room_id}/account_data/org.example"), {"b": 1})
    sync = asking(alice, "account_data")

    told = extension(await sync.next(), "account_data")
    assert of_type(told["global"], "org.example") == [{"a": 1}]
    assert len(of_type(told["global"], "m.push_rules")) == 1
    assert of_type(told["rooms"][room_id], "org.example") == [{"b": 1}]
    assert extension(await sync.next(), "account_data") == {}

    await alice.ok("PUT", own(alice, "account_data/org.example"), {"a": 2})
    await alice.ok("PUT", own(alice, f"rooms/{room_id}/account_data/org.example"), {"b": 2})
    told = extension(await sync.next(), "account_data")
    assert of_type(told["global"], "org.example") == [{"a": 2}]
    assert of_type(told["rooms"][room_id], "org.example") == [{"b": 2}]


async def test_account_data_of_a_room_comes_with_the_room(alice: Client) -> None:
    room_id = await a_room(alice)
    await alice.ok("PUT", own(alice, f"rooms/{room_id}/account_data/org.example"), {"b": 1})
    sync = asking(alice, "account_data")
    sync.body["lists"] = {}
    assert extension(await sync.next(), "account_data")["rooms"] == {}

    told = extension(await sync.next(lists={"all": a_list(1)}), "account_data")
    assert of_type(told["rooms"][room_id], "org.example") == [{"b": 1}]


@pytest.mark.parametrize("name", ["account_data", "receipts", "typing"])
async def test_extensions_are_of_the_lists_and_subscriptions_that_are_named(alice: Client, name: str) -> None:
    in_list, subscribed = await a_room(alice, name="a"), await a_room(alice)
    for room_id in (in_list, subscribed):
        await alice.ok("PUT", own(alice, f"rooms/{room_id}/account_data/org.example"), {})
        await read(alice, room_id, await send(alice, room_id, "x"))
        await alice.ok("PUT", f"/v3/rooms/{room_id}/typing/{quote(alice.user_id)}", {"typing": True, "timeout": 60_000})
    await send(alice, in_list, "the newest")
    body = {
        "lists": {"l": a_list(5, ranges=[[0, 0]])},
        "room_subscriptions": {subscribed: {"timeline_limit": 5, "required_state": []}},
    }

    async def told(**scope: Any) -> set[str]:
        wanted = {name: {**ON, **scope}}
        answer = await Sliding(alice, {**body, "conn_id": "x", "extensions": wanted}).next()
        return set(extension(answer, name)["rooms"])

    assert await told() == {in_list, subscribed}
    assert await told(lists=["*"], rooms=["*"]) == {in_list, subscribed}
    assert await told(lists=[]) == {subscribed}
    assert await told(rooms=[]) == {in_list}
    assert await told(lists=["other"], rooms=[subscribed, "!other:x"]) == {subscribed}
    assert await told(lists=["l"], rooms=["!other:x"]) == {in_list}


# --- receipts


async def test_receipts_of_what_is_shown_and_then_those_that_move(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    events = [await send(bob, room_id, str(number)) for number in range(3)]
    await read(bob, room_id, events[2])
    await read(alice, room_id, events[0], kind="m.read.private")
    sync = asking(alice, "receipts")

    event = extension(await sync.next(), "receipts")["rooms"][room_id]
    assert event["type"] == "m.receipt"
    assert {key: set(value) for key, value in event["content"].items()} == {
        events[2]: {"m.read"},
        events[0]: {"m.read.private"},
    }
    assert extension(await sync.next(), "receipts") == {}

    await read(alice, room_id, events[1])
    event = extension(await sync.next(), "receipts")["rooms"][room_id]
    assert list(event["content"][events[1]]["m.read"]) == [alice.user_id]
    await read(bob, room_id, await send(bob, room_id, "x"), kind="m.read.private")
    assert bob.user_id not in str(extension(await sync.next(), "receipts"))


async def test_receipts_wanted_later_come_for_what_was_shown(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(bob, room_id, "x")
    await read(bob, room_id, event_id)
    sync = Sliding(alice)
    await sync.next()

    answer = await sync.next(extensions={"receipts": ON})
    assert set(extension(answer, "receipts")["rooms"][room_id]["content"]) == {event_id}


# --- typing


async def test_who_types(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    path = f"/v3/rooms/{room_id}/typing/{quote(bob.user_id)}"
    sync = asking(alice, "typing")
    assert extension(await sync.next(), "typing") == {}
    sync.timeout = 30_000
    waiting = asyncio.ensure_future(sync.next())
    await asyncio.sleep(0.1)
    await bob.ok("PUT", path, {"typing": True, "timeout": 60_000})
    event = extension(await waiting, "typing")["rooms"][room_id]
    assert event == {"type": "m.typing", "content": {"user_ids": [bob.user_id]}}

    fresh = Sliding(alice, {**sync.body, "conn_id": "fresh"})
    assert extension(await fresh.next(), "typing")["rooms"][room_id] == event
    await bob.ok("PUT", path, {"typing": False})
    assert extension(await sync.next(), "typing")["rooms"][room_id]["content"] == {"user_ids": []}


# --- threads


async def test_which_threads_are_followed(alice: Client) -> None:
    room_id = await a_room(alice)
    roots = [await send(alice, room_id, str(number)) for number in range(3)]

    def path(root: str) -> str:
        return f"/unstable/io.element.msc4306/rooms/{room_id}/thread/{quote(root)}/subscription"

    name = "io.element.msc4308.thread_subscriptions"
    for root in roots[:2]:
        await alice.ok("PUT", path(root), {})
    sync = asking(alice, name)
    told = extension(await sync.next(), name)
    assert set(told["subscribed"][room_id]) == set(roots[:2])
    assert "prev_batch" not in told
    assert extension(await sync.next(), name) == {}

    await alice.ok("DELETE", path(roots[0]))
    await alice.ok("PUT", path(roots[2]), {})
    told = extension(await sync.next(), name)
    assert set(told["unsubscribed"][room_id]) == {roots[0]}
    assert set(told["subscribed"][room_id]) == {roots[2]}

    few = extension(await asking(alice, name, limit=1).next(), name)
    assert set(few["subscribed"][room_id]) == {roots[2]}
    older = await alice.get("/unstable/io.element.msc4308/thread_subscriptions", dir="b", from_=few["prev_batch"])
    assert set(older.body["unsubscribed"][room_id]) == {roots[0]}
    assert set(older.body["subscribed"][room_id]) == {roots[1]}
