"""Invites by e-mail address between servers: an identity server says whose the address is, and the inviter invites."""

from typing import Any

import pytest

from federation.protocol import canonical_json
from federation.protocol.event_hashes import encode_base64
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject
from federation.rooms import third_party_invites
from tests.client import Answer, Client, Server
from tests.federation.handshakes import membership_in, refusal
from tests.federation.peer import Peer, path_of
from tests.federation.servers import Pair
from tests.homeserver.syncs import sync
from tests.rooms import create_room, join, put_state, state_of

IDENTITY = SigningKey.from_seed("0", b"i" * 32)
TOKEN = "token"
PROMISE = {
    "display_name": "b...@example.org",
    "key_validity_url": "https://id.example.org/valid",
    "public_key": encode_base64(IDENTITY.public_key),
}
FORBIDDEN = (403, "M_FORBIDDEN")
INVALID = (400, "M_INVALID_PARAM")


async def a_promise(owner: Client) -> str:
    """A private room with an invite to an e-mail address."""
    room_id = await create_room(owner)
    await put_state(owner, room_id, "m.room.third_party_invite", PROMISE, TOKEN)
    return room_id


def signed(mxid: str, token: str = TOKEN) -> JsonObject:
    """What the identity server signs when the address is bound."""
    what = {"mxid": mxid, "token": token}
    signature = IDENTITY.sign(canonical_json.encode(what))
    return {**what, "signatures": {"id.example.org": {IDENTITY.key_id: signature}}}


async def bind(server: Server, room_id: str, sender: str, mxid: str, method: str = "POST", /, **changes: Any) -> Answer:
    """The identity server tells of the binding."""
    about = {"medium": "email", "address": "bob@example.org", "mxid": mxid}
    invite = {**about, "room_id": room_id, "sender": sender, "signed": signed(mxid), **changes}
    path = "/_matrix/federation/v1/3pid/onbind"
    return await server.anonymous.request(method, path, {**about, "invites": [invite]})


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_who_owns_the_address_here_is_invited(server: Server, alice: Client, bob: Client, method: str) -> None:
    room_id = await a_promise(alice)

    answer = await bind(server, room_id, alice.user_id, bob.user_id, method)
    assert (answer.status, answer.body) == (200, {})
    assert list((await sync(bob))["rooms"]["invite"]) == [room_id]
    member = (await state_of(server, room_id))["m.room.member", bob.user_id]
    assert member["sender"] == alice.user_id
    assert member["content"]["third_party_invite"] == {
        "display_name": PROMISE["display_name"],
        "signed": signed(bob.user_id),
    }
    assert (await bind(server, room_id, alice.user_id, bob.user_id, method)).status == 200  # again
    await join(bob, room_id)


async def test_notices_that_prove_nothing(server: Server, alice: Client, bob: Client) -> None:
    room_id = await a_promise(alice)
    carol = await server.register("carol")
    forged = {**signed(bob.user_id), "signatures": {"id.example.org": {IDENTITY.key_id: encode_base64(bytes(64))}}}
    attempts: list[dict[str, Any]] = [
        {"signed": forged},
        {"signed": signed(carol.user_id)},
        {"signed": signed(bob.user_id, "another")},
        {"signed": {**signed(bob.user_id), "signatures": []}},
        {"signed": None},
        {"sender": bob.user_id},
        {"sender": 5},
        {"room_id": "!nothing:hearth.test"},
        {"mxid": f"@nobody:{server.name}", "signed": signed(f"@nobody:{server.name}")},
    ]

    for changes in attempts:
        answer = await bind(server, room_id, alice.user_id, bob.user_id, **changes)
        assert answer.status == 200
        assert await membership_in(server, room_id, bob.user_id) is None, changes
    path = "/_matrix/federation/v1/3pid/onbind"
    assert (await server.anonymous.request("POST", path, {"invites": {}})).status == 400
    assert (await server.anonymous.request("POST", path, {"invites": [None, 5, {}]})).status == 200


async def test_who_owns_the_address_elsewhere_is_invited_and_joins(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room_id = await a_promise(alice)

    assert (await bind(pair.far, room_id, alice.user_id, bob.user_id)).status == 200

    member = (await state_of(pair.near, room_id))["m.room.member", bob.user_id]
    assert member["sender"] == alice.user_id
    assert member["content"]["third_party_invite"]["signed"] == signed(bob.user_id)
    assert set(member["signatures"]) == {pair.near.name, pair.far.name}
    assert list((await sync(bob))["rooms"]["invite"]) == [room_id]
    await join(bob, room_id)
    assert await membership_in(pair.near, room_id, bob.user_id) == "join"


@pytest.mark.one_process("a limit is lowered here")
async def test_few_servers_at_once_are_asked_for_strangers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    carol = await pair.far.register("carol")
    elsewhere, here = await a_promise(alice), await a_promise(carol)
    monkeypatch.setattr(third_party_invites, "MAX_ASKING", 0)

    refused = await bind(pair.far, elsewhere, alice.user_id, bob.user_id)
    assert (refused.status, refused.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert (await bind(pair.far, here, carol.user_id, bob.user_id)).status == 200
    assert await membership_in(pair.far, here, bob.user_id) == "invite"


# --- what a server may ask for


def a_request(room_id: str, sender: str, target: str, /, **changes: Any) -> JsonObject:
    invite = {"display_name": "bob", "signed": signed(target)}
    return {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": sender,
        "state_key": target,
        "content": {"membership": "invite", "third_party_invite": invite},
        **changes,
    }


async def exchange(peer: Peer, room_id: str, body: Any) -> Answer:
    return await peer.request("PUT", path_of("/v1/exchange_third_party_invite/{}", room_id), body)


async def test_requests_that_are_refused(server: Server, alice: Client, bob: Client, peer: Peer) -> None:
    room_id, other = await a_promise(alice), await create_room(alice)
    eve = peer.user()
    genuine = a_request(room_id, alice.user_id, eve)
    forged = {**signed(eve), "signatures": {"id.example.org": {IDENTITY.key_id: encode_base64(bytes(64))}}}
    content = {"membership": "invite", "third_party_invite": {"display_name": "x", "signed": forged}}
    cases: list[tuple[str, JsonObject, tuple[int, str]]] = [
        (other, genuine, INVALID),
        (other, {**genuine, "room_id": other}, FORBIDDEN),
        (room_id, {**genuine, "type": "m.room.name"}, INVALID),
        (room_id, {**genuine, "content": {**genuine["content"], "membership": "join"}}, INVALID),
        (room_id, {**genuine, "content": content}, FORBIDDEN),
        (room_id, {**genuine, "content": {"membership": "invite"}}, (400, "M_MISSING_PARAM")),
        (room_id, {**genuine, "sender": bob.user_id}, FORBIDDEN),
        (room_id, {**genuine, "sender": eve}, FORBIDDEN),
        (room_id, {**genuine, "state_key": "@mallory:" + peer.name}, INVALID),
        (room_id, a_request(room_id, alice.user_id, bob.user_id), FORBIDDEN),
        ("!nothing:hearth.test", {**genuine, "room_id": "!nothing:hearth.test"}, (404, "M_NOT_FOUND")),
    ]

    for path, body, expected in cases:
        assert refusal(await exchange(peer, path, body)) == expected, body
    await put_state(alice, room_id, "m.room.server_acl", {"allow": [server.name]})
    assert refusal(await exchange(peer, room_id, genuine)) == FORBIDDEN
    for user_id in (eve, bob.user_id):
        assert await membership_in(server, room_id, user_id) is None
