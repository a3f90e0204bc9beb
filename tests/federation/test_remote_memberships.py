"""Inviting users of another server, rejecting its invites, knocking at its rooms: two whole servers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol import canonical_json
from tests.client import Client, Server, quote
from tests.federation.authority import Authority
from tests.federation.lying_resident import resident
from tests.federation.peer import path_of
from tests.federation.servers import Pair, federating
from tests.federation.test_joining import create, join, joined, state_of, until_members, until_synced
from tests.federation.test_third_party_invites import IDENTITY, TOKEN, a_promise
from tests.homeserver.syncs import part, sync, token
from tests.protocol.builders import VERSIONS
from tests.rooms import send


@pytest_asyncio.fixture(scope="module")
async def server(maintenance_conninfo: str, authority: Authority) -> AsyncIterator[Server]:
    async with federating(maintenance_conninfo, authority) as running:
        yield running


async def until_part(client: Client, name: str, room: str, since: str | None = None) -> Any:
    """The room's part of a section of a sync."""
    async with asyncio.timeout(15):
        while True:
            answer = await sync(client, since, timeout=3000)
            since = answer["next_batch"]
            if found := part(answer, name, room):
                return found


async def membership(client: Client, room: str, user_id: str) -> Any:
    answer = await client.get(f"/v3/rooms/{quote(room)}/state/m.room.member/{quote(user_id)}")
    return answer.body.get("membership") if answer.status == 200 else answer.status


async def until_membership(client: Client, room: str, user_id: str, wanted: str) -> None:
    async with asyncio.timeout(15):
        found = None
        while found != wanted:
            found = await membership(client, room, user_id)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_user_of_another_server_is_invited_and_comes(pair: Pair, version: str) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, preset="private_chat", room_version=version, name="Secret")
    since = await token(bob)

    invited = await alice.post(f"/v3/rooms/{quote(room)}/invite", {"user_id": bob.user_id})

    assert invited.status == 200, invited.body
    assert await membership(alice, room, bob.user_id) == "invite"
    told = (await until_part(bob, "invite", room, since))["invite_state"]["events"]
    assert {"name": "Secret"} in [event["content"] for event in told]
    await joined(bob, room)
    await until_members(alice, room, {alice.user_id, bob.user_id})
    assert await state_of(bob, room) == await state_of(alice, room)
    await until_synced(bob, room, await send(alice, room, "welcome"))


async def test_a_new_room_invites_users_of_another_server(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")

    room = await create(alice, preset="private_chat", invite=[bob.user_id, "@x:127.0.0.1:1"], is_direct=True)

    invite = (await until_part(bob, "invite", room))["invite_state"]["events"]
    assert [event["content"].get("is_direct") for event in invite if event["type"] == "m.room.member"][-1] is True
    assert await membership(alice, room, "@x:127.0.0.1:1") == 404


async def test_an_invite_of_another_server_is_rejected(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, preset="private_chat")
    await alice.ok("POST", f"/v3/rooms/{quote(room)}/invite", {"user_id": bob.user_id})
    await until_part(bob, "invite", room)
    since = await token(bob)

    await bob.ok("POST", f"/v3/rooms/{quote(room)}/leave", {})

    await until_membership(alice, room, bob.user_id, "leave")
    assert (await until_part(bob, "leave", room, since))["timeline"]["events"][0]["content"]["membership"] == "leave"
    assert part(await sync(bob), "invite", room) == {}
    assert (await bob.post(f"/v3/rooms/{quote(room)}/leave")).status == 200  # nothing happens


async def test_a_user_knocks_and_is_let_in(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = await create(alice, initial_state=[rule], name="Door")
    since = await token(bob)

    knocked = await bob.request("POST", f"/v3/knock/{quote(room)}", {"reason": "hi"}, params={"via": pair.near.name})

    assert knocked.status == 200, knocked.body
    assert await membership(alice, room, bob.user_id) == "knock"
    told = (await until_part(bob, "knock", room, since))["knock_state"]["events"]
    assert {"name": "Door"} in [event["content"] for event in told]
    again = await bob.request("POST", f"/v3/knock/{quote(room)}", {}, params={"via": pair.near.name})
    assert again.status == 200
    await alice.ok("POST", f"/v3/rooms/{quote(room)}/invite", {"user_id": bob.user_id})
    await until_part(bob, "invite", room)
    await joined(bob, room)


async def test_a_knock_is_taken_back(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = await create(alice, initial_state=[rule])
    await bob.request("POST", f"/v3/knock/{quote(room)}", {}, params={"via": pair.near.name})

    await bob.ok("POST", f"/v3/rooms/{quote(room)}/leave", {})

    await until_membership(alice, room, bob.user_id, "leave")
    assert part(await sync(bob), "knock", room) == {}


async def test_a_room_that_knows_no_knocking_is_not_knocked_at(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, room_version="6")

    answer = await bob.request("POST", f"/v3/knock/{quote(room)}", {}, params={"via": pair.near.name})

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_who_was_never_invited_cannot_leave(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice)

    assert (await bob.post(f"/v3/rooms/{quote(room)}/leave")).status == 404


async def test_an_invite_that_the_other_server_does_not_take_is_none(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    room = await create(alice)

    answer = await alice.post(f"/v3/rooms/{quote(room)}/invite", {"user_id": "@nobody:127.0.0.1:1"})

    assert (answer.status, answer.body["errcode"]) == (502, "M_UNKNOWN")
    assert await membership(alice, room, "@nobody:127.0.0.1:1") == 404


async def test_an_account_that_ends_rejects_its_invites(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await create(alice, preset="private_chat")
    await alice.ok("POST", f"/v3/rooms/{quote(room)}/invite", {"user_id": bob.user_id})
    await until_part(bob, "invite", room)

    await bob.ok("POST", "/v3/account/deactivate", {"auth": bob.password_auth()})

    await until_membership(alice, room, bob.user_id, "leave")


async def test_an_invite_is_rejected_here_where_its_server_is_gone(server: Server, authority: Authority) -> None:
    bob = await server.register("bob")
    async with resident(server, authority) as other:
        member = {"membership": "invite"}
        invite = other.room.add("m.room.member", other.user(), member, bob.user_id)
        path = path_of("/v2/invite/{}/{}", other.room_id, invite.event_id)
        create_event = other.room.events[0].json
        body = {"event": invite.json, "invite_room_state": [create_event], "room_version": "11"}
        await other.ok("PUT", path, body)
    await until_part(bob, "invite", other.room_id)

    await bob.ok("POST", f"/v3/rooms/{quote(other.room_id)}/leave", {})

    assert part(await sync(bob), "invite", other.room_id) == {}
    assert (await join(bob, other.room_id)).status == 502


async def test_an_invite_by_address_is_accepted_by_way_of_who_sent_it(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room = await a_promise(alice)
    what = {"mxid": bob.user_id, "sender": alice.user_id, "token": TOKEN}
    signature = IDENTITY.sign(canonical_json.encode(what))
    proof = {**what, "signatures": {"id.example.org": {IDENTITY.key_id: signature}}}

    answer = await bob.post(f"/v3/join/{quote(room)}", {"third_party_signed": proof})

    assert answer.status == 200, answer.body
    assert await state_of(bob, room) == await state_of(alice, room)
