"""PUT /send: what other servers push arrives once, in order, and one bad event harms no other."""

import asyncio
import sys
from typing import Any

import pytest
import pytest_asyncio

from federation.inbound import transactions
from federation.protocol import event_hashes
from federation.rooms.placing import MAX_EXTREMITIES
from homeserver.config import RateLimit, RateLimits
from tests.client import Client, Server
from tests.federation.peer import Peer, path_of
from tests.federation.remote_room import RemoteRoom, join_room, joined_room, push, transaction
from tests.homeserver.syncs import ids, sync, timeline
from tests.rooms import pdus_of, put_state, send, state_of
from tests.servers import running

VERSIONS = ["1", "3", "6", "11", "12"]


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


async def bodies(server: Server, room: RemoteRoom) -> list[Any]:
    """The texts of the room's messages, in the order in which they came."""
    return [pdu["content"].get("body") for pdu in await pdus_of(server, room.room_id, "m.room.message")]


async def ends_of(server: Server, room: RemoteRoom) -> list[str]:
    """The room's forward extremities."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one("select extremities from rooms where room_id = %s", (room.room_id,))
    assert row is not None
    return list(row[0])


@pytest.mark.parametrize("version", VERSIONS)
async def test_events_reach_clients(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room = await joined_room(alice, peer, version)
    since = (await sync(alice))["next_batch"]
    events = [
        *room.messages(3),
        room.add("m.room.member", {"membership": "join", "displayname": "E"}, state_key=room.user_id),
    ]
    answer = await room.push(events)

    assert answer == {room.id_of(event): {} for event in events}
    shown = timeline(await sync(alice, since=since), room.room_id)
    assert ids(shown) == list(answer)
    member = (await state_of(server, room.room_id))["m.room.member", room.user_id]
    assert member["content"]["displayname"] == "E"
    await send(alice, room.room_id, "an answer")
    newest = (await pdus_of(server, room.room_id))[-1]
    assert newest["prev_events"] == room._references([room.id_of(events[-1])])


async def test_a_burst_of_several_hundred_events_arrives_whole(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    events = room.messages(400)
    for start in range(0, 400, 50):
        answer = await room.push(events[start : start + 50])
        assert all(result == {} for result in answer.values())

    assert await bodies(server, room) == [f"message {number}" for number in range(400)]


async def test_a_transaction_in_any_order_arrives_whole(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    answer = await room.push(list(reversed(room.messages(50))))

    assert all(result == {} for result in answer.values())
    assert await bodies(server, room) == [f"message {number}" for number in range(50)]


async def test_forks_arrive_whole(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    start = room.last
    events = [room.make(content={"body": str(number)}, prev=start) for number in range(50)]
    await room.push(events)
    room.add(prev=[room.keep(event) for event in events][-20:])

    assert sorted(map(int, await bodies(server, room))) == list(range(50))


async def test_a_flood_of_forks_leaves_a_room_that_works(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    start = room.last
    events = [room.make(content={"body": str(number)}, prev=start) for number in range(100)]
    for first in (0, 50):
        await room.push(events[first : first + 50])

    assert sorted(map(int, await bodies(server, room))) == list(range(100))  # all are there
    assert len(await ends_of(server, room)) == MAX_EXTREMITIES
    for _ in range(3):
        await send(alice, room.room_id, "joining the ends")
    assert len(await ends_of(server, room)) == 1


async def test_forks_of_one_server_do_not_keep_others_from_counting(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    other = await join_room(await Peer(server, "other.test").trust(), room.room_id)
    start = other.last
    floods = [
        room.make(
            "m.room.member", {"membership": "join", "displayname": f"E{number}"}, prev=start, state_key=room.user_id
        )
        for number in range(MAX_EXTREMITIES + 10)
    ]
    for first in (0, 50):
        await room.push(floods[first : first + 50])
    renamed = {"membership": "join", "displayname": "still here"}
    for _ in range(2):  # the second follows the first, and takes its place
        event = other.add("m.room.member", renamed, state_key=other.user_id)
        assert await other.push([event]) == {other.id_of(event): {}}
        member = (await state_of(server, room.room_id))["m.room.member", other.user_id]
        assert member["content"] == renamed
        renamed = renamed | {"displayname": "there still"}

    assert len(await ends_of(server, room)) == MAX_EXTREMITIES
    lost = [event for event in floods if room.id_of(event) not in await ends_of(server, room)]
    assert [event["content"]["displayname"] for event in lost] == ["E0", *(f"E{number}" for number in range(50, 60))]


async def test_rooms_of_one_transaction_do_not_mix(server: Server, alice: Client, peer: Peer) -> None:
    rooms = [await joined_room(alice, peer) for _ in range(3)]
    events = [event for events in zip(*(room.messages(5) for room in rooms), strict=True) for event in events]
    await push(peer, events)

    for room in rooms:
        assert await bodies(server, room) == [f"message {number}" for number in range(5)]


# --- once


async def test_a_repeated_transaction_gets_its_old_answer(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    good, bad = room.add(), room.make(prev=["$" + "x" * 43])
    first = await room.push([good, bad], txn_id="same")
    before = await sync(alice)

    assert await room.push([room.make(content={"body": "other"})], txn_id="same") == first
    assert "rooms" not in await sync(alice, since=before["next_batch"])


async def test_the_transactions_of_two_servers_are_not_the_same(server: Server, alice: Client, peer: Peer) -> None:
    rooms = [await joined_room(alice, peer), await joined_room(alice, await Peer(server).trust())]
    for room in rooms:
        event = room.add()
        assert await room.push([event], txn_id="1") == {room.id_of(event): {}}


async def test_a_transaction_sent_twice_at_the_same_time_is_taken_once(
    server: Server, alice: Client, peer: Peer
) -> None:
    room = await joined_room(alice, peer)
    since = (await sync(alice))["next_batch"]
    events = room.messages(10)
    answers = await asyncio.gather(*(room.push(events, txn_id="twice") for _ in range(5)))

    assert all(answer == answers[0] for answer in answers)
    assert len(timeline(await sync(alice, since=since), room.room_id)) == 10


async def test_an_event_in_two_transactions_arrives_once(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    events = room.messages(3)
    await asyncio.gather(*(room.push([*events, *events]) for _ in range(3)))

    assert await bodies(server, room) == ["message 0", "message 1", "message 2"]


# --- limits


@pytest.mark.parametrize("body", [{"pdus": [{}] * 51}, {"edus": [{}] * 101}, {"pdus": {}}, {"origin": "other.test"}])
async def test_a_transaction_beyond_the_limits_is_refused(peer: Peer, body: Any) -> None:
    answer = await peer.request("PUT", "/v1/send/large", transaction(peer, []) | body)

    assert answer.status == 400


async def test_a_server_has_only_so_many_transactions_at_work(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    path = [path_of("/v1/send/{}", f"flood{number}") for number in range(20)]
    body = transaction(peer, room.messages(50))
    answers = await asyncio.gather(*(peer.request("PUT", each, body) for each in path))

    assert {answer.status for answer in answers} == {200, 429}
    assert await bodies(server, room) == [f"message {number}" for number in range(50)]


async def test_what_is_in_a_transaction_is_paid_for(conninfo: str) -> None:
    limits = RateLimits(federation=RateLimit(per_second=0.001, burst=30))
    async with running(conninfo, rate_limits=limits) as server:
        peer, other = await Peer(server).trust(), await Peer(server).trust()
        full = {"edus": [{"edu_type": "m.presence", "content": {"push": []}}] * 100}

        async def put(by: Peer, number: int) -> int:
            path = path_of("/v1/send/{}", f"paid{number}")
            return (await by.request("PUT", path, transaction(by, []) | full)).status

        assert [await put(peer, number) for number in range(3)] == [200, 200, 429]
        assert (await peer.request("PUT", "/v1/send/empty", transaction(peer, []))).status == 200
        assert await put(other, 1) == 200


@pytest.mark.one_process("a limit is lowered here")
async def test_servers_of_one_network_have_only_so_many_transactions_at_work(
    server: Server, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "MAX_PER_NETWORK", 0)
    refused = await peer.request("PUT", "/v1/send/refused", transaction(peer, []))
    assert (refused.status, refused.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    monkeypatch.setattr(transactions, "MAX_PER_NETWORK", 1)
    for number in range(2):  # what was at work is done
        answer = await peer.request("PUT", path_of("/v1/send/{}", f"taken{number}"), transaction(peer, []))
        assert answer.status == 200


# --- one bad event harms no other


def wrong_signature(room: RemoteRoom) -> Any:
    event = room.make()
    return {**event, "depth": event["depth"] + 1}


def foreign_sender(room: RemoteRoom) -> Any:
    return room.make(sender="@alice:hearth.test")


def no_signature(room: RemoteRoom) -> Any:
    return {**room.make(), "signatures": {}}


def another_key(room: RemoteRoom) -> Any:
    event = room.make()
    return {**event, "signatures": {room.peer.name: {"ed25519:other": "x" * 86}}}


def too_large(room: RemoteRoom) -> Any:
    return room.make(content={"body": "x" * 65_536})


def a_huge_number(room: RemoteRoom) -> Any:
    return {**room.make(), "content": {"number": 2**53}}


def a_float(room: RemoteRoom) -> Any:
    return {**room.make(), "content": {"number": 1.5}}


def a_negative_depth(room: RemoteRoom) -> Any:
    return room.make(depth=-1)


def too_many_references(room: RemoteRoom) -> Any:
    return room.make(prev_events=["$" + f"{number}".rjust(43, "x") for number in range(21)])


def deep_nesting(room: RemoteRoom) -> Any:
    content: Any = {}
    for _ in range(500):
        content = {"x": content}
    return room.make(content=content)


def nul_in_type(room: RemoteRoom) -> Any:
    return room.make("m.\0")


def no_event(_room: RemoteRoom) -> Any:
    return {"hello": "world"}


def no_object(_room: RemoteRoom) -> Any:
    return ["an", "array"]


def unknown_room(room: RemoteRoom) -> Any:
    return room.make(room_id="!elsewhere:hearth.test")


def unknown_references(room: RemoteRoom) -> Any:
    return room.make(prev=["$" + "x" * 43])


def unknown_authority(room: RemoteRoom) -> Any:
    return room.make(auth=["$" + "x" * 43])


BAD = [
    wrong_signature,
    foreign_sender,
    no_signature,
    another_key,
    too_large,
    a_huge_number,
    a_float,
    a_negative_depth,
    too_many_references,
    deep_nesting,
    nul_in_type,
    no_event,
    no_object,
    unknown_room,
    unknown_references,
    unknown_authority,
]


@pytest.mark.parametrize("make", BAD)
async def test_a_bad_event_harms_no_other(server: Server, alice: Client, peer: Peer, make: Any) -> None:
    room = await joined_room(alice, peer)
    before = await state_of(server, room.room_id)
    bad = make(room)
    good = room.messages(2)
    answer = await room.push([good[0], bad, good[1]])

    assert {event_id: {} for event_id in map(room.id_of, good)}.items() <= answer.items()
    assert all(answer[event_id].get("error") for event_id in answer.keys() - set(map(room.id_of, good)))
    assert await bodies(server, room) == ["message 0", "message 1"]
    assert await state_of(server, room.room_id) == before


async def test_an_event_with_a_wrong_hash_is_redacted(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    event = room.make(content={"body": "as it was signed"})
    await room.push([{**event, "content": {"body": "changed on the way"}}])

    (stored,) = await pdus_of(server, room.room_id, "m.room.message")
    assert (stored["event_id"], stored["content"]) == (room.id_of(event), {})


async def test_an_event_of_another_room_is_not_taken_into_this(server: Server, alice: Client, peer: Peer) -> None:
    first, second = await joined_room(alice, peer), await joined_room(alice, peer)
    event = first.make(room_id=second.room_id)  # follows, and is authorised by, the first room's events
    await first.push([event])

    assert await bodies(server, first) == []
    assert all(pdu["event_id"] != first.id_of(event) for pdu in await pdus_of(server, second.room_id))


async def test_who_may_not_send_is_not_shown(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    since = (await sync(alice))["next_batch"]
    answer = await room.push([room.make("m.room.topic", {"topic": "mine"}, state_key=""), room.add()])

    assert list(answer.values()) == [{}, {}]  # the first is rejected, and kept
    shown = timeline(await sync(alice, since=since), room.room_id)
    assert [event["type"] for event in shown] == ["m.room.message"]
    assert ("m.room.topic", "") not in await state_of(server, room.room_id)


async def test_a_rejected_event_may_be_followed(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    rejected = room.make("m.room.topic", {"topic": "mine"}, state_key="")
    after = room.make(prev=[room.id_of(rejected)])
    await room.push([rejected, after])

    await send(alice, room.room_id, "an answer")
    newest = (await pdus_of(server, room.room_id))[-1]
    assert newest["prev_events"] == [room.id_of(after)]


# --- who may send


async def test_a_server_that_is_shut_out_is_not_heard(server: Server, alice: Client, peer: Peer) -> None:
    room, open_room = await joined_room(alice, peer), await joined_room(alice, peer)
    acl = {"allow": ["*"], "deny": [peer.name], "allow_ip_literals": True}
    await put_state(alice, room.room_id, "m.room.server_acl", acl)
    shut_out, heard = room.make(), open_room.make()
    answer = await push(peer, [shut_out, heard])

    assert "access control" in answer["pdus"][room.id_of(shut_out)]["error"]
    assert answer["pdus"][open_room.id_of(heard)] == {}
    assert await bodies(server, room) == []

    await put_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"]})
    assert await room.push([shut_out]) == {room.id_of(shut_out): {}}


async def test_a_room_that_we_left_takes_no_events(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    await alice.ok("POST", path_of("/v3/rooms/{}/leave", room.room_id))
    event = room.make()

    assert "error" in (await room.push([event]))[room.id_of(event)]
    assert await bodies(server, room) == []


async def test_the_reference_hash_is_the_id(peer: Peer, server: Server, alice: Client) -> None:
    """An ID that the sender writes into an event of a room where its hash is its ID means nothing."""
    room = await joined_room(alice, peer)
    event = room.make(event_id="$" + "y" * 43)
    answer = await room.push([event])

    assert list(answer) == [event_hashes.event_id_of(event, room.rules)]


# --- redactions


async def redaction_shown(client: Client, room: RemoteRoom, event_id: str) -> bool:
    answer = await client.get(path_of("/v3/rooms/{}/event/{}", room.room_id, event_id))
    return answer.status == 200


@pytest.mark.parametrize("version", ["3", "11", "12"])
async def test_a_redaction_that_does_not_apply_is_not_shown(
    server: Server, alice: Client, peer: Peer, version: str
) -> None:
    room = await joined_room(alice, peer, version)
    event_id = await send(alice, room.room_id, "stays")
    since = (await sync(alice))["next_batch"]
    redaction = a_redaction(room, event_id)
    await room.push([redaction])

    assert "rooms" not in await sync(alice, since=since)
    assert not await redaction_shown(alice, room, room.id_of(redaction))
    event = await alice.ok("GET", path_of("/v3/rooms/{}/event/{}", room.room_id, event_id))
    assert event["content"]["body"] == "stays"
    messages = await alice.ok("GET", path_of("/v3/rooms/{}/messages", room.room_id), params={"dir": "b"})
    assert room.id_of(redaction) not in ids(messages["chunk"])
    await send(alice, room.room_id, "after it")
    assert room.id_of(redaction) in str((await pdus_of(server, room.room_id))[-1]["prev_events"])


async def test_a_redaction_is_shown_once_its_target_came(server: Server, alice: Client, peer: Peer) -> None:
    room = await joined_room(alice, peer)
    target = room.make()
    redaction = a_redaction(room, room.id_of(target))
    await room.push([redaction])
    assert not await redaction_shown(alice, room, room.id_of(redaction))
    await room.push([target])

    assert await redaction_shown(alice, room, room.id_of(redaction))
    event = await alice.ok("GET", path_of("/v3/rooms/{}/event/{}", room.room_id, room.id_of(target)))
    assert event["content"] == {}


def a_redaction(room: RemoteRoom, target: str) -> Any:
    if room.rules.updated_redaction:
        return room.make("m.room.redaction", {"redacts": target})
    return room.make("m.room.redaction", {}, redacts=target)


@pytest.mark.one_process("a limit is lowered here")
async def test_large_transactions_that_are_too_much_together_are_sent_again_later(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await joined_room(alice, peer)
    monkeypatch.setattr(transactions, "LARGE_BYTES", 5_000)
    monkeypatch.setattr(transactions, "MAX_LARGE_BYTES", 10_000)
    small, large = room.add(content={"body": "small"}), room.add(content={"body": "x" * 12_000})

    assert (await peer.request("PUT", "/v1/send/small", transaction(peer, [small]))).status == 200
    refused = await peer.request("PUT", "/v1/send/large", transaction(peer, [large]))
    assert (refused.status, refused.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    monkeypatch.setattr(transactions, "MAX_LARGE_BYTES", 15_000)
    for number in range(2):  # what was at work is done
        answer = await peer.ok("PUT", path_of("/v1/send/{}", f"large{number}"), transaction(peer, [large]))
        assert answer == {"pdus": {room.id_of(large): {}}}


async def test_what_is_kept_in_memory_of_an_event_counts_as_what_it_takes(
    server: Server, alice: Client, peer: Peer
) -> None:
    room = await joined_room(alice, peer)
    tail = server.application.tail
    before = tail._held_bytes
    await push(peer, [room.add(content={"body": [{} for _ in range(20_000)]})])

    held = sum(map(sys.getsizeof, [{}, []])) / 2 * 20_000
    assert tail._held_bytes - before > held
