"""Relations of events that other servers made: in whatever order they come, pushed, fetched or redacted before."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import JsonObject
from tests.client import Client, quote
from tests.federation.answering_peer import AnsweringPeer, answering_peer
from tests.federation.remote_room import joined_room
from tests.federation.servers import Pair
from tests.homeserver.relating import (
    bundle,
    bundle_of,
    bundles,
    children,
    edit,
    react,
    refer,
    relates_to,
    reply,
    threads,
)
from tests.homeserver.rooms import a_room, history, redact
from tests.rooms import send


@pytest_asyncio.fixture
async def alice(pair: Pair) -> Client:
    return await pair.near.register("alice")


@pytest_asyncio.fixture
async def peer(pair: Pair) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(pair.near, pair.authority) as peer:
        yield peer


def message(**content: Any) -> JsonObject:
    return {"msgtype": "m.text", "body": "x", **content}


async def join(client: Client, room_id: str, via: str) -> None:
    answer = await client.request("POST", f"/v3/join/{quote(room_id)}", {}, params=[("via", via)])
    assert answer.status == 200, answer.body


async def test_events_of_another_server_relate_to_ours_and_theirs(alice: Client, peer: AnsweringPeer) -> None:
    room = await joined_room(alice, peer)
    root = await send(alice, room.room_id, "root")
    theirs = room.add(content=message(**relates_to("m.thread", root)))
    edited = room.add(content=message(**{"m.new_content": {}}, **relates_to("m.replace", room.id_of(theirs))))
    referring = room.add(content=message(**relates_to("m.reference", room.id_of(theirs))))
    await room.push([theirs, edited, referring])

    thread = (await bundle(alice, room.room_id, root))["m.thread"]

    assert thread["latest_event"]["event_id"] == room.id_of(theirs)
    assert bundle_of(thread["latest_event"])["m.replace"]["event_id"] == room.id_of(edited)
    assert await children(alice, room.room_id, room.id_of(theirs)) == [room.id_of(referring), room.id_of(edited)]


async def test_a_relation_may_come_before_what_it_relates_to(alice: Client, peer: AnsweringPeer) -> None:
    room = await joined_room(alice, peer)
    parent = room.make(content=message())
    parent_id = room.id_of(parent)
    edited = room.make(content=message(**{"m.new_content": {}}, **relates_to("m.replace", parent_id)))
    answer = room.make(content=message(**relates_to("m.thread", parent_id)))
    await room.push([edited, answer])
    path = f"/v1/rooms/{quote(room.room_id)}/relations/{quote(parent_id)}"
    assert (await alice.get(path)).status == 404
    assert await threads(alice, room.room_id) == []

    await room.push([parent])

    found = await bundle(alice, room.room_id, parent_id)
    assert found["m.replace"]["event_id"] == room.id_of(edited)
    assert found["m.thread"]["latest_event"]["event_id"] == room.id_of(answer)
    assert set(await children(alice, room.room_id, parent_id)) == {room.id_of(edited), room.id_of(answer)}
    assert [root["event_id"] for root in await threads(alice, room.room_id)] == [parent_id]


async def test_a_relation_that_comes_after_its_redaction_counts_for_nothing(alice: Client, peer: AnsweringPeer) -> None:
    room = await joined_room(alice, peer)
    root = await send(alice, room.room_id, "root")
    answer = room.make(content=message(**relates_to("m.thread", root)))
    await room.push([room.make("m.room.redaction", {"redacts": room.id_of(answer)})])

    await room.push([answer])

    assert await bundle(alice, room.room_id, root) == {}
    assert await children(alice, room.room_id, root) == []
    assert await threads(alice, room.room_id) == []


async def test_a_redaction_that_is_not_shown_yet_is_in_no_thread(alice: Client, peer: AnsweringPeer) -> None:
    room = await joined_room(alice, peer)
    root = await send(alice, room.room_id, "root")
    later = room.make(content=message())
    redacts = {"redacts": room.id_of(later)}
    await room.push([room.make("m.room.redaction", {**redacts, **relates_to("m.thread", root)})])

    assert await bundle(alice, room.room_id, root) == {}
    assert await children(alice, room.room_id, root) == []
    assert await threads(alice, room.room_id) == []


async def test_what_is_not_accepted_relates_to_nothing(alice: Client, peer: AnsweringPeer) -> None:
    room = await joined_room(alice, peer)
    root = await send(alice, room.room_id, "root")
    stranger = room.make(content=message(**relates_to("m.thread", root)), sender=f"@stranger:{peer.name}")
    await room.push([stranger])

    assert await bundle(alice, room.room_id, root) == {}
    assert await children(alice, room.room_id, root) == []


@pytest.mark.parametrize("version", ["1", "11", "12"])
async def test_fetched_history_brings_its_relations(pair: Pair, alice: Client, version: str) -> None:
    bob = await pair.far.register("bob")
    room_id = await a_room(alice, room_version=version)
    roots = [await send(alice, room_id, f"root {number}") for number in range(6)]
    for root in roots:
        last = await reply(alice, room_id, root)
        await edit(alice, room_id, last, "edited")
        await redact(alice, room_id, await edit(alice, room_id, root, "redacted"))
        await refer(alice, room_id, root)
        await redact(alice, room_id, await reply(alice, room_id, root))
        await react(alice, room_id, root)
    path = f"/v3/rooms/{quote(room_id)}/state/m.room.power_levels"  # which is here before it gets its place
    levels = await alice.ok("GET", path)
    await alice.ok("PUT", path, {**levels, **relates_to("m.reference", roots[-1])})
    await send(alice, room_id, "the last")
    await join(bob, room_id, pair.near.name)
    await history(bob, room_id, limit=9)

    assert _without_age(await bundles(bob, room_id)) == _without_age(await bundles(alice, room_id), alice=alice)
    told = [[each["event_id"] for each in await threads(client, room_id)] for client in (alice, bob)]
    assert told[0] == told[1]
    assert len(told[0]) == 6
    for root in told[0]:
        assert await children(bob, room_id, root) == await children(alice, room_id, root)


def _without_age(found: Any, alice: Client | None = None) -> Any:
    """Bundles without what differs between readers and moments: `alice` took part in all threads."""
    if isinstance(found, dict):
        if alice is not None and "current_user_participated" in found:
            assert found["current_user_participated"]
            found = {**found, "current_user_participated": False}
        hidden = ("age", "transaction_id", "membership")
        return {key: _without_age(value, alice) for key, value in found.items() if key not in hidden}
    return [_without_age(each, alice) for each in found] if isinstance(found, list) else found
