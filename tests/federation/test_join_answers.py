"""What a joining server is told where the room's graph forks, and when telling it breaks off."""

import asyncio
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject
from federation.rooms.join_answers import JoinAnswer
from tests.client import Client, Server, unique
from tests.federation.handshakes import a_public_room, joined, make, member_event, membership_in, path_for, send_join
from tests.federation.peer import Peer
from tests.rooms import pdus_of, put_state, state_of

RULES = get_rules("11")


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


async def push(peer: Peer, event: JsonObject) -> None:
    """Send an event of the peer's user in a transaction; it must be taken."""
    body = {"origin": peer.name, "origin_server_ts": 1, "pdus": [event]}
    answer = await peer.ok("PUT", f"/v1/send/{unique('txn')}", body)
    assert answer["pdus"] == {peer.id_of(event, RULES): {}}


async def a_forked_room(server: Server, owner: Client, peer: Peer) -> tuple[str, str]:
    """A room where the owner set a name while the peer's user set a topic: its ID, and the topic's event."""
    room_id = await a_public_room(owner)
    await joined(peer, room_id)
    await put_state(owner, room_id, "m.room.power_levels", {"users": {owner.user_id: 100, peer.user(): 50}})
    before = (await pdus_of(server, room_id))[-1]
    await put_state(owner, room_id, "m.room.name", {"name": "Lobby"})
    state = await state_of(server, room_id)
    keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", peer.user())]
    topic = peer.finish(
        {
            "type": "m.room.topic",
            "room_id": room_id,
            "sender": peer.user(),
            "state_key": "",
            "content": {"topic": "Quiet"},
            "prev_events": [before["event_id"]],
            "auth_events": [state[key]["event_id"] for key in keys],
            "depth": before["depth"] + 1,
        },
        RULES,
    )
    await push(peer, topic)
    return room_id, peer.id_of(topic, RULES)


def types_of(told: Any) -> set[str]:
    return {pdu["type"] for pdu in told["state"]}


@pytest.mark.parametrize("omits_members", [False, True])
async def test_the_state_is_that_before_the_join(
    server: Server, alice: Client, peer: Peer, *, omits_members: bool
) -> None:
    room_id, topic = await a_forked_room(server, alice, peer)
    other = await Peer(server).trust()
    omit = {"omit_members": "true"} if omits_members else {}

    beside = await member_event(other, room_id, prev_events=[topic])
    told = (await send_join(other, room_id, beside, **omit)).body
    assert "m.room.topic" in types_of(told)
    assert "m.room.name" not in types_of(told)
    assert told["members_omitted"] is omits_members
    assert ("m.room.member" in types_of(told)) is not omits_members
    if omits_members:
        assert {server.name, peer.name} <= set(told["servers_in_room"])

    third = await Peer(server).trust()
    told = await joined(third, room_id)  # after both
    assert {"m.room.topic", "m.room.name"} <= types_of(told)
    members = {pdu["state_key"] for pdu in told["state"] if pdu["type"] == "m.room.member"}
    assert members == {alice.user_id, peer.user(), other.user()}


@pytest.mark.one_process("it breaks off here")
async def test_an_answer_that_breaks_off_cannot_be_taken_for_a_whole_one(
    server: Server, alice: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)

    async def broken(_self: JoinAnswer, _wanted: object) -> bytes:
        raise RuntimeError("the database is gone")

    with monkeypatch.context() as patch:
        patch.setattr(JoinAnswer, "_read_cited", broken)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await peer.request("PUT", path_for(peer, room_id, event), event)

    assert await membership_in(server, room_id, peer.user()) == "join"
    assert (await send_join(peer, room_id, event)).status == 200  # who asks again is told


async def test_many_servers_join_at_once(server: Server, alice: Client) -> None:
    room_id = await a_public_room(alice)
    peers = [await Peer(server).trust() for _ in range(10)]
    events = [await member_event(each, room_id) for each in peers]  # all after the same event

    answers = await asyncio.gather(
        *(send_join(each, room_id, event) for each, event in zip(peers, events, strict=True))
    )
    assert [answer.status for answer in answers] == [200] * len(peers)
    for each in peers:
        assert await membership_in(server, room_id, each.user()) == "join"
    assert (await make(await Peer(server).trust(), room_id)).status == 200
