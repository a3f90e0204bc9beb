"""What happens here reaches the servers that it concerns, once they can be reached, and nobody else."""

import asyncio
import random

import pytest

from federation.outbound import delivery, sender
from federation.protocol.types import EventID
from storage.history import HOLE
from tests.client import Client, Server, unique
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer, listening, until_left_alone
from tests.federation.peer import path_of
from tests.federation.resident_rooms import SharedRoom
from tests.rooms import create_room, send


async def test_a_message_reaches_the_servers_of_the_room(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    event_id = await send(alice, room.room_id, "hello")

    await peer.until_messages(["hello"])

    (pdu,) = [pdu for pdu in peer.pdus if pdu["type"] == "m.room.message"]
    assert peer.id_of(pdu, room.room.rules) == event_id
    assert list(pdu["signatures"]) == [alice.user_id.partition(":")[2]]


async def test_what_was_before_a_server_joined_is_not_sent(server: Server, alice: Client, peer: ListeningPeer) -> None:
    shared = await SharedRoom.made(server, alice, peer)
    await send(alice, shared.room_id, "before")
    await shared.join(peer.user())
    await send(alice, shared.room_id, "after")

    await peer.until_messages(["after"])

    assert peer.messages == ["after"]


async def test_many_messages_arrive_in_order(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    texts = [f"message {number}" for number in range(120)]
    for text in texts:
        await send(alice, room.room_id, text)

    await peer.until_messages(texts)

    assert peer.messages == texts
    assert all(len(body["pdus"]) <= 50 for body in peer.taken)


async def test_who_was_kicked_hears_of_it_and_of_nothing_after(
    alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    body = {"user_id": peer.user(), "reason": "enough"}
    await alice.ok("POST", f"/v3/rooms/{room.room_id}/kick", body)
    await send(alice, room.room_id, "between us")

    (pdu,) = await peer.until(lambda: [pdu for pdu in peer.pdus if pdu["content"].get("reason") == "enough"])
    await room.join(peer.user("other"))
    await send(alice, room.room_id, "welcome back")
    await peer.until_messages(["welcome back"])

    assert (pdu["state_key"], pdu["content"]["membership"]) == (peer.user(), "leave")
    assert peer.messages == ["welcome back"]


async def test_a_denied_server_gets_nothing(alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    await send(alice, room.room_id, "before")
    await peer.until_messages(["before"])
    acl = f"/v3/rooms/{room.room_id}/state/m.room.server_acl"
    await alice.ok("PUT", acl, {"allow": ["*"], "deny": ["127.0.0.1"]})
    await send(alice, room.room_id, "denied")
    await alice.ok("PUT", acl, {"allow": ["*"]})
    await send(alice, room.room_id, "after")

    await peer.until_messages(["after"])

    assert peer.messages == ["before", "after"]


async def test_what_a_peer_misses_while_it_is_away_comes_when_it_is_back(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await send(alice, room.room_id, "first")
    await peer.until_messages(["first"])
    await peer.stop()
    texts = [f"missed {number}" for number in range(70)]
    for text in texts:
        await send(alice, room.room_id, text)
    await peer.start()
    server.application.outbound.availability.alive(peer.name)  # as a request from it would

    await peer.until_messages(texts)

    assert peer.messages == ["first", *texts]


async def test_places_of_the_log_where_nothing_is_delay_nobody(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    """As an event leaves them that came without those before it."""
    await peer.stop()
    await send(alice, room.room_id, "before the hole")
    await until_left_alone(server, peer)
    async with server.application.database.transaction() as tx:
        await tx.execute("update log_head set position = position + %s", (100 * HOLE,))
    await send(alice, room.room_id, "behind it")
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until_messages(["before the hole", "behind it"])

    assert peer.messages == ["before the hole", "behind it"]


@pytest.mark.one_process("a limit is lowered here")
async def test_what_is_far_behind_is_read_in_several_turns(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SCANNED", 1)
    monkeypatch.setattr(delivery, "SCANS", 2)
    elsewhere = await create_room(alice)
    await peer.stop()
    await send(alice, room.room_id, "first")
    await until_left_alone(server, peer)
    for number in range(10):
        await send(alice, elsewhere, f"of no concern {number}")
    await send(alice, room.room_id, "last")
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until_messages(["first", "last"])

    assert peer.messages == ["first", "last"]


async def test_a_request_from_a_peer_ends_the_wait_for_it(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await peer.stop()
    await send(alice, room.room_id, "missed")
    await until_left_alone(server, peer)
    await peer.start()

    await peer.ok("GET", f"/v1/state_ids/{room.room_id}", event_id=await send(alice, room.room_id, "now"))

    await peer.until_messages(["missed", "now"], seconds=3)


async def test_to_device_messages_wait_for_a_peer_that_is_away(
    server: Server, alice: Client, peer: ListeningPeer
) -> None:
    await peer.stop()
    for number in range(3):
        messages = {"messages": {peer.user(): {"DEVICE": {"number": number}}}}
        await alice.ok("PUT", f"/v3/sendToDevice/m.test/{unique('txn')}", messages)
    await until_left_alone(server, peer)
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    edus = await peer.until(lambda: peer.edus("m.direct_to_device"))

    assert [edu["messages"][peer.user()]["DEVICE"]["number"] for edu in edus] == [0, 1, 2]
    assert {(edu["sender"], edu["type"]) for edu in edus} == {(alice.user_id, "m.test")}
    assert len({edu["message_id"] for edu in edus}) == 3


async def test_a_join_by_way_of_us_is_passed_on_to_the_others(
    server: Server, peer: ListeningPeer, room: SharedRoom, authority: Authority
) -> None:
    async with listening(server, authority) as other:
        join_id = await _join(other, room, "eve")
        eve = other.user("eve")
        passed_on = await peer.until(lambda: [pdu for pdu in peer.pdus if pdu.get("state_key") == eve])
        await send(room.owner, room.room_id, "welcome")
        await other.until_messages(["welcome"])

        assert [peer.id_of(pdu, room.room.rules) for pdu in passed_on] == [join_id]
        assert not [pdu for pdu in other.pdus if pdu.get("state_key") == eve], "who brought it has it"


async def test_which_joins_are_passed_on_is_kept_for_a_peer_that_is_away_but_not_for_ever(
    server: Server, peer: ListeningPeer, room: SharedRoom, authority: Authority
) -> None:
    await peer.stop()
    async with listening(server, authority) as other:
        joins = [await _join(other, room, name) for name in ("old", "new")]
        await send(room.owner, room.room_id, "welcome")
        await other.until_messages(["welcome"])
    async with server.application.database.transaction() as tx:
        await tx.execute(
            "update relayed_events set created_ts = created_ts - 91 * 86400000::bigint where event_id = %s", (joins[0],)
        )
    await server.application.sender._delivery.give_up_old()
    await peer.start()
    server.application.outbound.availability.alive(peer.name)

    await peer.until_messages(["welcome"])
    there = {peer.id_of(pdu, room.room.rules) for pdu in peer.pdus}
    assert [join in there for join in joins] == [False, True]


async def test_what_was_redacted_meanwhile_is_sent_without_its_content(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    await peer.stop()
    event_id = await send(alice, room.room_id, "regretted")
    await until_left_alone(server, peer)
    await alice.ok("PUT", f"/v3/rooms/{room.room_id}/redact/{event_id}/{unique('txn')}", {})
    await send(alice, room.room_id, "last")
    await peer.start()
    server.application.outbound.availability.alive(peer.name)
    await peer.until(lambda: "last" in str(peer.pdus))

    pdus = {peer.id_of(pdu, room.room.rules): pdu for pdu in peer.pdus}
    assert pdus[EventID(event_id)]["content"] == {}
    assert "regretted" not in str(peer.transactions[-1])


async def test_an_invite_that_is_taken_back_reaches_a_server_outside(
    server: Server, alice: Client, peer: ListeningPeer
) -> None:
    shared = await SharedRoom.made(server, alice, peer)
    await shared.invite(peer.user())
    await alice.ok("POST", f"/v3/rooms/{shared.room_id}/kick", {"user_id": peer.user()})

    (pdu,) = await peer.until(lambda: peer.pdus)

    assert (pdu["state_key"], pdu["content"]["membership"]) == (peer.user(), "leave")


@pytest.mark.parametrize("seed", range(3))
async def test_who_was_away_gets_the_same_as_who_was_not(
    server: Server, alice: Client, authority: Authority, seed: int
) -> None:
    """Through kicks, returns, access lists and second users, what is read back is what would have been sent."""
    choose = random.Random(seed)  # no secret
    async with listening(server, authority) as here, listening(server, authority) as away:
        await away.stop()
        shared = await SharedRoom.made(server, alice, here)
        theirs = SharedRoom(server, alice, away, shared.room)
        joined: dict[str, bool] = {"one": False, "two": False}
        for number in range(50):
            name = choose.choice(list(joined))
            match choose.choice(["say", "say", "say", "topic", "member", "member", "acl"]):
                case "say":
                    await send(alice, shared.room_id, f"message {number}")
                case "topic":
                    await alice.ok("PUT", f"/v3/rooms/{shared.room_id}/state/m.room.topic", {"topic": str(number)})
                case "acl":
                    content = {"allow": ["*"], "deny": choose.choice([[], ["127.0.0.1"]])}
                    await alice.ok("PUT", f"/v3/rooms/{shared.room_id}/state/m.room.server_acl", content)
                case "member":
                    for world in (shared, theirs):
                        user_id = world.peer.user(name)
                        if not joined[name]:
                            await world.join(user_id)
                        elif choose.random() < 0.5:
                            await world.member(user_id, "leave")
                        else:
                            await alice.ok("POST", f"/v3/rooms/{shared.room_id}/kick", {"user_id": user_id})
                    joined[name] = not joined[name]
        await alice.ok("PUT", f"/v3/rooms/{shared.room_id}/state/m.room.server_acl", {"allow": ["*"]})
        for world in (shared, theirs):
            if not any(joined.values()):
                await world.join(world.peer.user("three"))
        await send(alice, shared.room_id, "the end")
        await here.until_messages(["the end"])
        await away.start()
        server.application.outbound.availability.alive(away.name)
        await away.until_messages(["the end"])

        assert _without_members(away) == _without_members(here)
        assert len(here.messages) > 3


def _without_members(peer: ListeningPeer) -> list[tuple[str, str]]:
    return [
        (pdu["type"], str(pdu["content"].get("body") or pdu["content"].get("topic") or pdu["content"]))
        for pdu in peer.pdus
        if pdu["type"] != "m.room.member"
    ]


async def _join(peer: ListeningPeer, room: SharedRoom, name: str) -> EventID:
    """A user of the peer joins by way of the server under test."""
    user_id, rules = peer.user(name), room.room.rules
    template = await peer.ok("GET", path_of("/v1/make_join/{}/{}", room.room_id, user_id), ver=rules.version)
    join = peer.finish(template["event"], rules)
    join_id = peer.id_of(join, rules)
    await peer.ok("PUT", path_of("/v2/send_join/{}/{}", room.room_id, join_id), join)
    return join_id


@pytest.mark.one_process("a limit is lowered here")
async def test_what_concerns_no_server_is_not_looked_at_again(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_UNSAVED", 0)
    room_id = await create_room(alice)
    for text in ("nobody", "else", "is here"):
        await send(alice, room_id, text)
    end = server.application.tail.position
    async with asyncio.timeout(30):
        while await first_position(server) < end:  # noqa: ASYNC110  # in another task
            await asyncio.sleep(0.05)


async def first_position(server: Server) -> int:
    """From where on the log is read again after a restart."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one("select min(position) from outbox_shards")
    assert row is not None
    return int(row[0])
