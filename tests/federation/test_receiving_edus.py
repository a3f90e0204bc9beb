"""What other servers say of their users besides events: typing, receipts, presence, to-device messages."""

from typing import Any

import pytest

from federation.inbound import edus
from homeserver.services import inbox_limits
from storage.log_entries import Conflict
from tests.client import Client, Server, unique
from tests.federation.peer import Peer, now_ms
from tests.federation.remote_room import RemoteRoom, join_room, joined_room, push, transaction
from tests.homeserver.syncs import joined, sync
from tests.rooms import put_state, send


def typing(room: RemoteRoom, user_id: str, *, is_typing: bool = True) -> Any:
    return {"edu_type": "m.typing", "content": {"room_id": room.room_id, "user_id": user_id, "typing": is_typing}}


def receipt(room: RemoteRoom, user_id: str, event_id: str) -> Any:
    data = {"data": {"ts": now_ms()}, "event_ids": [event_id]}
    return {"edu_type": "m.receipt", "content": {room.room_id: {"m.read": {user_id: data}}}}


def presence(user_id: str) -> Any:
    update = {"user_id": user_id, "presence": "online", "last_active_ago": 10, "status_msg": "here"}
    return {"edu_type": "m.presence", "content": {"push": [update]}}


def to_device(sender: str, user_id: str, device_id: str, message_id: str = "1", **content: Any) -> Any:
    messages = {user_id: {device_id: content}}
    body = {"sender": sender, "type": "m.test", "message_id": message_id, "messages": messages}
    return {"edu_type": "m.direct_to_device", "content": body}


async def typists(client: Client, room: RemoteRoom) -> Any:
    events = joined(await sync(client), room.room_id).get("ephemeral", {}).get("events", [])
    return [user_id for event in events if event["type"] == "m.typing" for user_id in event["content"]["user_ids"]]


async def readers(client: Client, room: RemoteRoom, event_id: str) -> Any:
    events = joined(await sync(client), room.room_id).get("ephemeral", {}).get("events", [])
    found = [event["content"].get(event_id, {}) for event in events if event["type"] == "m.receipt"]
    return [user_id for each in found for user_id in each.get("m.read", {})]


async def inbox(client: Client) -> Any:
    return [event["content"] for event in (await sync(client)).get("to_device", {}).get("events", [])]


async def test_a_user_of_another_server_types(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await push(peer, [], [typing(room, room.user_id)])
    assert await typists(alice, room) == [room.user_id]

    await push(peer, [], [typing(room, room.user_id, is_typing=False)])
    assert await typists(alice, room) == []


async def test_a_user_of_another_server_has_read(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")
    await push(peer, [], [receipt(room, room.user_id, event_id)])

    assert room.user_id in await readers(alice, room, event_id)


async def test_only_read_receipts_come_from_other_servers(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")
    edu = receipt(room, room.user_id, event_id)
    (by_type,) = edu["content"].values()
    of_user = by_type.pop("m.read")
    by_type.update({"m.read.private": of_user, "m.fully_read": of_user, "org.example.seen": of_user})
    await push(peer, [], [edu])

    events = joined(await sync(alice), room.room_id).get("ephemeral", {}).get("events", [])
    assert not [event for event in events if event["type"] == "m.receipt"]


async def test_a_thread_that_is_made_up_has_no_receipts(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")

    def in_thread(thread: str) -> Any:
        edu = receipt(room, room.user_id, event_id)
        edu["content"][room.room_id]["m.read"][room.user_id]["data"]["thread_id"] = thread
        return edu

    await push(peer, [], [in_thread("$" + f"{number}".rjust(43, "t")) for number in range(5)])
    assert await readers(alice, room, event_id) == []

    await push(peer, [], [in_thread(event_id)])
    assert await readers(alice, room, event_id) == [room.user_id]


@pytest.mark.one_process("a limit is lowered here")
async def test_of_receipts_without_end_some_are_looked_at(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edus, "MAX_RECEIPTS", 3)
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")
    late = receipt(room, room.user_id, event_id)
    receipts: dict[str, Any] = {peer.user(f"nobody{number}"): {} for number in range(3)}
    many = {"edu_type": "m.receipt", "content": {room.room_id: {"m.read": receipts}}}
    for user_id in receipts:
        receipts[user_id] = receipt(room, user_id, event_id)["content"][room.room_id]["m.read"][user_id]

    await push(peer, [], [many, late])
    assert room.user_id not in await readers(alice, room, event_id)

    await push(peer, [], [late])
    assert room.user_id in await readers(alice, room, event_id)


async def test_nobody_speaks_for_users_of_other_servers(server: Server, alice: Client, bob: Client, peer: Peer) -> None:
    room, other = await joined_room(alice, peer), await Peer(server).trust()
    await join_room(other, room.room_id)
    event_id = await send(alice, room.room_id, "read this")
    for user_id in (alice.user_id, other.user()):
        message = to_device(user_id, bob.user_id, "*", forged=True)
        await push(peer, [], [typing(room, user_id), receipt(room, user_id, event_id), message, presence(user_id)])

    assert await typists(alice, room) == []
    assert other.user() not in await readers(alice, room, event_id)
    assert await inbox(bob) == []


async def test_who_is_not_in_the_room_is_not_shown(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")
    stranger = peer.user("stranger")
    await push(peer, [], [typing(room, stranger), receipt(room, stranger, event_id)])

    assert await typists(alice, room) == []
    assert stranger not in await readers(alice, room, event_id)


async def test_who_is_shut_out_is_not_shown(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event_id = await send(alice, room.room_id, "read this")
    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [peer.name]})
    await push(peer, [], [typing(room, room.user_id), receipt(room, room.user_id, event_id)])

    assert await typists(alice, room) == []
    assert room.user_id not in await readers(alice, room, event_id)


async def test_presence_of_who_shares_a_room_is_known(server: Server, alice: Client, peer: Peer) -> None:
    await joined_room(alice, peer)
    await push(peer, [], [presence(peer.user()), presence(peer.user("stranger"))])

    events = (await sync(alice)).get("presence", {}).get("events", [])
    assert {event["sender"]: event["content"].get("status_msg") for event in events}.get(peer.user()) == "here"
    board = server.application.user_data.presence._board
    assert board.find(peer.user()) is not None
    assert board.find(peer.user("stranger")) is None


# --- to-device messages


async def test_a_message_reaches_a_device_once(server: Server, alice: Client, peer: Peer) -> None:
    message = to_device(peer.user(), alice.user_id, alice.device_id, text="hello")
    for _ in range(3):
        await push(peer, [], [message, message])

    assert await inbox(alice) == [{"text": "hello"}]


async def test_a_message_that_collides_with_others_is_asked_for_again(server: Server, peer: Peer) -> None:
    async def collide(_unit: object) -> None:
        raise Conflict("Others change the same at this moment, try again")

    application: Any = server.application
    kinds = ("typing", "presence", "receipt", "to_device", "device_list", "signing_keys")
    receivers = edus.EDUReceivers(**dict.fromkeys(kinds, collide))
    units = edus.EDUs(database=application.database, receiver=application, doors=application, receivers=receivers)
    with pytest.raises(Conflict):
        await units.receive_all(peer.name, [to_device(peer.user(), "@a:hearth.test", "D")])


async def test_messages_arrive_in_order(server: Server, alice: Client, peer: Peer) -> None:
    edus = [to_device(peer.user(), alice.user_id, "*", str(number), number=number) for number in range(20)]
    await push(peer, [], edus)

    assert await inbox(alice) == [{"number": number} for number in range(20)]


async def test_messages_of_two_servers_may_have_the_same_id(server: Server, alice: Client, peer: Peer) -> None:
    other = await Peer(server).trust()
    for each in (peer, other):
        await push(each, [], [to_device(each.user(), alice.user_id, "*", "same", by=each.name)])

    assert await inbox(alice) == [{"by": peer.name}, {"by": other.name}]


async def test_a_message_for_nobody_here_is_dropped(server: Server, alice: Client, peer: Peer) -> None:
    edus = [
        to_device(peer.user(), "@alice:elsewhere.test", "*", "1"),
        to_device(peer.user(), "@nobody:hearth.test", "*", "2"),
        to_device(peer.user(), alice.user_id, "UNKNOWN", "3"),
        to_device(peer.user(), alice.user_id, "*", "4", text="hello"),
    ]
    await push(peer, [], edus)

    assert await inbox(alice) == [{"text": "hello"}]


@pytest.mark.one_process("a limit is lowered here")
async def test_of_a_server_that_floods_an_inbox_the_newest_messages_are_kept(
    server: Server, alice: Client, bob: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_limits, "LOOK_BYTES", 0)
    monkeypatch.setattr(inbox_limits, "MAX_MESSAGES", 3)
    other, phone = await Peer(server).trust(), await alice.login()
    for number in range(5):
        body = {"messages": {alice.user_id: {alice.device_id: {"bob": number}}}}
        await bob.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", body)
        await push(peer, [], [to_device(peer.user(), alice.user_id, alice.device_id, str(number), flood=number)])
    await push(peer, [], [to_device(peer.user("else"), alice.user_id, "*", "last", flood="last")])
    await push(other, [], [to_device(other.user(), alice.user_id, alice.device_id, "1", other=1)])

    kept = await inbox(alice)
    assert [each["flood"] for each in kept if "flood" in each] == [3, 4, "last"]
    assert [each["bob"] for each in kept if "bob" in each] == list(range(5))
    assert kept[-1] == {"other": 1}
    assert await inbox(phone) == [{"flood": "last"}]
    assert server.application.user_data.inbox_limits.figures()["to_device_dropped_total"] >= 3


@pytest.mark.one_process("a limit is lowered here")
async def test_of_a_server_that_fills_an_inbox_with_large_messages_the_newest_are_kept(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_limits, "LOOK_BYTES", 30_000)
    monkeypatch.setattr(inbox_limits, "MAX_BYTES", 100_000)
    for number in range(10):
        message = to_device(peer.user(), alice.user_id, "*", str(number), number=number, text="x" * 30_000)
        await push(peer, [], [message])

    assert [each["number"] for each in await inbox(alice)] == [7, 8, 9]


async def test_an_inbox_is_looked_at_now_and_then_alone(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_limits, "MAX_MESSAGES", 0)
    monkeypatch.setattr(inbox_limits, "LOOK_BYTES", 10**12)
    await push(peer, [], [to_device(peer.user(), alice.user_id, "*", str(number), n=number) for number in range(9)])

    assert await inbox(alice) == [{"n": number} for number in range(9)]


async def test_messages_of_other_servers_are_given_up_that_a_device_did_not_ask_for_in_long(
    server: Server, alice: Client, bob: Client, peer: Peer
) -> None:
    await push(peer, [], [to_device(peer.user(), alice.user_id, "*", "old", text="old")])
    async with server.application.database.write() as tx:
        await tx.execute("update to_device_messages set received_ts = received_ts - 91 * 86400000::bigint")
    await push(peer, [], [to_device(peer.user(), alice.user_id, "*", "new", text="new")])
    body = {"messages": {alice.user_id: {"*": {"text": "bob's"}}}}
    await bob.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", body)

    await server.application.user_data.inbox_limits.give_up()
    assert await inbox(alice) == [{"text": "new"}, {"text": "bob's"}]


async def test_nothing_is_kept_of_a_message_that_reaches_nobody(server: Server, alice: Client, peer: Peer) -> None:
    unknown = to_device(peer.user(), alice.user_id, "UNKNOWN", "unknown")
    await push(peer, [], [unknown, to_device(peer.user(), alice.user_id, "*", "known")])

    async with server.application.database.read() as tx:
        rows = await tx.fetch("select message_id from received_to_device where sender = %s", (peer.user(),))
    assert rows == [("known",)]


BAD: list[Any] = [
    "text",
    None,
    {},
    {"edu_type": "m.typing"},
    {"edu_type": "m.typing", "content": {"room_id": 1, "user_id": [], "typing": "yes"}},
    {"edu_type": "m.receipt", "content": {"!r:x": {"m.read": {"@a:b": 5}}}},
    {"edu_type": "m.presence", "content": {"push": [{"user_id": None}]}},
    {"edu_type": "m.direct_to_device", "content": {"messages": {"@a:b": {"*": {"float": 1.5}}}}},
    {"edu_type": "m.unknown", "content": {"anything": 1}},
    {"edu_type": 5, "content": {}},
]


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_edu_harms_no_other(server: Server, alice: Client, peer: Peer, bad: Any) -> None:
    room = await joined_room(alice, peer)
    event = room.add()
    edus = [bad, to_device(peer.user(), alice.user_id, "*", "good", text="hello"), typing(room, room.user_id)]
    answer = await peer.ok("PUT", f"/v1/send/bad{now_ms()}", transaction(peer, [event], edus))

    assert answer == {"pdus": {room.id_of(event): {}}}
    assert await inbox(alice) == [{"text": "hello"}]
    assert await typists(alice, room) == [room.user_id]


async def test_a_message_that_cannot_be_delivered_harms_no_other(server: Server, alice: Client, peer: Peer) -> None:
    bad = to_device(peer.user(), alice.user_id, "*", "bad", text="x" * 70_000)
    await push(peer, [], [bad, to_device(peer.user(), alice.user_id, "*", "good", text="hello")])

    assert await inbox(alice) == [{"text": "hello"}]
