"""Creating rooms (Client-Server API, "Creation")."""

import asyncio
from typing import Any

import pytest

from federation.protocol.room_versions import ROOM_VERSIONS
from tests.client import Client, Server, quote, unique
from tests.rooms import create_room, membership_of, pdus_of, state_of

PRESETS = [
    ({"preset": "private_chat"}, ("invite", "shared", "can_join")),
    ({"preset": "trusted_private_chat"}, ("invite", "shared", "can_join")),
    ({"preset": "public_chat"}, ("public", "shared", "forbidden")),
    ({"visibility": "public"}, ("public", "shared", "forbidden")),
    ({"visibility": "private"}, ("invite", "shared", "can_join")),
    ({}, ("invite", "shared", "can_join")),
]


@pytest.mark.parametrize(("body", "expected"), PRESETS)
async def test_a_preset_sets_its_three_entries(
    server: Server, alice: Client, body: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    state = await state_of(server, await create_room(alice, **body))

    assert (
        state["m.room.join_rules", ""]["content"]["join_rule"],
        state["m.room.history_visibility", ""]["content"]["history_visibility"],
        state["m.room.guest_access", ""]["content"]["guest_access"],
    ) == expected


@pytest.mark.parametrize("version", ROOM_VERSIONS)
async def test_the_first_events_come_in_the_specified_order(
    server: Server, alice: Client, bob: Client, version: str
) -> None:
    room_id = await create_room(
        alice,
        room_version=version,
        room_alias_name=unique("order"),
        name="A name",
        topic="A topic",
        initial_state=[
            {"type": "org.example.one", "content": {}},
            {"type": "org.example.two", "state_key": "key", "content": {"a": 1}},
        ],
        invite=[bob.user_id],
    )

    pdus = await pdus_of(server, room_id)
    assert [pdu["type"].removeprefix("m.room.") for pdu in pdus] == [
        "create",
        "member",
        "power_levels",
        "canonical_alias",
        "join_rules",
        "history_visibility",
        "guest_access",
        "org.example.one",
        "org.example.two",
        "name",
        "topic",
        "member",
    ]
    assert (pdus[-1]["state_key"], pdus[-1]["content"]["membership"]) == (bob.user_id, "invite")


@pytest.mark.parametrize("version", ROOM_VERSIONS)
async def test_the_create_event_is_that_of_its_version(server: Server, alice: Client, version: str) -> None:
    room_id = await create_room(alice, room_version=version, creation_content={"creator": "@x:y", "room_version": "x"})

    create = (await pdus_of(server, room_id))[0]
    expected = {"room_version": version}
    if int(version) < 11:
        expected["creator"] = alice.user_id
    assert create["content"] == expected
    if version == "12":
        assert room_id == "!" + create["event_id"][1:]
        assert "room_id" not in create
    else:
        assert (create["room_id"], room_id.endswith(f":{server.name}")) == (room_id, True)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
async def test_the_creator_has_power_by_level_or_by_being_creator(
    server: Server, alice: Client, bob: Client, version: str
) -> None:
    room_id = await create_room(
        alice, room_version=version, preset="trusted_private_chat", invite=[bob.user_id, bob.user_id]
    )

    state = await state_of(server, room_id)
    levels = state["m.room.power_levels", ""]["content"]
    if version == "12":
        assert levels["users"] == {}
        assert levels["events"]["m.room.tombstone"] == 150
        assert state["m.room.create", ""]["content"]["additional_creators"] == [bob.user_id]
    else:
        assert levels["users"] == {alice.user_id: 100, bob.user_id: 100}
        assert "additional_creators" not in state["m.room.create", ""]["content"]


async def test_rooms_are_of_version_12_by_default(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    assert (await pdus_of(server, room_id))[0]["content"] == {"room_version": "12"}


async def test_initial_state_goes_before_presets_and_behind_name_and_topic(server: Server, alice: Client) -> None:
    room_id = await create_room(
        alice,
        preset="private_chat",
        name="given",
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
            {"type": "m.room.name", "content": {"name": "hidden"}},
        ],
    )

    pdus = await pdus_of(server, room_id)
    assert [pdu["content"] for pdu in pdus if pdu["type"] == "m.room.join_rules"] == [{"join_rule": "knock"}]
    assert [pdu["content"] for pdu in pdus if pdu["type"] == "m.room.name"] == [{"name": "given"}]


async def test_a_topic_is_told_in_both_forms(server: Server, alice: Client) -> None:
    state = await state_of(server, await create_room(alice, topic="Weather"))

    assert state["m.room.topic", ""]["content"] == {
        "topic": "Weather",
        "m.topic": {"m.text": [{"body": "Weather", "mimetype": "text/plain"}]},
    }


async def test_power_levels_are_overridden(server: Server, alice: Client) -> None:
    override = {"events_default": 30, "users": {alice.user_id: 101}}
    room_id = await create_room(alice, room_version="11", power_level_content_override=override)

    content = (await state_of(server, room_id))["m.room.power_levels", ""]["content"]
    assert (content["events_default"], content["users"], content["ban"]) == (30, {alice.user_id: 101}, 50)


async def test_invites_to_a_direct_chat_say_so(server: Server, alice: Client, bob: Client) -> None:
    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})

    room_id = await create_room(alice, is_direct=True, invite=[bob.user_id])

    member = (await state_of(server, room_id))["m.room.member", bob.user_id]
    assert member["content"] == {"membership": "invite", "is_direct": True, "displayname": "Bob"}


async def test_an_alias_stands_for_the_new_room(server: Server, alice: Client) -> None:
    name = unique("pub")

    room_id = await create_room(alice, room_alias_name=name)

    alias = f"#{name}:{server.name}"
    body = await alice.ok("GET", f"/v3/directory/room/{quote(alias)}")
    assert body == {"room_id": room_id, "servers": [server.name]}
    assert (await state_of(server, room_id))["m.room.canonical_alias", ""]["content"] == {"alias": alias}


async def test_an_alias_in_use_leaves_nothing_behind(server: Server, alice: Client) -> None:
    name = unique("pub")
    room_id = await create_room(alice, room_alias_name=name)
    async with server.application.database.read() as tx:
        before = await tx.fetch("select room from rooms order by room")

    status, body = await alice.post("/v3/createRoom", {"room_alias_name": name})

    assert (status, body["errcode"]) == (400, "M_ROOM_IN_USE")
    async with server.application.database.read() as tx:
        assert await tx.fetch("select room from rooms order by room") == before
    assert (await alice.ok("GET", "/v3/joined_rooms"))["joined_rooms"] == [room_id]


BAD = [
    ({"room_version": "13"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
    ({"room_version": 12}, 400, "M_BAD_JSON"),
    ({"preset": "open"}, 400, "M_BAD_JSON"),
    ({"visibility": "secret"}, 400, "M_BAD_JSON"),
    ({"invite": "@bob:hearth.test"}, 400, "M_BAD_JSON"),
    ({"invite": ["bob"]}, 400, "M_INVALID_PARAM"),
    ({"initial_state": [{"type": "m.room.name"}]}, 400, "M_BAD_JSON"),
    ({"initial_state": [{"type": "m.room.create", "content": {}}]}, 400, "M_INVALID_ROOM_STATE"),
    ({"creation_content": [1]}, 400, "M_BAD_JSON"),
    ({"creation_content": {"additional_creators": ["nobody"]}}, 400, "M_INVALID_PARAM"),
    ({"room_version": "11", "power_level_content_override": {"users": {}}}, 400, "M_INVALID_ROOM_STATE"),
    ({"power_level_content_override": {"ban": "50"}}, 400, "M_INVALID_ROOM_STATE"),
    ({"room_alias_name": "a:b"}, 400, "M_INVALID_PARAM"),
    ({"name": {"a": "b"}}, 400, "M_BAD_JSON"),
]


@pytest.mark.parametrize(("body", "status", "errcode"), BAD)
async def test_a_room_that_cannot_be_is_refused(alice: Client, body: Any, status: int, errcode: str) -> None:
    answer = await alice.post("/v3/createRoom", body)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)
    assert (await alice.ok("GET", "/v3/joined_rooms"))["joined_rooms"] == []


async def test_who_blocks_invites_is_not_invited(server: Server, alice: Client, bob: Client) -> None:
    path = f"/v3/user/{quote(bob.user_id)}/account_data/m.invite_permission_config"
    await bob.ok("PUT", path, {"default_action": "block"})

    status, body = await alice.post("/v3/createRoom", {"invite": [bob.user_id]})
    assert (status, body["errcode"]) == (403, "M_INVITE_BLOCKED")

    room_id = await create_room(alice)
    status, body = await alice.post(f"/v3/rooms/{room_id}/invite", {"user_id": bob.user_id})
    assert (status, body["errcode"]) == (403, "M_INVITE_BLOCKED")
    await bob.ok("PUT", path, {})
    await alice.ok("POST", f"/v3/rooms/{room_id}/invite", {"user_id": bob.user_id})
    assert await membership_of(server, room_id, bob) == "invite"


async def test_the_same_request_at_once_makes_different_rooms(alice: Client) -> None:
    rooms = await asyncio.gather(*(create_room(alice) for _ in range(8)))

    assert len(set(rooms)) == 8
