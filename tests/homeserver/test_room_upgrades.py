"""Room upgrades (Client-Server API, "Room Upgrades")."""

from typing import Any

import pytest

from federation.protocol.room_versions import ROOM_VERSIONS
from tests.client import Client, Server, quote, unique
from tests.rooms import create_room, join, pdus_of, put_state, send, state_of


async def upgrade(client: Client, room_id: str, version: str, **body: Any) -> str:
    """Upgrade a room: its replacement."""
    answer = await client.ok("POST", f"/v3/rooms/{room_id}/upgrade", {"new_version": version, **body})
    replacement: str = answer["replacement_room"]
    return replacement


@pytest.mark.parametrize(("old", "new"), [*((version, "12") for version in ROOM_VERSIONS), ("12", "11"), ("1", "6")])
async def test_the_new_room_has_the_settings_of_the_old(
    server: Server, alice: Client, bob: Client, old: str, new: str
) -> None:
    room_id = await create_room(
        alice,
        room_version=old,
        preset="public_chat",
        name="The room",
        topic="Its topic",
        creation_content={"type": "m.space", "m.federate": False},
        initial_state=[
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {"type": "m.room.server_acl", "content": {"allow": ["*"]}},
            {"type": "org.example.other", "content": {"a": 1}},
        ],
        power_level_content_override={
            "users": {bob.user_id: 50} if old == "12" else {alice.user_id: 100, bob.user_id: 50}
        },
    )
    before = await state_of(server, room_id)

    replacement = await upgrade(alice, room_id, new)

    after = await state_of(server, replacement)
    for name in ("name", "topic", "encryption", "server_acl", "join_rules", "history_visibility", "guest_access"):
        assert after[f"m.room.{name}", ""]["content"] == before[f"m.room.{name}", ""]["content"]
    assert ("org.example.other", "") not in after
    create = after["m.room.create", ""]["content"]
    assert (create["type"], create["m.federate"], create["room_version"]) == ("m.space", False, new)
    assert create["predecessor"]["room_id"] == room_id
    users = after["m.room.power_levels", ""]["content"]["users"]
    assert users == ({bob.user_id: 50} if new == "12" else {alice.user_id: users[alice.user_id], bob.user_id: 50})
    tombstone = (await state_of(server, room_id))["m.room.tombstone", ""]
    assert tombstone["content"]["replacement_room"] == replacement


async def test_the_old_room_is_locked(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat", room_version="10")
    await join(bob, room_id)
    last = await send(bob, room_id, "the last word")

    replacement = await upgrade(alice, room_id, "11")

    answer = await bob.put(f"/v3/rooms/{room_id}/send/m.room.message/late", {"msgtype": "m.text", "body": "one more"})
    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    create = (await pdus_of(server, replacement))[0]
    assert create["content"]["predecessor"] == {"room_id": room_id, "event_id": last}


async def test_aliases_and_the_place_in_the_directory_move(server: Server, alice: Client) -> None:
    name = unique("moving")
    room_id = await create_room(alice, visibility="public", room_alias_name=name)
    alias = f"#{name}:{server.name}"

    replacement = await upgrade(alice, room_id, "12")

    assert (await alice.ok("GET", f"/v3/directory/room/{quote(alias)}"))["room_id"] == replacement
    assert (await state_of(server, replacement))["m.room.canonical_alias", ""]["content"] == {"alias": alias}
    assert (await state_of(server, room_id))["m.room.canonical_alias", ""]["content"] == {}
    assert await alice.ok("GET", f"/v3/directory/list/room/{room_id}") == {"visibility": "private"}
    assert await alice.ok("GET", f"/v3/directory/list/room/{quote(replacement)}") == {"visibility": "public"}


async def test_additional_creators_are_those_that_the_upgrade_names(server: Server, alice: Client, bob: Client) -> None:
    carol = "@carol:elsewhere.example"
    room_id = await create_room(alice, creation_content={"additional_creators": [carol]})

    replacement = await upgrade(alice, room_id, "12", additional_creators=[bob.user_id])
    older = await upgrade(alice, replacement, "11", additional_creators=["no user"])

    create = (await pdus_of(server, replacement))[0]["content"]
    assert create["additional_creators"] == [bob.user_id]
    assert "additional_creators" not in (await pdus_of(server, older))[0]["content"]


async def test_a_moderator_who_may_upgrade_keeps_their_level(server: Server, alice: Client, bob: Client) -> None:
    levels = {"users": {alice.user_id: 100, bob.user_id: 60}, "events": {"m.room.tombstone": 60}}
    room_id = await create_room(alice, room_version="10", preset="public_chat", power_level_content_override=levels)
    await join(bob, room_id)
    await put_state(alice, room_id, "m.room.server_acl", {"allow": ["*"]})
    await put_state(
        alice, room_id, "m.room.power_levels", {**levels, "events": {**levels["events"], "m.room.server_acl": 100}}
    )

    replacement = await upgrade(bob, room_id, "11")

    state = await state_of(server, replacement)
    assert state["m.room.power_levels", ""]["content"]["users"] == {alice.user_id: 100, bob.user_id: 60}
    assert state["m.room.server_acl", ""]["content"] == {"allow": ["*"]}


async def test_settings_of_members_come_along(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    base = f"/v3/user/{quote(bob.user_id)}"
    await bob.ok("PUT", f"{base}/rooms/{room_id}/tags/m.favourite", {"order": 0.5})
    await bob.ok("PUT", f"/v3/pushrules/global/room/{quote(room_id)}", {"actions": []})
    await bob.ok("PUT", f"{base}/account_data/m.direct", {alice.user_id: [room_id]})

    replacement = await upgrade(alice, room_id, "12")
    await join(bob, replacement)

    tags = await bob.ok("GET", f"{base}/rooms/{quote(replacement)}/tags")
    assert tags == {"tags": {"m.favourite": {"order": 0.5}}}
    assert (await bob.ok("GET", f"/v3/pushrules/global/room/{quote(replacement)}"))["actions"] == []
    assert await bob.ok("GET", f"{base}/account_data/m.direct") == {alice.user_id: [room_id, replacement]}


async def test_who_may_not_upgrade(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    carol = await server.register("carol")
    path = f"/v3/rooms/{room_id}/upgrade"

    for who, body, status, errcode in [
        (bob, {"new_version": "12"}, 403, "M_FORBIDDEN"),
        (carol, {"new_version": "12"}, 403, "M_FORBIDDEN"),
        (alice, {"new_version": "99"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        (alice, {"new_version": 12}, 400, "M_BAD_JSON"),
        (alice, {}, 400, "M_MISSING_PARAM"),
        (alice, {"new_version": "12", "additional_creators": ["x"]}, 400, "M_INVALID_PARAM"),
    ]:
        answer = await who.post(path, body)
        assert (answer.status, answer.body["errcode"]) == (status, errcode)
    assert ("m.room.tombstone", "") not in await state_of(server, room_id)
