"""What a sync tells of rooms that this server is not in."""

from typing import Any

import orjson

from federation.protocol.types import EventID, RoomID, UserID
from storage.log_entries import Entry
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership
from tests.client import Client, Server, quote, unique
from tests.homeserver.sliding import Sliding, a_list
from tests.homeserver.syncs import sync, token
from tests.rooms import create_room

EVE = "@eve:elsewhere.test"


async def note(server: Server, user: Client, room_id: str, membership: Membership, sender: str = EVE) -> None:
    """Have a membership from outside in the log."""
    event = {
        "type": "m.room.member",
        "sender": sender,
        "state_key": user.user_id,
        "content": {"membership": membership.text},
        "origin_server_ts": 1,
        "room_id": room_id,
        "depth": 7,
    }
    change = OutsideMembership(
        user_id=UserID(user.user_id),
        room_id=RoomID(room_id),
        membership=membership,
        room_version="11",
        event_id=EventID("$" + "e" * 43),
        json=orjson.dumps(event),
        stripped_state=orjson.dumps([{name: event[name] for name in ("type", "sender", "state_key", "content")}]),
    )
    await server.application.log.append(Entry(changes=[change]))


def a_room() -> str:
    return f"!{unique('room')}:elsewhere.test"


def stripped(user: Client, membership: str) -> list[Any]:
    return [{"type": "m.room.member", "sender": EVE, "state_key": user.user_id, "content": {"membership": membership}}]


async def test_an_invite_from_outside_is_told_once(server: Server, alice: Client) -> None:
    room_id, before = a_room(), await sync(alice)
    await note(server, alice, room_id, Membership.INVITE)

    told = await sync(alice, since=before["next_batch"])
    assert told["rooms"]["invite"] == {room_id: {"invite_state": {"events": stripped(alice, "invite")}}}
    assert "rooms" not in await sync(alice, since=told["next_batch"])
    assert list((await sync(alice))["rooms"]["invite"]) == [room_id]


async def test_a_knock_outside_is_told(server: Server, alice: Client) -> None:
    room_id = a_room()
    await note(server, alice, room_id, Membership.KNOCK)

    assert (await sync(alice))["rooms"] == {"knock": {room_id: {"knock_state": {"events": stripped(alice, "knock")}}}}


async def test_an_invite_that_ended_is_a_room_that_was_left(server: Server, alice: Client) -> None:
    room_id = a_room()
    await note(server, alice, room_id, Membership.INVITE)
    before = await sync(alice)
    await note(server, alice, room_id, Membership.LEAVE)

    told = (await sync(alice, since=before["next_batch"]))["rooms"]
    assert list(told) == ["leave"]
    (event,) = told["leave"][room_id]["timeline"]["events"]
    assert event["content"] == {"membership": "leave"}
    assert event["event_id"] == "$" + "e" * 43
    assert "depth" not in event
    assert "rooms" not in await sync(alice)


async def test_an_invite_by_who_is_ignored_is_not_told(server: Server, alice: Client) -> None:
    path = f"/v3/user/{alice.user_id}/account_data/m.ignored_user_list"
    await alice.ok("PUT", path, {"ignored_users": {EVE: {}}})
    await note(server, alice, a_room(), Membership.INVITE)

    assert "rooms" not in await sync(alice)


async def test_no_invite_is_told_to_who_blocks_them(server: Server, alice: Client, bob: Client) -> None:
    outside, here = a_room(), await create_room(bob, invite=[alice.user_id])
    await note(server, alice, outside, Membership.INVITE)
    follows, before = Sliding(alice, {"conn_id": "other", "lists": {"all": a_list()}}), await token(alice)
    assert set((await sync(alice))["rooms"]["invite"]) == {outside, here}
    assert set((await follows.next())["rooms"]) == {outside, here}

    path = f"/v3/user/{quote(alice.user_id)}/account_data/m.invite_permission_config"
    await alice.ok("PUT", path, {"default_action": "block"})
    await note(server, alice, a_room(), Membership.INVITE)

    assert "rooms" not in await sync(alice)
    assert "rooms" not in await sync(alice, since=before)
    assert (await Sliding(alice).next())["rooms"] == {}
    assert (await follows.next())["rooms"] == {}
    assert (await alice.get("/v3/initialSync")).body["rooms"] == []

    await alice.ok("PUT", path, {})
    assert {outside, here} <= set((await sync(alice))["rooms"]["invite"])
    assert len((await alice.get("/v3/initialSync")).body["rooms"]) == 3


async def test_old_clients_are_not_told_of_invites_by_who_is_ignored(
    server: Server, alice: Client, bob: Client
) -> None:
    await create_room(bob, invite=[alice.user_id])
    await note(server, alice, a_room(), Membership.INVITE)
    path = f"/v3/user/{quote(alice.user_id)}/account_data/m.ignored_user_list"
    await alice.ok("PUT", path, {"ignored_users": {EVE: {}, bob.user_id: {}}})

    assert (await alice.get("/v3/initialSync")).body["rooms"] == []


async def test_nobody_else_is_told(server: Server, alice: Client, bob: Client) -> None:
    before = await sync(bob)
    await note(server, alice, a_room(), Membership.INVITE)

    assert "rooms" not in await sync(bob, since=before["next_batch"])
    assert "rooms" not in await sync(bob)


async def test_old_clients_are_told_of_invites(server: Server, alice: Client) -> None:
    room_id = a_room()
    await note(server, alice, room_id, Membership.INVITE)
    await note(server, alice, a_room(), Membership.KNOCK)

    (told,) = (await alice.get("/v3/initialSync")).body["rooms"]
    assert (told["room_id"], told["membership"], told["inviter"]) == (room_id, "invite", EVE)
    assert told["invite"]["state_key"] == alice.user_id
