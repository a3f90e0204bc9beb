"""Receipts, read markers and typing in a room."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from federation.protocol import edu
from federation.protocol.types import EventID, RoomID, UserID
from homeserver.services.receipts import receipt_events
from storage import receipts
from storage.log_entries import Entry
from storage.memberships import Membership
from storage.receipts import ReceiptBehind, ReceiptMoved
from tests.bare_rooms import BareRoom, a_bare_room
from tests.client import Answer, Client, Server, quote
from tests.homeserver.relating import react, refer, reply
from tests.homeserver.rooms import a_room as a_public_room
from tests.homeserver.syncs import joined, read, sync
from tests.rooms import send as say


async def a_room(server: Server, *members: Client) -> BareRoom:
    return await a_bare_room(server.application, *(member.user_id for member in members))


async def send(client: Client, room: BareRoom, event_id: str, kind: str = "m.read", body: Any = None) -> Answer:
    return await client.post(f"/v3/rooms/{quote(room.room_id)}/receipt/{kind}/{quote(event_id)}", body)


async def seen_by(server: Server, room: BareRoom, reader: Client) -> list[tuple[str, str, str, str]]:
    """What a first sync is told: (user, type, thread, event)."""
    async with server.application.database.read() as tx:
        found = await receipts.in_rooms(tx, [room.number], UserID(reader.user_id))
    return sorted((each.user_id, each.receipt_type, each.thread, each.event_id) for each in found)


def heard(server: Server, room: BareRoom, after: int) -> Sequence[ReceiptMoved]:
    changes = server.application.tail.in_room(room.number, after)
    return [change for _, change in changes if isinstance(change, ReceiptMoved)]


async def test_a_receipt_is_seen_by_the_room(server: Server, alice: Client, bob: Client) -> None:
    room = await a_room(server, alice, bob)
    event_id = await room.add_message(counts=(3, 1))
    before = server.application.tail.position

    assert (await send(alice, room, event_id)).status == 200

    (moved,) = heard(server, room, before)
    (event,) = receipt_events([moved])
    data = event["content"][event_id]["m.read"][alice.user_id]
    assert event["type"] == "m.receipt"
    assert data == {"ts": moved.ts}
    assert await seen_by(server, room, bob) == [(alice.user_id, "m.read", "", event_id)]
    assert await room.mark_of(alice.user_id) == (room.positions[event_id], 3, 1)


async def test_a_receipt_does_not_move_backwards(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    first, second = await room.add_message(), await room.add_message(counts=(2, 0))
    await send(alice, room, second)
    before = server.application.tail.position

    assert (await send(alice, room, first)).status == 200
    assert (await send(alice, room, second)).status == 200

    assert heard(server, room, before) == []
    assert await seen_by(server, room, alice) == [(alice.user_id, "m.read", "", second)]
    assert await room.mark_of(alice.user_id) == (room.positions[second], 2, 0)


async def test_receipts_sent_at_once_end_at_the_newest(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    events = [await room.add_message(counts=(n, 0)) for n in range(12)]

    answers = await asyncio.gather(*(send(alice, room, event_id) for event_id in reversed(events)))

    assert {answer.status for answer in answers} == {200}
    assert await seen_by(server, room, alice) == [(alice.user_id, "m.read", "", events[-1])]
    assert await room.mark_of(alice.user_id) == (room.positions[events[-1]], 11, 0)


async def test_an_older_receipt_in_the_same_batch_is_refused(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    first, second = await room.add_message(), await room.add_message()

    def moved(event_id: EventID) -> Entry:
        user_id, position = UserID(alice.user_id), room.positions[event_id]
        return Entry([ReceiptMoved(room.number, user_id, "m.read", "", event_id, position, 0, is_local=True)])

    log = server.application.log
    answers = await asyncio.gather(log.enqueue(moved(second)), log.enqueue(moved(first)), return_exceptions=True)

    assert [isinstance(answer, ReceiptBehind) for answer in answers] == [False, True]
    assert await seen_by(server, room, alice) == [(alice.user_id, "m.read", "", second)]


async def test_a_private_receipt_is_nobody_elses(server: Server, alice: Client, bob: Client) -> None:
    room = await a_room(server, alice, bob)
    event_id = await room.add_message(counts=(1, 0))
    before = server.application.tail.position

    await send(alice, room, event_id, "m.read.private")

    assert heard(server, room, before) == []
    assert [change.users for _, change in server.application.tail.for_user(UserID(alice.user_id), before)] == [
        (alice.user_id,)
    ]
    assert await seen_by(server, room, bob) == []
    assert await seen_by(server, room, alice) == [(alice.user_id, "m.read.private", "", event_id)]
    async with server.application.database.read() as tx:
        position = server.application.tail.position
        assert await receipts.changed_between(tx, [room.number], UserID(bob.user_id), before, position) == []
        assert len(await receipts.changed_between(tx, [room.number], UserID(alice.user_id), before, position)) == 1
    assert await room.mark_of(alice.user_id) == (room.positions[event_id], 1, 0)


async def test_the_further_of_two_receipts_counts(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    first, second = await room.add_message(counts=(1, 0)), await room.add_message(counts=(2, 0))

    await send(alice, room, second, "m.read.private")
    await send(alice, room, first)

    assert await room.mark_of(alice.user_id) == (room.positions[second], 2, 0)
    assert await seen_by(server, room, alice) == [
        (alice.user_id, "m.read", "", first),
        (alice.user_id, "m.read.private", "", second),
    ]


async def test_threads_have_receipts_of_their_own(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    root = await room.add_message()
    reply = await room.add_message(thread=root)

    assert (await send(alice, room, reply, body={"thread_id": root})).status == 200
    assert (await send(alice, room, root, body={"thread_id": "main"})).status == 200
    assert (await send(alice, room, root)).status == 200

    assert await seen_by(server, room, alice) == sorted(
        [
            (alice.user_id, "m.read", "", root),
            (alice.user_id, "m.read", root, reply),
            (alice.user_id, "m.read", "main", root),
        ]
    )
    async with server.application.database.read() as tx:
        events = receipt_events(await receipts.in_rooms(tx, [room.number], UserID(alice.user_id)))
    threads = [
        data.get("thread_id")
        for event in events
        for kinds in event["content"].values()
        for data in kinds["m.read"].values()
    ]
    assert sorted(threads, key=str) == sorted([None, "main", root], key=str)
    assert await room.mark_of(alice.user_id, root) == (room.positions[reply], 0, 0)


async def test_what_is_read_of_a_thread_by_its_root_alone_leaves_its_replies_unread(alice: Client, bob: Client) -> None:
    room_id = await a_public_room(alice, bob)
    for number in range(3):
        await say(alice, room_id, f"before {number}")
    root = await say(alice, room_id, "root")
    await read(bob, room_id, root, thread=root)
    replies = [await reply(alice, room_id, root) for _ in range(2)]

    assert await unread_in(bob, room_id, root) == 2
    await read(bob, room_id, replies[0], thread=root)
    assert await unread_in(bob, room_id, root) == 1


async def test_what_relates_to_a_reply_is_in_its_thread(alice: Client, bob: Client) -> None:
    room_id = await a_public_room(alice, bob)
    root, other = await say(alice, room_id, "root"), await say(alice, room_id, "other")
    reaction = await react(alice, room_id, await reply(alice, room_id, root))
    of_reaction = await refer(alice, room_id, reaction)
    path = f"/v3/rooms/{quote(room_id)}/receipt/m.read"

    for event_id, thread, status in (
        (reaction, other, 400),
        (await react(alice, room_id, root), root, 400),
        (reaction, root, 200),
        (of_reaction, root, 200),
    ):
        answer = await bob.post(f"{path}/{quote(event_id)}", {"thread_id": thread})
        assert answer.status == status, (event_id, answer.body)
    assert await unread_in(bob, room_id, root) == 0
    await reply(alice, room_id, root)
    assert await unread_in(bob, room_id, root) == 1


async def unread_in(client: Client, room_id: str, thread: str) -> int:
    """The unread notifications of a thread."""
    answer = await sync(client, filter={"room": {"timeline": {"unread_thread_notifications": True}}})
    counts = joined(answer, room_id).get("unread_thread_notifications", {})
    found: int = counts.get(thread, {}).get("notification_count", 0)
    return found


@pytest.mark.parametrize(
    "body", [{"thread_id": ""}, {"thread_id": 7}, {"thread_id": "$other"}, {"thread_id": "main\0"}, {"thread_id": []}]
)
async def test_a_thread_that_is_not_the_events_is_refused(server: Server, alice: Client, body: Any) -> None:
    room = await a_room(server, alice)
    event_id = await room.add_message()

    answer = await send(alice, room, event_id, body=body)

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_what_cannot_be_read_is_refused(server: Server, alice: Client, bob: Client) -> None:
    room, elsewhere = await a_room(server, alice), await a_room(server, alice)
    event_id, other = await room.add_message(), await elsewhere.add_message()

    refusals = [
        await send(alice, room, event_id, "m.other"),
        await send(alice, room, event_id, "m.fully_read", {"thread_id": "main"}),
        await send(alice, room, other),
        await send(alice, room, "$absent"),
        await send(alice, room, "absent"),
        await send(bob, room, event_id),
        await send(alice, room, event_id, body=[]),
    ]

    assert [(answer.status, answer.body["errcode"]) for answer in refusals] == [
        (400, "M_INVALID_PARAM"),
        (400, "M_INVALID_PARAM"),
        (404, "M_NOT_FOUND"),
        (404, "M_NOT_FOUND"),
        (404, "M_NOT_FOUND"),
        (403, "M_FORBIDDEN"),
        (400, "M_BAD_JSON"),
    ]


async def test_who_left_sends_no_receipt(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    event_id = await room.add_message()
    await room.add_member(alice.user_id, Membership.LEAVE)

    assert (await send(alice, room, event_id)).status == 403


# --- read markers


def fully_read(client: Client, room: BareRoom) -> str:
    return f"/v3/user/{quote(client.user_id)}/rooms/{quote(room.room_id)}/account_data/m.fully_read"


async def test_read_markers_move_together(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    first, second, third = [await room.add_message() for _ in range(3)]

    markers = {"m.fully_read": first, "m.read": second, "m.read.private": third}
    await alice.ok("POST", f"/v3/rooms/{quote(room.room_id)}/read_markers", markers)

    assert await alice.ok("GET", fully_read(alice, room)) == {"event_id": first}
    assert await seen_by(server, room, alice) == [
        (alice.user_id, "m.read", "", second),
        (alice.user_id, "m.read.private", "", third),
    ]


async def test_the_fully_read_marker_moves_back_only_when_asked(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    first, second = await room.add_message(), await room.add_message()

    for event_id, body, expected in (
        (second, {}, second),
        (first, {}, second),
        (first, {"com.beeper.allow_backward": True}, first),
    ):
        assert (await send(alice, room, event_id, "m.fully_read", body)).status == 200
        assert await alice.ok("GET", fully_read(alice, room)) == {"event_id": expected}


@pytest.mark.parametrize("markers", [{"m.fully_read": 7}, {"m.read": ["$x"]}, {"m.read.private": {}}])
async def test_malformed_markers_are_refused(server: Server, alice: Client, markers: Any) -> None:
    room = await a_room(server, alice)

    answer = await alice.post(f"/v3/rooms/{quote(room.room_id)}/read_markers", markers)

    assert (answer.status, answer.body["errcode"]) == (400, "M_BAD_JSON")


# --- from other servers


async def test_a_receipt_from_another_server_needs_its_user_in_the_room(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)
    await room.add_member("@carol:other.test")
    event_id = await room.add_message()
    service = server.application.user_data.receipts

    def receipt(user_id: str, event: str, kind: str = "m.read") -> edu.Receipt:
        return edu.Receipt(
            room_id=RoomID(room.room_id),
            receipt_type=kind,
            user_id=UserID(user_id),
            event_id=EventID(event),
            ts=5,
            thread_id=None,
        )

    await service.receive(receipt("@dora:other.test", event_id))
    await service.receive(receipt("@carol:other.test", event_id, "m.read.private"))
    assert await seen_by(server, room, alice) == []

    await service.receive(receipt("@carol:other.test", "$not-here-yet"))
    assert await seen_by(server, room, alice) == [("@carol:other.test", "m.read", "", "$not-here-yet")]
    await service.receive(receipt("@carol:other.test", event_id))
    assert await seen_by(server, room, alice) == [("@carol:other.test", "m.read", "", event_id)]
    assert await room.mark_of("@carol:other.test") is None


# --- typing and tags, which need a room


async def test_typing(server: Server, alice: Client, bob: Client) -> None:
    room = await a_room(server, alice)
    typing, typists = f"/v3/rooms/{quote(room.room_id)}/typing", server.application.user_data.typists
    mine = f"{typing}/{quote(alice.user_id)}"

    await alice.ok("PUT", mine, {"typing": True, "timeout": 30_000})
    assert typists.users_in(room.number) == [alice.user_id]
    await alice.ok("PUT", mine, {"typing": False})
    assert typists.users_in(room.number) == []

    refusals = [
        await alice.put(f"{typing}/{quote(bob.user_id)}", {"typing": True}),
        await bob.put(f"{typing}/{quote(bob.user_id)}", {"typing": True}),
        await alice.put(mine, {}),
        await alice.put(mine, {"typing": "yes"}),
        await alice.put(mine, {"typing": True, "timeout": "soon"}),
        await alice.put(mine, {"typing": True, "timeout": 1.5}),
    ]
    assert [(answer.status, answer.body["errcode"]) for answer in refusals] == [
        (403, "M_FORBIDDEN"),
        (403, "M_FORBIDDEN"),
        (400, "M_MISSING_PARAM"),
        (400, "M_BAD_JSON"),
        (400, "M_BAD_JSON"),
        (400, "M_BAD_JSON"),
    ]
    assert typists.users_in(room.number) == []


def tags(client: Client, room: BareRoom, tag: str = "") -> str:
    path = f"/v3/user/{quote(client.user_id)}/rooms/{quote(room.room_id)}/tags"
    return f"{path}/{quote(tag)}" if tag else path


@pytest.mark.parametrize(("order", "kept"), [("0.25", 0.25), ("1", 1), (0, 0), (0.5, 0.5)])
async def test_a_tags_order_is_a_number_also_where_it_is_sent_as_a_string(
    alice: Client, order: Any, kept: float
) -> None:
    path = f"/v3/user/{quote(alice.user_id)}/rooms/{quote(await a_public_room(alice))}/tags"

    await alice.ok("PUT", f"{path}/u.x", {"order": order})

    assert await alice.ok("GET", path) == {"tags": {"u.x": {"order": kept}}}


@pytest.mark.parametrize("order", ["", "high", "1.5", "nan", "0" * 200, -1, True, [], {}])
async def test_what_is_no_order_is_refused(alice: Client, order: Any) -> None:
    path = f"/v3/user/{quote(alice.user_id)}/rooms/{quote(await a_public_room(alice))}/tags"

    answer = await alice.put(f"{path}/u.x", {"order": order})

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_tags(server: Server, alice: Client, bob: Client) -> None:
    room = await a_room(server, alice)
    assert await alice.ok("GET", tags(alice, room)) == {"tags": {}}

    await alice.ok("PUT", tags(alice, room, "m.favourite"), {"order": 0.25})
    await alice.ok("PUT", tags(alice, room, "u.Work"))
    before = server.application.tail.position
    await alice.ok("DELETE", tags(alice, room, "u.absent"))
    assert server.application.tail.for_user(UserID(alice.user_id), before) == ()

    expected = {"tags": {"m.favourite": {"order": 0.25}, "u.Work": {}}}
    assert await alice.ok("GET", tags(alice, room)) == expected
    path = f"/v3/user/{quote(alice.user_id)}/rooms/{quote(room.room_id)}/account_data/m.tag"
    assert await alice.ok("GET", path) == expected
    await alice.ok("DELETE", tags(alice, room, "m.favourite"))
    assert await alice.ok("GET", tags(alice, room)) == {"tags": {"u.Work": {}}}

    for answer, status in (
        (await alice.put(tags(alice, room, "x"), {"order": 1.5}), 400),
        (await alice.put(tags(alice, room, "x"), {"order": True}), 400),
        (await alice.put(tags(alice, room, "x" * 256)), 400),
        (await bob.put(tags(alice, room, "x")), 403),
        (await bob.put(tags(bob, room, "x")), 403),
    ):
        assert answer.status == status


async def test_tags_set_at_once_are_all_kept(server: Server, alice: Client) -> None:
    room = await a_room(server, alice)

    await asyncio.gather(*(alice.ok("PUT", tags(alice, room, f"u.{n}")) for n in range(20)))

    assert len((await alice.ok("GET", tags(alice, room)))["tags"]) == 20


async def test_data_of_a_room(server: Server, alice: Client) -> None:
    room, other = await a_room(server, alice), await a_room(server, alice)
    path = f"/v3/user/{quote(alice.user_id)}/rooms/{quote(room.room_id)}/account_data/org.example"

    before = server.application.tail.position
    await alice.ok("PUT", path, {"a": 1})

    assert await alice.ok("GET", path) == {"a": 1}
    assert (await alice.get(path.replace(quote(room.room_id), quote(other.room_id)))).status == 404
    ((_, change),) = server.application.tail.for_user(UserID(alice.user_id), before)
    assert orjson.loads(change.client_json) == {"type": "org.example", "content": {"a": 1}}  # type: ignore[attr-defined] # account data
    assert (await alice.put(path.replace("org.example", "m.fully_read"), {})).status == 405
