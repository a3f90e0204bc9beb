"""Users of another server leave our rooms and knock at them."""

import pytest

from federation.protocol import event_format, signatures
from federation.protocol.room_versions import get_rules
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import ServerName
from tests.client import Client, Server
from tests.federation.handshakes import (
    VERSIONS,
    a_public_room,
    joined,
    make,
    member_event,
    membership_in,
    path_for,
    refusal,
    send_knock,
    send_leave,
)
from tests.federation.peer import Peer
from tests.homeserver.syncs import sync, timeline
from tests.rooms import create_room, put_state
from tests.servers import SIGNING_KEY

FORBIDDEN = (403, "M_FORBIDDEN")
WITH_KNOCKING = [version for version in VERSIONS if get_rules(version).knocking]


async def a_room_to_knock_at(owner: Client, version: str = "11") -> str:
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    return await create_room(owner, room_version=version, name="Lobby", topic="Quiet", initial_state=[rule])


@pytest.mark.parametrize("api", ["v1", "v2"])
async def test_a_user_leaves(server: Server, alice: Client, peer: Peer, api: str) -> None:
    room_id = await a_public_room(alice)
    await joined(peer, room_id)
    before = await sync(alice)
    event = await member_event(peer, room_id, "11", "leave")

    answer = await peer.request("PUT", path_for(peer, room_id, event, what=f"{api}/send_leave"), event)
    assert (answer.status, answer.body) == (200, {} if api == "v2" else [200, {}])
    assert await membership_in(server, room_id, peer.user()) == "leave"
    told = timeline(await sync(alice, since=before["next_batch"]), room_id)
    assert [event["content"]["membership"] for event in told] == ["leave"]


async def test_who_is_not_there_cannot_leave(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)

    assert refusal(await make(peer, room_id, "leave")) == FORBIDDEN


async def test_a_join_is_no_leave(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)

    assert refusal(await send_leave(peer, room_id, event)) == (400, "M_INVALID_PARAM")
    assert refusal(await send_knock(peer, room_id, event)) == (400, "M_INVALID_PARAM")
    assert await membership_in(server, room_id, peer.user()) is None


@pytest.mark.parametrize("version", WITH_KNOCKING)
async def test_a_user_knocks(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room_id = await a_room_to_knock_at(alice, version)
    answer = await make(peer, room_id, "knock")
    assert answer.body["room_version"] == version
    event = peer.finish(answer.body["event"], get_rules(version), content={"membership": "knock", "reason": "please"})

    answer = await peer.request("PUT", path_for(peer, room_id, event, version, "v1/send_knock"), event)
    assert answer.status == 200, answer.body
    assert await membership_in(server, room_id, peer.user()) == "knock"
    keys = {(ServerName(server.name), SIGNING_KEY.key_id): VerifyKey(public_key=SIGNING_KEY.public_key)}
    rules = get_rules(version)
    told = [signatures.verify(event_format.parse(json, rules), keys) for json in answer.body["knock_room_state"]]
    assert {pdu.room_id for pdu in told} == {room_id}
    assert {pdu.type for pdu in told} == {"m.room.create", "m.room.name", "m.room.topic", "m.room.join_rules"}


async def test_a_knock_is_taken_back(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_room_to_knock_at(alice)
    await send_knock(peer, room_id, await member_event(peer, room_id, "11", "knock"))

    assert (await send_leave(peer, room_id, await member_event(peer, room_id, "11", "leave"))).status == 200
    assert await membership_in(server, room_id, peer.user()) == "leave"


async def test_who_was_turned_away_learns_nothing_by_the_same_knock(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_room_to_knock_at(alice)
    event = await member_event(peer, room_id, "11", "knock")
    assert (await send_knock(peer, room_id, event)).status == 200
    assert (await send_knock(peer, room_id, event)).status == 200

    await alice.ok("POST", f"/v3/rooms/{room_id}/ban", {"user_id": peer.user()})

    assert refusal(await send_knock(peer, room_id, event)) == FORBIDDEN


async def test_where_nobody_may_knock(server: Server, alice: Client, peer: Peer) -> None:
    old, public = await a_public_room(alice, "6"), await a_public_room(alice)

    assert refusal(await make(peer, old, "knock")) == FORBIDDEN
    assert refusal(await make(peer, public, "knock")) == FORBIDDEN
    room_id = await a_room_to_knock_at(alice, "10")
    assert refusal(await make(peer, room_id, "knock", ver=["11"])) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert refusal(await make(peer, room_id, "knock", ver=[])) == (400, "M_MISSING_PARAM")
    event = await member_event(peer, room_id, "10", "knock")
    await put_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})
    answer = await peer.request("PUT", path_for(peer, room_id, event, "10", "v1/send_knock"), event)
    assert refusal(answer) == FORBIDDEN


async def test_what_was_redacted_is_not_told(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_room_to_knock_at(alice)
    secret = await put_state(alice, room_id, "m.room.topic", {"topic": "secret"})
    await alice.ok("PUT", f"/v3/rooms/{room_id}/redact/{secret}/t1", {})

    event = await member_event(peer, room_id, "11", "knock")
    told = (await send_knock(peer, room_id, event)).body["knock_room_state"]
    assert [pdu["content"] for pdu in told if pdu["type"] == "m.room.topic"] == [{}]
    public = await a_public_room(alice)
    secret = await put_state(alice, public, "m.room.topic", {"topic": "secret"})
    await alice.ok("PUT", f"/v3/rooms/{public}/redact/{secret}/t1", {})
    state = (await joined(peer, public))["state"]
    assert [pdu["content"] for pdu in state if pdu["type"] == "m.room.topic"] == [{}]
