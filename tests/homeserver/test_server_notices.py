"""What administrators tell users in rooms that the server keeps."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import UserID
from homeserver.config import ServerNotices
from tests.client import Client, Server, quote
from tests.homeserver.test_sync_equivalence import at
from tests.rooms import join
from tests.servers import running

PATH = "/_synapse/admin/v1/send_server_notice"
NOTICE = {"msgtype": "m.server_notice", "body": "Tea", "server_notice_type": "m.server_notice.usage_limit_reached"}
SENDER = "@notices:hearth.test"


@pytest_asyncio.fixture
async def noticing(conninfo: str) -> AsyncIterator[tuple[Server, Client]]:
    """A server with notices, and an administrator."""
    async with running(conninfo, server_notices=ServerNotices(sender="notices")) as server:
        yield server, await an_admin(server)


async def an_admin(server: Server) -> Client:
    admin = await server.register("admin")
    await server.application.accounts.service.set_admin(UserID(admin.user_id), is_admin=True)
    return admin


async def sync(client: Client) -> Any:
    return await client.ok("GET", "/v3/sync")


def notice_for(user: Client, **fields: Any) -> dict[str, Any]:
    return {"user_id": user.user_id, "content": NOTICE, **fields}


async def test_a_user_is_invited_to_one_room_of_notices(noticing: tuple[Server, Client]) -> None:
    server, admin = noticing
    alice = await server.register("alice")

    first = await admin.ok("POST", PATH, notice_for(alice))
    second = await admin.ok("PUT", f"{PATH}/txn", notice_for(alice))
    again = await admin.ok("PUT", f"{PATH}/txn", notice_for(alice))

    assert again == second != first
    ((room_id, invited),) = (await sync(alice))["rooms"]["invite"].items()
    state = {(event["type"], event["state_key"]): event for event in invited["invite_state"]["events"]}
    assert state["m.room.member", alice.user_id]["sender"] == SENDER
    assert state["m.room.name", ""]["content"]["name"] == "Server notices"
    assert (await alice.ok("GET", f"/v3/user/{quote(alice.user_id)}/rooms/{quote(room_id)}/tags"))["tags"] == {
        "m.server_notice": {}
    }
    await join(alice, room_id)
    joined = (await sync(alice))["rooms"]["join"][room_id]
    told = [event for event in joined["timeline"]["events"] if event["type"] == "m.room.message"]
    assert [(event["event_id"], event["sender"], event["content"]) for event in told] == [
        (first["event_id"], SENDER, NOTICE),
        (second["event_id"], SENDER, NOTICE),
    ]
    path = f"/v3/rooms/{quote(room_id)}"
    refused = await alice.put(f"{path}/send/m.room.message/1", {"msgtype": "m.text", "body": "Hello?"})
    assert (refused.status, refused.body["errcode"]) == (403, "M_FORBIDDEN")
    pinned = notice_for(alice, type="m.room.pinned_events", state_key="", content={"pinned": [first["event_id"]]})
    await admin.ok("POST", PATH, pinned)
    assert (await alice.ok("GET", f"{path}/state/m.room.pinned_events/"))["pinned"] == [first["event_id"]]


async def test_its_invite_cannot_be_rejected_and_who_left_is_invited_again(noticing: tuple[Server, Client]) -> None:
    server, admin = noticing
    alice = await server.register("alice")
    await admin.ok("POST", PATH, notice_for(alice))
    (room_id,) = (await sync(alice))["rooms"]["invite"]
    path = f"/v3/rooms/{quote(room_id)}"

    for answer in (
        await alice.post(f"{path}/leave"),
        await alice.put(f"{path}/state/m.room.member/{quote(alice.user_id)}", {"membership": "leave"}),
    ):
        assert (answer.status, answer.body["errcode"]) == (403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")

    await join(alice, room_id)
    await alice.ok("POST", f"{path}/leave", {})
    await admin.ok("POST", PATH, notice_for(alice))
    assert list((await sync(alice))["rooms"]["invite"]) == [room_id]


async def test_who_takes_no_invites_gets_notices_all_the_same(noticing: tuple[Server, Client]) -> None:
    server, admin = noticing
    alice = await server.register("alice")
    bob = await server.register("bob")
    await admin.ok("POST", PATH, notice_for(bob))
    (invited,) = (await sync(bob))["rooms"]["invite"]
    for user in (alice, bob):
        blocking = f"/v3/user/{quote(user.user_id)}/account_data/m.invite_permission_config"
        await user.ok("PUT", blocking, {"default_action": "block"})

    for user in (alice, bob):
        await admin.ok("POST", PATH, notice_for(user))

    assert len((await sync(alice))["rooms"]["join"]) == 1
    assert list((await sync(bob))["rooms"]["join"]) == [invited]
    await alice.ok("POST", "/v3/account/deactivate", {"auth": alice.password_auth()})
    assert (await admin.post(PATH, notice_for(alice))).status == 404


async def test_users_can_be_in_the_room_at_once(conninfo: str) -> None:
    async with running(conninfo, server_notices=ServerNotices(sender="notices", auto_join=True)) as server:
        admin, alice = await an_admin(server), await server.register("alice")
        await admin.ok("POST", PATH, notice_for(alice))
        (room_id,) = (await sync(alice))["rooms"]["join"]
        await alice.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})
        await admin.ok("POST", PATH, notice_for(alice))
        assert list((await sync(alice))["rooms"]["join"]) == [room_id]


@pytest.mark.one_process("each of its two servers is one")
async def test_two_processes_make_one_room(conninfo: str) -> None:
    settings = ServerNotices(sender="notices")
    async with (
        running(conninfo, server_notices=settings) as one,
        running(conninfo, server_notices=settings) as other,
    ):
        admin, alice = await an_admin(one), await one.register("alice")
        answers = await asyncio.gather(
            *(at(server, admin).post(PATH, notice_for(alice)) for server in (one, other, one, other))
        )
        assert [answer.status for answer in answers] == [200] * 4
        assert len((await sync(alice))["rooms"]["invite"]) == 1


async def test_nobody_is_the_sender(noticing: tuple[Server, Client]) -> None:
    server, admin = noticing
    registering = {"username": "notices", "password": "guess me twice", "auth": {"type": "m.login.dummy"}}
    taken = await server.anonymous.post("/v3/register", registering)
    assert (taken.status, taken.body["errcode"]) == (400, "M_USER_IN_USE")
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "notices"}, "password": ""}
    assert (await server.anonymous.post("/v3/login", login)).status == 403
    sender = dataclasses.replace(admin, user_id=SENDER)
    assert (await admin.post(PATH, notice_for(sender))).status == 400


@pytest.mark.parametrize(
    ("fields", "status", "errcode"),
    [
        ({"user_id": "@x:elsewhere.test"}, 400, "M_INVALID_PARAM"),
        ({"user_id": "@nobody-here:hearth.test"}, 404, "M_NOT_FOUND"),
        ({"user_id": 5}, 400, "M_BAD_JSON"),
        ({"content": None}, 400, "M_MISSING_PARAM"),
        ({"content": "x"}, 400, "M_BAD_JSON"),
        ({"type": "m.room.member", "state_key": "@x:y"}, 400, "M_INVALID_PARAM"),
        ({"type": "a\0b"}, 400, "M_BAD_JSON"),
        ({"type": "a", "state_key": "a\0b"}, 400, "M_INVALID_PARAM"),
        ({"type": "x" * 256}, 413, "M_TOO_LARGE"),
        ({"content": {"body": "x" * 70_000}}, 413, "M_TOO_LARGE"),
    ],
)
async def test_notices_that_make_no_sense(
    noticing: tuple[Server, Client], fields: dict[str, Any], status: int, errcode: str
) -> None:
    server, admin = noticing
    alice = await server.register("alice")
    answer = await admin.post(PATH, notice_for(alice, **fields))
    assert (answer.status, answer.body["errcode"]) == (status, errcode)
    assert (await alice.post(PATH, notice_for(alice))).status == 403


async def test_without_a_sender_there_are_none(server: Server, admin: Client, alice: Client) -> None:
    answer = await admin.post(PATH, notice_for(alice))
    assert (answer.status, answer.body["errcode"]) == (400, "M_UNKNOWN")
