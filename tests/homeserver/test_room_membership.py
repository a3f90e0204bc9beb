"""Memberships (Client-Server API, "Room membership"): every transition, and who may make it."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol import canonical_json
from federation.protocol.event_hashes import encode_base64
from federation.protocol.signatures import SigningKey
from tests.client import Client, Server, quote
from tests.homeserver.syncs import sync
from tests.rooms import create_room, join, membership_of, pdus_of, put_state, send, state_of

MEMBERSHIPS = ("leave", "invite", "knock", "join", "ban")


@pytest_asyncio.fixture
async def room(alice: Client) -> str:
    """A room of alice's that can be knocked on."""
    return await create_room(
        alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}], room_version="11"
    )


async def act(room_id: str, who: Client, action: str, target: Client | None = None) -> Any:
    """Do one thing to a membership."""
    path = f"/v3/knock/{quote(room_id)}" if action == "knock" else f"/v3/rooms/{room_id}/{action}"
    return await who.post(path, {} if target is None else {"user_id": target.user_id})


async def bring_to(room_id: str, alice: Client, bob: Client, membership: str) -> None:
    """Give bob a membership; `leave` is that of who was never there."""
    steps: dict[str, list[tuple[Client, str, Client | None]]] = {
        "leave": [],
        "invite": [(alice, "invite", bob)],
        "knock": [(bob, "knock", None)],
        "join": [(alice, "invite", bob), (bob, "join", None)],
        "ban": [(alice, "ban", bob)],
    }
    for who, action, target in steps[membership]:
        answer = await act(room_id, who, action, target)
        assert answer.status == 200, answer.body


Case = tuple[str, str, int, str]
"""The membership before, what is done, the answer's status, the membership after."""


def _name(case: Case) -> str:
    return f"{case[0]}-{case[1]}"


OWN: list[Case] = [
    ("leave", "join", 403, "leave"),
    ("invite", "join", 200, "join"),
    ("knock", "join", 403, "knock"),
    ("join", "join", 200, "join"),
    ("ban", "join", 403, "ban"),
    ("leave", "leave", 403, "leave"),
    ("invite", "leave", 200, "leave"),
    ("knock", "leave", 200, "leave"),
    ("join", "leave", 200, "leave"),
    ("ban", "leave", 403, "ban"),
    ("leave", "knock", 200, "knock"),
    ("invite", "knock", 403, "invite"),
    ("knock", "knock", 200, "knock"),
    ("join", "knock", 403, "join"),
    ("ban", "knock", 403, "ban"),
]


@pytest.mark.parametrize("case", OWN, ids=_name)
async def test_what_one_does_to_oneself(server: Server, alice: Client, bob: Client, room: str, case: Case) -> None:
    before, action, status, after = case
    await bring_to(room, alice, bob, before)

    answer = await act(room, bob, action)

    assert (answer.status, await membership_of(server, room, bob) or "leave") == (status, after)
    if status == 403:
        assert answer.body["errcode"] == "M_FORBIDDEN"


OTHERS: list[Case] = [
    *((before, "invite", 200, "invite") for before in ("leave", "invite", "knock")),
    ("join", "invite", 403, "join"),
    ("ban", "invite", 403, "ban"),
    ("leave", "kick", 403, "leave"),
    *((before, "kick", 200, "leave") for before in ("invite", "knock", "join")),
    ("ban", "kick", 403, "ban"),
    *((before, "ban", 200, "ban") for before in MEMBERSHIPS),
    *((before, "unban", 403, before) for before in ("leave", "invite", "knock", "join")),
    ("ban", "unban", 200, "leave"),
]


@pytest.mark.parametrize("case", OTHERS, ids=_name)
async def test_what_an_administrator_does_to_others(
    server: Server, alice: Client, bob: Client, room: str, case: Case
) -> None:
    before, action, status, after = case
    await bring_to(room, alice, bob, before)

    answer = await act(room, alice, action, bob)

    assert (answer.status, await membership_of(server, room, bob) or "leave") == (status, after)
    if status == 403:
        assert answer.body["errcode"] == "M_FORBIDDEN"


@pytest.mark.parametrize("action", ["kick", "ban", "unban"])
async def test_a_member_without_power_may_not_remove_others(
    server: Server, alice: Client, bob: Client, room: str, action: str
) -> None:
    carol = await server.register("carol")
    await bring_to(room, alice, carol, "join")
    await bring_to(room, alice, bob, "ban" if action == "unban" else "join")
    before = await membership_of(server, room, bob)

    answer = await act(room, carol, action, bob)

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    assert await membership_of(server, room, bob) == before


@pytest.mark.parametrize("action", ["invite", "kick", "ban", "unban"])
async def test_who_is_not_in_the_room_does_nothing_to_others(
    alice: Client, bob: Client, server: Server, room: str, action: str
) -> None:
    carol = await server.register("carol")
    await bring_to(room, alice, carol, "invite")

    answer = await act(room, bob, action, carol)

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    assert await membership_of(server, room, carol) == "invite"


async def test_asking_for_what_is_so_makes_no_event(server: Server, alice: Client, bob: Client, room: str) -> None:
    await bring_to(room, alice, bob, "join")
    before = len(await pdus_of(server, room))

    await join(bob, room)
    await bob.ok("POST", f"/v3/rooms/{room}/join", {"reason": "again"})
    await bob.ok("POST", f"/v3/rooms/{room}/leave")
    await bob.ok("POST", f"/v3/rooms/{room}/leave")

    assert len(await pdus_of(server, room)) == before + 1


@pytest.mark.parametrize("action", ["invite", "join", "leave", "kick", "ban", "unban", "knock"])
async def test_a_reason_stands_in_the_event(server: Server, alice: Client, bob: Client, room: str, action: str) -> None:
    before = {"join": "invite", "leave": "join", "kick": "join", "unban": "ban"}.get(action, "leave")
    await bring_to(room, alice, bob, before)
    who = bob if action in ("join", "leave", "knock") else alice
    path = f"/v3/knock/{quote(room)}" if action == "knock" else f"/v3/rooms/{room}/{action}"

    await who.ok("POST", path, {"reason": "because", **({} if who is bob else {"user_id": bob.user_id})})

    member = (await state_of(server, room))["m.room.member", bob.user_id]
    assert member["content"]["reason"] == "because"


async def test_a_member_event_carries_the_profile_and_follows_it(server: Server, alice: Client, bob: Client) -> None:
    profile = f"/v3/profile/{quote(bob.user_id)}"
    await bob.ok("PUT", f"{profile}/displayname", {"displayname": "Bob"})
    rooms = [await create_room(alice, preset="public_chat") for _ in range(3)]
    for room_id in rooms:
        await join(bob, room_id)

    await bob.ok("PUT", f"{profile}/displayname", {"displayname": "Robert"})

    for room_id in rooms:
        names = [
            pdu["content"]["displayname"]
            for pdu in await pdus_of(server, room_id, "m.room.member")
            if pdu["sender"] == bob.user_id
        ]
        assert names == ["Bob", "Robert"]


async def test_joining_by_alias_and_with_unknown_names(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    alias = f"#{room_id[1:12].lower()}:{server.name}"
    await alice.ok("PUT", f"/v3/directory/room/{quote(alias)}", {"room_id": room_id})

    assert await join(bob, alias) == room_id
    for name in (f"#none:{server.name}", f"!none:{server.name}"):
        answer = await bob.post(f"/v3/join/{quote(name)}")
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
    answer = await bob.post("/v3/join/nothing")
    assert answer.status in (400, 404)


async def test_a_room_is_forgotten_once_it_is_left(alice: Client, bob: Client, room: str) -> None:
    await bring_to(room, alice, bob, "join")

    status, body = await bob.post(f"/v3/rooms/{room}/forget")
    assert (status, body["errcode"]) == (400, "M_UNKNOWN")

    await bob.ok("POST", f"/v3/rooms/{room}/leave")
    await bob.ok("POST", f"/v3/rooms/{room}/forget")
    assert (await bob.ok("GET", "/v3/joined_rooms"))["joined_rooms"] == []


async def test_joined_rooms_are_those_one_is_in(alice: Client, bob: Client) -> None:
    rooms = [await create_room(alice, preset="public_chat") for _ in range(3)]
    await create_room(alice, invite=[bob.user_id])
    for room_id in rooms:
        await join(bob, room_id)
    await bob.ok("POST", f"/v3/rooms/{rooms[0]}/leave")

    assert sorted((await bob.ok("GET", "/v3/joined_rooms"))["joined_rooms"]) == sorted(rooms[1:])


@pytest.mark.parametrize(
    ("version", "join_rule"), [("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")]
)
async def test_a_restricted_room_is_open_to_members_of_another(
    server: Server, alice: Client, bob: Client, version: str, join_rule: str
) -> None:
    carol = await server.register("carol")
    space = await create_room(alice, preset="public_chat")
    allow = [{"type": "m.room_membership", "room_id": space}, {"type": "org.example.unknown"}]
    rule = {"type": "m.room.join_rules", "content": {"join_rule": join_rule, "allow": allow}}
    room_id = await create_room(alice, room_version=version, initial_state=[rule])
    await join(bob, space)

    await join(bob, room_id)

    member = (await state_of(server, room_id))["m.room.member", bob.user_id]
    assert member["content"]["join_authorised_via_users_server"] == alice.user_id
    answer = await carol.post(f"/v3/join/{quote(room_id)}")
    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"/v3/rooms/{room_id}/invite", {"user_id": carol.user_id})
    await join(carol, room_id)


async def test_nobody_gets_into_a_restricted_room_on_a_made_up_authority(alice: Client, bob: Client) -> None:
    rule = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": []}}
    room_id = await create_room(alice, initial_state=[rule])

    answer = await bob.put(
        f"/v3/rooms/{room_id}/state/m.room.member/{quote(bob.user_id)}",
        {"membership": "join", "join_authorised_via_users_server": alice.user_id},
    )

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_memberships_set_as_state_obey_the_same_rules(
    server: Server, alice: Client, bob: Client, room: str
) -> None:
    await put_state(alice, room, "m.room.member", {"membership": "invite"}, bob.user_id)
    await put_state(bob, room, "m.room.member", {"membership": "join", "displayname": "Here only"}, bob.user_id)
    assert (await state_of(server, room))["m.room.member", bob.user_id]["content"]["displayname"] == "Here only"

    await put_state(bob, room, "m.room.member", {"membership": "join"}, bob.user_id)
    assert (await state_of(server, room))["m.room.member", bob.user_id]["content"] == {"membership": "join"}
    answer = await bob.put(f"/v3/rooms/{room}/state/m.room.member/{quote(bob.user_id)}", {"membership": "here"})
    assert (answer.status, answer.body["errcode"]) == (400, "M_BAD_JSON")
    await put_state(alice, room, "m.room.member", {"membership": "leave"}, bob.user_id)
    assert await membership_of(server, room, bob) == "leave"


async def test_who_has_left_sends_nothing(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    await send(bob, room_id, "hello")
    await bob.ok("POST", f"/v3/rooms/{room_id}/leave")

    for path in ("send/m.room.message/x1", "state/m.room.topic"):
        answer = await bob.put(f"/v3/rooms/{room_id}/{path}", {"msgtype": "m.text", "body": "x"})
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_guest_joins_where_guests_may(server: Server, alice: Client) -> None:
    tokens = await server.anonymous.ok("POST", "/v3/register?kind=guest", {})
    guest = server.anonymous.logged_in(tokens)
    opened = await create_room(
        alice,
        preset="public_chat",
        initial_state=[{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}],
    )
    closed = await create_room(alice, preset="public_chat")

    await join(guest, opened)
    answer = await guest.post(f"/v3/join/{quote(closed)}")

    assert (answer.status, answer.body["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert (await guest.post("/v3/createRoom")).status == 403


@pytest.mark.parametrize("delay", ["", "?org.matrix.msc4140.delay=1"])
async def test_guests_leave_when_a_room_closes_to_them(server: Server, alice: Client, bob: Client, delay: str) -> None:
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register?kind=guest", {}))
    can_join = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
    room_id = await create_room(alice, preset="public_chat", initial_state=[can_join])
    await join(guest, room_id)
    await join(bob, room_id)
    answer = await sync(guest)

    path = f"/v3/rooms/{quote(room_id)}/state/m.room.guest_access/{delay}"
    await alice.ok("PUT", path, {"guest_access": "forbidden"})

    async with asyncio.timeout(30):
        while room_id not in answer.get("rooms", {}).get("leave", {}):
            answer = await sync(guest, answer["next_batch"], timeout=5000)
    assert [await membership_of(server, room_id, user) for user in (guest, bob)] == ["leave", "join"]


async def test_a_deactivated_user_is_in_no_room(server: Server, alice: Client, bob: Client) -> None:
    joined = await create_room(alice, preset="public_chat")
    await join(bob, joined)
    invited = await create_room(alice, invite=[bob.user_id])

    await bob.ok("POST", "/v3/account/deactivate", {"auth": bob.password_auth()})

    assert [await membership_of(server, room_id, bob) for room_id in (joined, invited)] == ["leave", "leave"]


@pytest.mark.parametrize("action", ["invite", "kick", "ban", "unban"])
async def test_who_is_meant_must_be_said(alice: Client, room: str, action: str) -> None:
    missing = await alice.post(f"/v3/rooms/{room}/{action}", {})
    malformed = await alice.post(f"/v3/rooms/{room}/{action}", {"user_id": "bob"})

    assert (missing.status, missing.body["errcode"]) == (400, "M_MISSING_PARAM")
    assert (malformed.status, malformed.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_third_party_invite_is_accepted_with_its_signature(server: Server, alice: Client, bob: Client) -> None:
    key = SigningKey.from_seed("0", bytes(range(32)))
    room_id = await create_room(alice)
    promise = {"display_name": "b...@example.org", "public_key": encode_base64(key.public_key)}
    await put_state(alice, room_id, "m.room.third_party_invite", promise, "token")
    signed = {"mxid": bob.user_id, "sender": alice.user_id, "token": "token"}
    signature = key.sign(canonical_json.encode(signed))

    forged = {**signed, "signatures": {"id.example.org": {key.key_id: encode_base64(bytes(64))}}}
    answer = await bob.post(f"/v3/rooms/{room_id}/join", {"third_party_signed": forged})
    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")

    genuine = {**signed, "signatures": {"id.example.org": {key.key_id: signature}}}
    await bob.ok("POST", f"/v3/rooms/{room_id}/join", {"third_party_signed": genuine})
    assert await membership_of(server, room_id, bob) == "join"


async def test_who_comes_and_goes_is_never_taken_for_a_user_of_another_server(server: Server) -> None:
    users = [await server.register(name) for name in ("a", "b", "c")]
    room_id = await create_room(users[0], preset="public_chat")
    await users[0].ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})

    async def come_and_go(user: Client) -> None:
        for _ in range(20):  # often there is nobody left, and often somebody comes in just then
            await user.ok("POST", f"/v3/rooms/{quote(room_id)}/join", {})
            await user.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})

    await asyncio.gather(*map(come_and_go, users))
