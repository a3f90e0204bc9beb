"""What a process remembers of rooms for all who look at them is what they are, and shows nobody what is not theirs."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.rooms import current_rooms
from tests.client import Client, Server
from tests.homeserver.rooms import a_room, act, leave, redact, set_visibility
from tests.homeserver.sliding import Sliding, a_list, room, state, timeline
from tests.homeserver.syncs import ignore
from tests.rooms import join, put_state, send, send_event
from tests.servers import running

TOPIC = ("m.room.topic", "")


@pytest_asyncio.fixture
async def carol(server: Server) -> Client:
    """A third user."""
    return await server.register("carol")


async def first(client: Client, *, limit: int = 3) -> Any:
    """What a client is told that begins."""
    wanted = [["m.room.topic", ""], ["m.room.name", ""], ["m.room.member", "$ME"], ["m.room.member", "$LAZY"]]
    return await Sliding(client, {"lists": {"all": a_list(limit, wanted)}}).next()


async def last(client: Client, room_id: str) -> Any:
    """The newest event that it is told."""
    return room(await first(client), room_id)["timeline"][-1]


async def test_a_message_and_its_redaction_are_seen_at_once(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    assert (await last(bob, room_id))["type"] == "m.room.member"
    for text in ("one", "two"):
        event_id = await send(alice, room_id, text)
        for reader in (alice, bob):
            assert (await last(reader, room_id))["content"]["body"] == text
        redaction = await redact(alice, room_id, event_id)
        for reader in (alice, bob):
            answer = await first(reader)
            assert timeline(answer, room_id)[-2:] == [event_id, redaction]
            assert room(answer, room_id)["timeline"][-2]["content"] == {}


@pytest.mark.one_process("looks into its memory")
async def test_an_earlier_redaction_is_seen_once_the_event_has_left_the_memory_of_the_log(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "one")
    assert (await last(bob, room_id))["content"]["body"] == "one"
    monkeypatch.setattr("storage.tail.WINDOW", 0)
    await put_state(alice, await a_room(alice), "m.room.topic", {"topic": "elsewhere"})
    assert server.application.tail.floor == server.application.tail.position

    await redact(alice, room_id, event_id)

    assert room(await first(bob), room_id)["timeline"][-2]["content"] == {}


async def test_redacted_state_is_neither_told_nor_quoted(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    bad = await put_state(alice, room_id, "m.room.topic", {"topic": "bad"})
    good = await put_state(alice, room_id, "m.room.topic", {"topic": "good"})
    assert (await last(bob, room_id))["unsigned"]["prev_content"] == {"topic": "bad"}
    assert state(await first(bob), room_id)[TOPIC]["event_id"] == good

    await redact(alice, room_id, bad)
    told = room(await first(bob), room_id)["timeline"]
    assert [event["unsigned"].get("prev_content") for event in told if event["event_id"] == good] == [{}]

    await redact(alice, room_id, good)
    assert state(await first(bob), room_id)[TOPIC]["content"] == {}


async def test_state_and_members_are_followed(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await a_room(alice, bob, preset="public_chat")
    assert TOPIC not in state(await first(bob), room_id)
    for topic in ("one", "two"):
        event_id = await put_state(alice, room_id, "m.room.topic", {"topic": topic})
        for reader in (alice, bob):
            assert state(await first(reader), room_id)[TOPIC]["event_id"] == event_id

    await join(carol, room_id)
    answer = await first(bob)
    assert room(answer, room_id)["joined_count"] == 3
    assert state(answer, room_id)["m.room.member", carol.user_id]["content"]["membership"] == "join"

    renamed = await put_state(
        carol, room_id, "m.room.member", {"membership": "join", "displayname": "C"}, state_key=carol.user_id
    )
    for reader in (bob, carol):
        told = state(await first(reader), room_id)["m.room.member", carol.user_id]
        assert (told["event_id"], told["content"]["displayname"]) == (renamed, "C")

    await leave(carol, room_id)
    assert room(await first(bob), room_id)["joined_count"] == 2


async def test_each_reader_has_their_own_unsigned(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    path = f"/v3/rooms/{room_id}/send/m.room.message/mine"
    await alice.ok("PUT", path, {"msgtype": "m.text", "body": "x"})

    for _ in range(2):
        assert (await last(alice, room_id))["unsigned"]["transaction_id"] == "mine"
        own = await last(bob, room_id)
        assert "transaction_id" not in own["unsigned"]
        assert own["unsigned"]["membership"] == "join"


async def test_what_relates_to_the_newest_event_is_bundled_for_who_may_know(
    alice: Client, bob: Client, carol: Client
) -> None:
    room_id = await a_room(alice, bob, carol)
    root = await send(alice, room_id, "root")
    assert "m.relations" not in (await last(bob, room_id))["unsigned"]
    await ignore(carol, bob)
    relation = {"rel_type": "m.thread", "event_id": root}
    await send_event(bob, room_id, "m.room.message", {"msgtype": "m.text", "body": "r", "m.relates_to": relation})

    def bundled(answer: Any) -> Any:
        (event,) = [event for event in room(answer, room_id)["timeline"] if event["event_id"] == root]
        return event["unsigned"].get("m.relations")

    assert bundled(await first(alice))["m.thread"]["count"] == 1
    assert bundled(await first(carol)) is None
    assert bob.user_id not in [event["sender"] for event in room(await first(carol), room_id)["timeline"][1:]]


async def test_who_came_late_is_not_shown_what_was_before(alice: Client, bob: Client, carol: Client) -> None:
    room_id = await a_room(alice, bob, preset="public_chat")
    await set_visibility(alice, room_id, "joined")
    await send(alice, room_id, "secret")
    assert (await last(bob, room_id))["content"]["body"] == "secret"

    await join(carol, room_id)
    seen = room(await first(carol, limit=10), room_id)["timeline"]

    assert "secret" not in str(seen)
    assert seen[-1]["state_key"] == carol.user_id
    own = room(await first(bob, limit=2), room_id)["timeline"]
    assert [event["content"].get("body") for event in own] == ["secret", None]


async def test_who_was_removed_is_shown_nothing_later(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    assert (await last(bob, room_id))["type"] == "m.room.member"
    await act(alice, "kick", room_id, bob)
    await send(alice, room_id, "secret")
    assert (await last(alice, room_id))["content"]["body"] == "secret"

    told = room(await first(bob), room_id)

    assert "secret" not in str(told)
    await act(alice, "invite", room_id, bob)
    assert "secret" not in str(room(await first(bob), room_id))


async def test_a_room_with_much_state_is_read_entry_by_entry(
    alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_rooms, "MAX_ENTRIES", 5)
    room_id = await a_room(alice, bob, name="Large")
    for topic in ("one", "two"):
        event_id = await put_state(alice, room_id, "m.room.topic", {"topic": topic})
        told = state(await first(bob), room_id)
        assert told[TOPIC]["event_id"] == event_id
        assert told["m.room.name", ""]["content"]["name"] == "Large"


async def test_longer_timelines_than_are_remembered_are_whole(
    alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_rooms, "MAX_NEWEST", 4)
    monkeypatch.setattr(current_rooms, "SPARE", 0)
    room_id = await a_room(alice, bob)
    sent = [await send(alice, room_id, str(number)) for number in range(8)]
    for limit in (2, 6, 3, 6):
        assert timeline(await first(bob, limit=limit), room_id) == sent[-limit:]
        sent.append(await send(bob, room_id, "more"))


@pytest_asyncio.fixture
async def two(conninfo: str) -> AsyncIterator[tuple[Client, Client, Client, Server]]:
    """Two users at one process, and one of them at another process, too."""
    async with running(conninfo) as one, running(conninfo) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        yield alice, bob, dataclasses.replace(bob, base_url=other.anonymous.base_url), other


@pytest.mark.one_process("each of its two servers is one")
async def test_another_process_hears_of_all_that_changes(two: tuple[Client, Client, Client, Server]) -> None:
    alice, bob, elsewhere, other = two
    room_id = await a_room(alice, bob)

    async def alike() -> Any:
        await other.application.tail.catch_up()
        here, there = room(await first(bob), room_id), room(await first(elsewhere), room_id)
        for told in (here, there):
            for event in (*told["timeline"], *told["required_state"]):
                del event["unsigned"]["age"]
            told["required_state"].sort(key=lambda event: str(event["event_id"]))
        assert here == there
        return there

    await alike()
    event_id = await send(alice, room_id, "one")
    assert (await alike())["timeline"][-1]["event_id"] == event_id
    await redact(alice, room_id, event_id)
    assert (await alike())["timeline"][-2]["content"] == {}
    for topic in ("one", "two"):
        await put_state(alice, room_id, "m.room.topic", {"topic": topic})
        told = await alike()
        assert [e["content"] for e in told["required_state"] if e["type"] == "m.room.topic"] == [{"topic": topic}]
    await put_state(
        alice, room_id, "m.room.member", {"membership": "join", "displayname": "A"}, state_key=alice.user_id
    )
    await alike()
    await leave(alice, room_id)
    assert (await alike())["joined_count"] == 1
