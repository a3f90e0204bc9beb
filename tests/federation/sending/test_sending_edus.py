"""EDUs as another server gets them: devices and keys, receipts, typing, presence; and what it does not get."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import pytest

from federation.outbound import sender
from federation.protocol.errors import Unavailable
from federation.protocol.types import ServerName
from homeserver.config import ExistingFile, Federation
from storage import outbox
from storage.database import Tx
from tests.client import Client, Server, quote, unique
from tests.devices import a_device, cross_signing
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer, listening, until_left_alone
from tests.federation.resident_rooms import SharedRoom
from tests.federation.servers import federating
from tests.homeserver.rooms import a_room
from tests.homeserver.syncs import sync
from tests.rooms import create_room, join, put_state, send


async def test_new_keys_of_a_device_are_told(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    device = await a_device(alice)

    edu = await peer.until(lambda: [each for each in _devices(peer) if "keys" in each])

    assert (edu[0]["user_id"], edu[0]["device_id"]) == (alice.user_id, alice.device_id)
    assert edu[0]["keys"]["keys"] == device.identity()["keys"]
    assert "deleted" not in edu[0]
    assert "device_display_name" not in edu[0], "what users call their devices is theirs"


async def test_who_is_shut_out_of_the_room_is_told_of_devices_but_not_of_receipts_and_typing(
    alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    event_id = await send(alice, room.room_id, "before")
    await peer.until_messages(["before"])
    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["127.0.0.1"]})
    await alice.ok("POST", f"/v3/rooms/{room.room_id}/receipt/m.read/{quote(event_id)}", {})
    await alice.ok("PUT", f"/v3/rooms/{room.room_id}/typing/{alice.user_id}", {"typing": True, "timeout": 5000})

    device = await a_device(alice)

    edu = await peer.until(lambda: [each for each in _devices(peer) if "keys" in each])
    assert edu[0]["keys"]["keys"] == device.identity()["keys"]
    assert peer.edus("m.receipt") == peer.edus("m.typing") == []


async def test_each_change_names_the_one_before(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    await a_device(alice)
    await peer.until(lambda: _devices(peer))
    for name in ("one", "two"):
        await alice.ok("PUT", f"/v3/devices/{alice.device_id}", {"display_name": name})
    last = await alice.login()
    await a_device(last)
    await peer.until(
        lambda: [each for each in _devices(peer) if each["device_id"] == last.device_id and "keys" in each]
    )

    chain = _devices(peer)
    assert all(after["prev_id"] == [before["stream_id"]] for before, after in itertools.pairwise(chain))


async def test_a_device_that_is_gone_is_told(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    other = await alice.login()
    await a_device(other)
    await peer.until(lambda: [each for each in _devices(peer) if each["device_id"] == other.device_id])
    await other.ok("POST", "/v3/logout")

    found = await peer.until(lambda: [each for each in _devices(peer) if each.get("deleted")])

    assert [each["device_id"] for each in found] == [other.device_id]


async def test_several_devices_that_go_at_once_leave_a_gap_to_ask_about(
    alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    others = [await alice.login() for _ in range(3)]
    for other in others:
        await a_device(other)
    await peer.until(lambda: len(_devices(peer)) >= 3)
    known = {each["stream_id"] for each in _devices(peer)}
    body = {"devices": [other.device_id for other in others], "auth": alice.password_auth()}
    await alice.ok("POST", "/v3/delete_devices", body)

    (edu, *_) = await peer.until(lambda: [each for each in _devices(peer) if each.get("deleted")])

    assert edu["prev_id"]
    assert not known & set(edu["prev_id"])


async def test_a_peer_that_was_away_is_told_of_devices_and_keys(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await a_device(alice)
    await peer.until(lambda: [each for each in _devices(peer) if "keys" in each])
    known = _devices(peer)[-1]["stream_id"]
    await peer.stop()
    await send(alice, room.room_id, "missed")
    other = await alice.login()
    await a_device(other)
    await cross_signing(alice)
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until(lambda: peer.edus("m.signing_key_update"))

    missed = [each for each in _devices(peer) if each["stream_id"] > known]
    assert missed[0]["prev_id"] == [known]
    assert missed[-1]["device_id"] == other.device_id
    assert "keys" in missed[-1]


async def test_a_peer_that_was_away_is_not_told_of_receipts_where_it_is_shut_out(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    open_room = await SharedRoom.made(server, alice, peer)
    await open_room.join(peer.user())
    read = {each.room_id: await send(alice, each.room_id, "before") for each in (room, open_room)}
    await peer.until(lambda: peer.messages.count("before") == 2)
    await peer.stop()
    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["127.0.0.1"]})
    await send(alice, open_room.room_id, "missed")
    await until_left_alone(server, peer)
    for room_id, event_id in read.items():
        await alice.ok("POST", f"/v3/rooms/{room_id}/receipt/m.read/{quote(event_id)}", {})
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until_messages(["missed"])
    await peer.until(lambda: peer.edus("m.receipt"))
    assert [room_id for content in peer.edus("m.receipt") for room_id in content] == [open_room.room_id]


@pytest.mark.one_process("time is moved on here")
async def test_messages_are_given_up_that_a_peer_did_not_take_for_long(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await peer.stop()
    for name in ("m.old", "m.new"):
        body = {"messages": {peer.user(): {"DEVICE": {"text": name}}}}
        await alice.ok("PUT", f"/v3/sendToDevice/{name}/{unique('txn')}", body)
    async with server.application.database.transaction() as tx:
        await tx.execute(
            "update outbox_messages set created_ts = created_ts - 91 * 86400000::bigint where sequence ="
            " (select min(sequence) from outbox_messages where destination = %s)",
            (peer.name,),
        )
    await server.application.sender._delivery.give_up_old()
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until(lambda: peer.edus("m.direct_to_device"))
    assert [content["type"] for content in peer.edus("m.direct_to_device")] == ["m.new"]


@pytest.mark.one_process("what it reads fails here")
async def test_messages_that_could_not_be_read_are_sent_when_they_can(
    alice: Client, peer: ListeningPeer, room: SharedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_messages, failures = outbox.stored_messages, 0

    async def fail_first(tx: Tx, destination: ServerName, limit: int) -> list[tuple[int, bytes]]:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise Unavailable("The database was away for a moment")
        return await stored_messages(tx, destination, limit)

    monkeypatch.setattr(outbox, "stored_messages", fail_first)
    body = {"messages": {peer.user(): {"DEVICE": {"text": "hello"}}}}
    await alice.ok("PUT", f"/v3/sendToDevice/m.patient/{unique('txn')}", body)

    await peer.until(lambda: peer.edus("m.direct_to_device"))
    assert failures > 1


async def test_new_cross_signing_keys_are_told(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    keys = await cross_signing(alice)

    (edu, *_) = await peer.until(lambda: peer.edus("m.signing_key_update"))

    assert edu["user_id"] == alice.user_id
    assert list(edu["master_key"]["keys"].values()) == [keys.public_key("master")]
    assert "self_signing_key" in edu
    assert "user_signing_key" not in edu


async def test_a_change_that_only_one_user_may_see_is_not_told(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    bob = await server.register("bob")
    await bob.ok("POST", f"/v3/join/{room.room_id}")
    theirs, own = await cross_signing(bob), await cross_signing(alice)
    await peer.until(lambda: len(peer.edus("m.signing_key_update")) >= 2)
    signed = own.sign("user_signing", theirs.key("master"))
    await alice.ok("POST", "/v3/keys/signatures/upload", {bob.user_id: {theirs.public_key("master"): signed}})
    await send(alice, room.room_id, "after the signature")
    await peer.until_messages(["after the signature"])

    assert len(peer.edus("m.signing_key_update")) == 2
    assert all(
        alice.user_id not in edu["master_key"].get("signatures", {})
        for edu in peer.edus("m.signing_key_update")
        if edu["user_id"] == bob.user_id
    )


async def test_who_joins_is_announced_with_their_devices(server: Server, peer: ListeningPeer, room: SharedRoom) -> None:
    bob = await server.register("bob")
    await a_device(bob)
    await bob.ok("POST", f"/v3/join/{room.room_id}")

    edus = await peer.until(lambda: [each for each in _devices(peer) if each["user_id"] == bob.user_id])

    assert [(each["device_id"], "keys" in each) for each in edus] == [(bob.device_id, True)]


async def test_changes_of_who_shares_no_room_are_not_told(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    stranger = await server.register("stranger")
    await a_room(stranger)
    await a_device(stranger)
    await a_device(alice)

    await peer.until(lambda: [each for each in _devices(peer) if "keys" in each])

    assert {each["user_id"] for each in _devices(peer)} == {alice.user_id}


async def test_receipts_are_told_by_thread_and_private_ones_are_not(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    event_id = await send(alice, room.room_id, "root")
    content = {"msgtype": "m.text", "body": "reply", "m.relates_to": {"rel_type": "m.thread", "event_id": event_id}}
    path = f"/v3/rooms/{room.room_id}/send/m.room.message/{unique('txn')}"
    reply = (await alice.ok("PUT", path, content))["event_id"]
    receipts = f"/v3/rooms/{room.room_id}/receipt"
    await alice.ok("POST", f"{receipts}/m.read.private/{event_id}", {})
    await peer.stop()
    await alice.ok("POST", f"{receipts}/m.read/{event_id}", {"thread_id": "main"})
    await alice.ok("POST", f"{receipts}/m.read/{reply}", {"thread_id": event_id})
    await alice.ok("POST", f"{receipts}/m.read/{reply}", {})
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    found = await peer.until(lambda: edus if len(edus := peer.edus("m.receipt")) >= 3 else None)

    told = [edu[room.room_id]["m.read"][alice.user_id] for edu in found]
    assert {(each["event_ids"][0], each["data"].get("thread_id")) for each in told} == {
        (event_id, "main"),
        (reply, event_id),
        (reply, None),
    }
    assert all(list(edu[room.room_id]) == ["m.read"] for edu in peer.edus("m.receipt"))


async def test_typing_is_told_and_its_end(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    path = f"/v3/rooms/{room.room_id}/typing/{alice.user_id}"
    await alice.ok("PUT", path, {"typing": True, "timeout": 30_000})
    await peer.until(lambda: peer.edus("m.typing"))
    await alice.ok("PUT", path, {"typing": True, "timeout": 30_000})
    await alice.ok("PUT", path, {"typing": False})
    await peer.until(lambda: len(peer.edus("m.typing")) >= 2)

    assert peer.edus("m.typing") == [
        {"room_id": room.room_id, "user_id": alice.user_id, "typing": True},
        {"room_id": room.room_id, "user_id": alice.user_id, "typing": False},
    ]


async def test_presence_is_not_told_unless_it_is_switched_on(
    alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await alice.ok("PUT", f"/v3/presence/{alice.user_id}/status", {"presence": "online", "status_msg": "here"})
    await send(alice, room.room_id, "hello")
    await peer.until_messages(["hello"])

    assert not peer.edus("m.presence")


@pytest.fixture
def telling(authority: Authority) -> Federation:
    """Settings of a server that tells of presence."""
    return Federation(
        allowed_ranges=(ip_network("127.0.0.0/8"),),
        certificate_authorities=(ExistingFile(authority.certificate),),
        notary_servers=(),
        send_presence=True,
    )


async def test_presence_is_told_where_it_is_switched_on(
    maintenance_conninfo: str, authority: Authority, telling: Federation
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(federating(maintenance_conninfo, authority, federation=telling))
        peer = await stack.enter_async_context(listening(server, authority))
        alice = await server.register("alice")
        shared = await SharedRoom.made(server, alice, peer)
        await shared.join(peer.user())
        await alice.get("/v3/sync", set_presence="unavailable", timeout=0)  # who was never active here yet
        (idle, *_) = await peer.until(lambda: peer.edus("m.presence"))
        await alice.ok("PUT", f"/v3/presence/{alice.user_id}/status", {"presence": "online", "status_msg": "here"})

        (edu, *_) = await peer.until(lambda: [each for each in peer.edus("m.presence") if "status" in str(each)])

    assert (idle["push"][0]["presence"], idle["push"][0]["last_active_ago"] < 60_000) == ("unavailable", True)
    (update,) = edu["push"]
    assert (update["user_id"], update["presence"], update["status_msg"]) == (alice.user_id, "online", "here")


async def test_servers_that_meet_in_a_room_are_told_who_is_online(
    maintenance_conninfo: str, authority: Authority, telling: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MET_SECONDS", 2.0)
    async with AsyncExitStack() as stack:
        near, far = [
            await stack.enter_async_context(federating(maintenance_conninfo, authority, federation=telling))
            for _ in range(2)
        ]
        alice, bob = await near.register("alice"), await far.register("bob")
        carol = await near.register("carol")
        for user in (alice, bob):
            path = f"/v3/presence/{user.user_id}/status"
            await user.ok("PUT", path, {"presence": "online", "status_msg": "since before"})
        room_id = await create_room(alice, preset="public_chat")
        await join(carol, room_id)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            seen = [group.create_task(_until_seen(*pair)) for pair in ((alice, bob), (bob, alice))]
            await bob.ok("POST", f"/v3/join/{quote(room_id)}?via={quote(near.name)}", {})

    assert [task.result()["status_msg"] for task in seen] == ["since before"] * 2


async def _until_seen(reader: Client, user: Client) -> Any:
    """What the reader hears of a user's presence, once that is something."""
    since: str | None = None
    while True:
        answer = await sync(reader, since, timeout=5_000)
        since = answer["next_batch"]
        for event in answer.get("presence", {}).get("events", []):
            if event["sender"] == user.user_id:
                return event["content"]


def _devices(peer: ListeningPeer) -> list[Any]:
    return peer.edus("m.device_list_update")
