"""Users of another server join our rooms: templates, events, what the joining server is told."""

import pytest
import pytest_asyncio

from federation.protocol import event_format, signatures
from federation.protocol.room_versions import get_rules
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import ServerName
from tests.client import Client, Server
from tests.federation.handshakes import VERSIONS, a_public_room, make, member_event, membership_in, path_for, send_join
from tests.federation.peer import Peer
from tests.homeserver.syncs import state, sync, timeline
from tests.rooms import put_state, send
from tests.servers import SIGNING_KEY


@pytest_asyncio.fixture
async def peer(server: Server) -> Peer:
    return await Peer(server).trust()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_user_of_another_server_joins(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room_id = await a_public_room(alice, version, name="Lobby")
    await send(alice, room_id, "hello")
    before = await sync(alice)
    answer = await make(peer, room_id)
    assert answer.body["room_version"] == version
    template = answer.body["event"]
    assert (template["type"], template["room_id"]) == ("m.room.member", room_id)
    assert template["sender"] == template["state_key"] == peer.user()
    assert template["content"] == {"membership": "join"}

    rules = get_rules(version)
    event = peer.finish(template, rules, content={"membership": "join", "displayname": "Eve"})
    told = (await send_join(peer, room_id, event, version)).body

    assert {**told["event"], "signatures": None} == {**event, "signatures": None}
    ours = SIGNING_KEY.key_id, SIGNING_KEY.public_key
    assert signatures.is_signed_with(event_format.parse(told["event"], rules), server.name, *ours)
    assert set(told["event"]["signatures"]) == {peer.name, server.name}
    assert told["members_omitted"] is False
    given = {(pdu["type"], pdu["state_key"]): pdu for pdu in told["state"]}
    assert ("m.room.member", alice.user_id) in given
    assert given["m.room.name", ""]["content"] == {"name": "Lobby"}
    assert ("m.room.member", peer.user()) not in given  # the state before the join
    after = await sync(alice, since=before["next_batch"])
    assert timeline(after, room_id)[-1]["content"]["displayname"] == "Eve"


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_answer_can_be_verified_from_itself(server: Server, alice: Client, peer: Peer, version: str) -> None:
    room_id = await a_public_room(alice, version)
    for name in ("Alice", "Alicia", "Alison"):  # each cites the one before
        await put_state(
            alice, room_id, "m.room.member", {"membership": "join", "displayname": name}, state_key=alice.user_id
        )
    rules = get_rules(version)
    told = (await send_join(peer, room_id, await member_event(peer, room_id, version), version)).body

    keys = {(ServerName(server.name), SIGNING_KEY.key_id): VerifyKey(public_key=SIGNING_KEY.public_key)}
    pdus = {
        pdu.event_id: signatures.verify(pdu, keys)
        for pdu in (event_format.parse(json, rules) for json in (*told["state"], *told["auth_chain"]))
    }
    chain = {event_format.parse(json, rules).event_id for json in told["auth_chain"]}
    assert len(chain) == len(told["auth_chain"])
    cited = {each for pdu in pdus.values() for each in pdu.auth_event_ids}
    assert cited | set(event_format.parse(told["event"], rules).auth_event_ids) == chain
    assert sum(pdu.type == "m.room.member" for pdu in pdus.values()) == 4


async def test_a_join_is_repeated_without_effect(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)
    first = await send_join(peer, room_id, event)
    before = await sync(alice)

    again = await send_join(peer, room_id, event)
    assert (again.status, again.body) == (200, first.body)
    assert "rooms" not in await sync(alice, since=before["next_batch"])


async def test_old_servers_are_answered_in_an_array(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice, "1")
    event = await member_event(peer, room_id, "1")

    code, told = await peer.ok("PUT", path_for(peer, room_id, event, "1", "v1/send_join"), event)
    assert code == 200
    assert {"state", "auth_chain", "event", "origin"} <= told.keys()


async def test_members_may_be_left_out(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    await put_state(alice, room_id, "m.room.name", {"name": "Lobby"})
    other = await Peer(server).trust()
    assert (await send_join(other, room_id, await member_event(other, room_id))).status == 200

    told = (await send_join(peer, room_id, await member_event(peer, room_id), omit_members="true")).body
    assert told["members_omitted"] is True
    assert sorted(told["servers_in_room"]) == sorted([server.name, other.name])
    types = [pdu["type"] for pdu in told["state"]]
    assert "m.room.create" in types
    assert "m.room.member" not in types
    in_chain = [(pdu["type"], pdu["state_key"]) for pdu in told["auth_chain"]]
    assert in_chain == [("m.room.member", alice.user_id)]  # what else is cited stands in the state


async def test_of_a_room_without_a_name_those_are_told_by_whose_names_it_is_shown(
    server: Server, alice: Client, peer: Peer
) -> None:
    room_id = await a_public_room(alice)
    others = [await Peer(server).trust() for _ in range(6)]
    for each in others:
        assert (await send_join(each, room_id, await member_event(each, room_id))).status == 200

    told = (await send_join(peer, room_id, await member_event(peer, room_id), omit_members="true")).body
    members = {pdu["state_key"] for pdu in told["state"] if pdu["type"] == "m.room.member"}
    assert members == {alice.user_id, *(each.user() for each in others[:4])}
    assert told["members_omitted"] is True


async def test_the_room_goes_on_after_the_join(server: Server, alice: Client, peer: Peer) -> None:
    room_id = await a_public_room(alice)
    event = await member_event(peer, room_id)
    await send_join(peer, room_id, event)
    await send(alice, room_id, "welcome")

    assert await membership_in(server, room_id, peer.user()) == "join"
    newest = (await sync(alice))["rooms"]["join"][room_id]["timeline"]["events"][-1]
    assert newest["content"]["body"] == "welcome"
    assert state(await sync(alice, full_state="true"), room_id) is not None
