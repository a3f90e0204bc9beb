"""Two whole servers with users in one room: what clients of the one do reaches clients of the other, once."""

from typing import Any

import pytest_asyncio

from tests.client import Client, unique
from tests.federation.servers import Pair
from tests.homeserver.rooms import a_room
from tests.rooms import send


class Shared:
    """A user of each server, and a room that both are in."""

    def __init__(self, alice: Client, bob: Client, room_id: str) -> None:
        self.alice = alice
        self.bob = bob
        self.room_id = room_id


@pytest_asyncio.fixture
async def shared(pair: Pair) -> Shared:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room_id = await a_room(alice)
    await bob.ok("POST", f"/v3/join/{room_id}?server_name={pair.near.name}")
    return Shared(alice, bob, room_id)


class Syncs:
    """A client's syncs, one after the other."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.since = ""
        self.answers: list[Any] = []

    async def until(self, find: Any, tries: int = 20) -> Any:
        """What `find` sees in all syncs together, once it sees something."""
        for _ in range(tries):
            query = {"timeout": "1000", **({"since": self.since} if self.since else {})}
            answer = await self.client.ok("GET", "/v3/sync", params=query)
            self.since = answer["next_batch"]
            self.answers.append(answer)
            found = find(self.answers)
            if found:
                return found
        raise AssertionError(f"it did not come: {self.answers[-1]}")


def texts_in(room_id: str, answers: list[Any]) -> list[str]:
    return [
        event["content"]["body"]
        for answer in answers
        for event in answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("timeline", {}).get("events", [])
        if event["type"] == "m.room.message"
    ]


def ephemeral_in(room_id: str, event_type: str, answers: list[Any]) -> list[Any]:
    return [
        event["content"]
        for answer in answers
        for event in answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("ephemeral", {}).get("events", [])
        if event["type"] == event_type
    ]


async def test_messages_reach_the_other_side_both_ways(shared: Shared) -> None:
    alice, bob = Syncs(shared.alice), Syncs(shared.bob)
    sent = []
    for number in range(5):
        for client in (shared.alice, shared.bob):
            text = f"{client.user_id} {number}"
            sent.append(text)
            await send(client, shared.room_id, text)

    for reader in (alice, bob):
        await reader.until(lambda answers: set(sent) <= set(texts_in(shared.room_id, answers)))
        seen = texts_in(shared.room_id, reader.answers)
        assert sorted(seen) == sorted(sent), "each arrives once"
        for client in (shared.alice, shared.bob):
            of_one = [text for text in seen if text.startswith(client.user_id)]
            assert of_one == sorted(of_one), "in order"


async def test_typing_and_receipts_reach_the_other_side(shared: Shared) -> None:
    bob = Syncs(shared.bob)
    event_id = await send(shared.alice, shared.room_id, "read me")
    await bob.until(lambda answers: texts_in(shared.room_id, answers))

    await shared.alice.ok("PUT", f"/v3/rooms/{shared.room_id}/typing/{shared.alice.user_id}", _TYPES)
    (typing, *_) = await bob.until(
        lambda answers: [x for x in ephemeral_in(shared.room_id, "m.typing", answers) if x["user_ids"]]
    )
    assert typing["user_ids"] == [shared.alice.user_id]

    alice = Syncs(shared.alice)
    await alice.until(lambda answers: answers)
    await shared.bob.ok("POST", f"/v3/rooms/{shared.room_id}/receipt/m.read.private/{event_id}", {})
    await shared.bob.ok("POST", f"/v3/rooms/{shared.room_id}/receipt/m.read/{event_id}", {"thread_id": "main"})
    found = await alice.until(
        lambda answers: [
            receipt[event_id]
            for receipt in ephemeral_in(shared.room_id, "m.receipt", answers)
            if _is_by(receipt, event_id, shared.bob)
        ]
    )
    assert found[0]["m.read"][shared.bob.user_id]["thread_id"] == "main"
    assert "m.read.private" not in found[0]


async def test_to_device_messages_reach_the_other_side_once(shared: Shared) -> None:
    body = {"messages": {shared.bob.user_id: {shared.bob.device_id: {"secret": 1}}}}
    path = f"/v3/sendToDevice/m.test/{unique('txn')}"
    await shared.alice.ok("PUT", path, body)
    await shared.alice.ok("PUT", path, body)  # a repeat
    await shared.alice.ok("PUT", f"/v3/sendToDevice/m.last/{unique('txn')}", body)

    bob = Syncs(shared.bob)
    await bob.until(lambda answers: any(event["type"] == "m.last" for event in _to_device(answers)))

    assert [(event["type"], event["sender"]) for event in _to_device(bob.answers)] == [
        ("m.test", shared.alice.user_id),
        ("m.last", shared.alice.user_id),
    ]


async def test_who_is_kicked_from_afar_learns_of_it(shared: Shared) -> None:
    bob = Syncs(shared.bob)
    await bob.until(lambda answers: answers)
    await shared.alice.ok("POST", f"/v3/rooms/{shared.room_id}/kick", {"user_id": shared.bob.user_id})

    await bob.until(
        lambda answers: any(shared.room_id in answer.get("rooms", {}).get("leave", {}) for answer in answers)
    )


_TYPES = {"typing": True, "timeout": 20_000}


def _to_device(answers: list[Any]) -> list[Any]:
    return [event for answer in answers for event in answer.get("to_device", {}).get("events", [])]


def _is_by(receipt: Any, event_id: str, client: Client) -> bool:
    return client.user_id in receipt.get(event_id, {}).get("m.read", {})
