"""Aliases and published rooms (Client-Server API, "Room aliases", "Published room directory")."""

from typing import Any

import pytest

from federation.protocol.types import UserID
from homeserver.services import room_directory
from tests.client import Client, Server, quote, unique
from tests.rooms import create_room, join, put_state, state_of


def alias_on(server: Server, name: str | None = None) -> str:
    """An alias that no other test uses."""
    return f"#{name or unique('alias')}:{server.name}"


async def test_an_alias_is_made_listed_and_deleted(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice)
    alias = alias_on(server)
    path = f"/v3/directory/room/{quote(alias)}"

    await alice.ok("PUT", path, {"room_id": room_id})

    assert (await server.anonymous.ok("GET", path))["room_id"] == room_id
    assert (await alice.ok("GET", f"/v3/rooms/{room_id}/aliases"))["aliases"] == [alias]
    assert (await bob.get(f"/v3/rooms/{room_id}/aliases")).status == 403
    status, body = await alice.put(path, {"room_id": room_id})
    assert (status, body["errcode"]) == (409, "M_UNKNOWN")
    assert (await bob.delete(path)).status == 403
    await alice.ok("DELETE", path)
    status, body = await alice.get(path)
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")
    assert (await alice.delete(path)).status == 404


@pytest.mark.parametrize("alias", ["nothing", "#nodomain", "#other:elsewhere.example", "!room:hearth.test"])
async def test_what_is_no_alias_of_this_server_is_refused(alice: Client, alias: str) -> None:
    room_id = await create_room(alice)

    answer = await alice.put(f"/v3/directory/room/{quote(alias)}", {"room_id": room_id})

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_moderator_deletes_an_alias_and_the_room_forgets_it(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    alias, other = alias_on(server), alias_on(server)
    for each in (alias, other):
        await bob.ok("PUT", f"/v3/directory/room/{quote(each)}", {"room_id": room_id})
    await put_state(alice, room_id, "m.room.canonical_alias", {"alias": alias, "alt_aliases": [alias, other]})

    await alice.ok("DELETE", f"/v3/directory/room/{quote(alias)}")

    assert (await state_of(server, room_id))["m.room.canonical_alias", ""]["content"] == {"alt_aliases": [other]}


async def test_a_world_readable_room_tells_everybody_its_aliases(server: Server, alice: Client, bob: Client) -> None:
    visibility = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    name = unique("open")
    room_id = await create_room(alice, room_alias_name=name, initial_state=[visibility])

    assert (await bob.ok("GET", f"/v3/rooms/{room_id}/aliases"))["aliases"] == [alias_on(server, name)]


CANONICAL: list[tuple[Any, int, str]] = [
    ({"alias": "#none:hearth.test"}, 400, "M_BAD_ALIAS"),
    ({"alt_aliases": ["#none:hearth.test"]}, 400, "M_BAD_ALIAS"),
    ({"alias": "nothing"}, 400, "M_INVALID_PARAM"),
    ({"alt_aliases": ["#a b"]}, 400, "M_INVALID_PARAM"),
    ({"alt_aliases": [1]}, 400, "M_BAD_JSON"),
    ({"alt_aliases": "#none:hearth.test"}, 400, "M_BAD_JSON"),
]


@pytest.mark.parametrize(("content", "status", "errcode"), CANONICAL)
async def test_a_canonical_alias_must_be_the_rooms(alice: Client, content: Any, status: int, errcode: str) -> None:
    room_id = await create_room(alice)

    answer = await alice.put(f"/v3/rooms/{room_id}/state/m.room.canonical_alias", content)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)


async def test_a_canonical_alias_that_was_there_may_stay(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    alias = alias_on(server)
    await alice.ok("PUT", f"/v3/directory/room/{quote(alias)}", {"room_id": room_id})
    await put_state(alice, room_id, "m.room.canonical_alias", {"alias": alias})
    async with server.application.database.transaction() as tx:  # as other servers' aliases go away
        await tx.execute("delete from room_aliases where alias = %s", (alias,))

    await put_state(alice, room_id, "m.room.canonical_alias", {"alt_aliases": [alias]})


async def test_visibility_is_set_by_who_may_direct_the_room(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    path = f"/v3/directory/list/room/{room_id}"
    assert await bob.ok("GET", path) == {"visibility": "private"}

    status, body = await bob.put(path, {"visibility": "public"})
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")

    await alice.ok("PUT", path, {})
    assert await bob.ok("GET", path) == {"visibility": "public"}
    await alice.ok("PUT", path, {"visibility": "private"})
    assert await bob.ok("GET", path) == {"visibility": "private"}
    assert (await alice.put(path, {"visibility": "some"})).status == 400
    assert (await alice.get("/v3/directory/list/room/!none:hearth.test")).status == 404


async def test_the_directory_tells_what_outsiders_may_know(alice: Client, bob: Client) -> None:
    name = unique("Cheese")
    room_id = await create_room(
        alice,
        visibility="public",
        name=name,
        topic="Tasty",
        creation_content={"type": "m.space"},
        initial_state=[{"type": "m.room.avatar", "content": {"url": "mxc://hearth.test/cheese"}}],
    )
    await join(bob, room_id)

    found = await bob.ok("POST", "/v3/publicRooms", {"filter": {"generic_search_term": name.upper()}})

    assert found["chunk"] == [
        {
            "room_id": room_id,
            "name": name,
            "topic": "Tasty",
            "avatar_url": "mxc://hearth.test/cheese",
            "num_joined_members": 2,
            "world_readable": False,
            "guest_can_join": False,
            "join_rule": "public",
            "room_type": "m.space",
        }
    ]
    assert found["total_room_count_estimate"] >= 1


@pytest.mark.parametrize(("types", "expected"), [(["m.space"], 1), ([None], 2), ([None, "m.space"], 3), ([], 0)])
async def test_the_directory_is_filtered_by_type(alice: Client, types: list[str | None], expected: int) -> None:
    topic = unique("kind")
    for content in ({"type": "m.space"}, {}, {}):
        await create_room(alice, visibility="public", topic=topic, creation_content=content)

    found = await alice.ok("POST", "/v3/publicRooms", {"filter": {"generic_search_term": topic, "room_types": types}})

    assert len(found["chunk"]) == expected


async def test_pages_of_the_directory_join_to_the_whole(server: Server, alice: Client, bob: Client) -> None:
    topic = unique("pages")
    rooms = [await create_room(alice, visibility="public", topic=topic) for _ in range(5)]
    await join(bob, rooms[3])
    body: dict[str, Any] = {"limit": 2, "filter": {"generic_search_term": topic}}

    pages = [await alice.ok("POST", "/v3/publicRooms", body)]
    while "next_batch" in pages[-1]:
        pages.append(await alice.ok("POST", "/v3/publicRooms", {**body, "since": pages[-1]["next_batch"]}))

    listed = [[room["room_id"] for room in page["chunk"]] for page in pages]
    assert [len(page) for page in listed] == [2, 2, 1]
    assert listed[0][0] == rooms[3]
    assert sorted(room_id for page in listed for room_id in page) == sorted(rooms)
    assert "prev_batch" not in pages[0]
    back = await alice.ok("POST", "/v3/publicRooms", {**body, "since": pages[2]["prev_batch"]})
    assert [room["room_id"] for room in back["chunk"]] == listed[1]
    assert {"next_batch", "prev_batch"} <= back.keys()
    assert (await server.anonymous.get("/v3/publicRooms", limit=1)).body["chunk"]


@pytest.mark.parametrize(
    "body", [{"limit": 0}, {"since": "x"}, {"since": "n1"}, {"filter": {"room_types": [1]}}, {"limit": "1"}]
)
async def test_a_malformed_search_is_refused(alice: Client, body: Any) -> None:
    assert (await alice.post("/v3/publicRooms", body)).status == 400


@pytest.mark.one_process("a limit is lowered here")
async def test_only_who_is_in_a_room_gives_it_aliases(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await create_room(alice, preset="public_chat")
    paths = [f"/v3/directory/room/{quote(alias_on(server))}" for _ in range(3)]
    assert (await bob.put(paths[0], {"room_id": room_id})).status == 403
    await join(bob, room_id)
    await bob.ok("PUT", paths[0], {"room_id": room_id})

    monkeypatch.setattr(room_directory, "MAX_ALIASES", 2)
    await bob.ok("PUT", paths[1], {"room_id": room_id})
    assert (await bob.put(paths[2], {"room_id": room_id})).status == 400


async def test_who_is_suspended_changes_no_directory(server: Server, alice: Client) -> None:
    alias = unique("alias")
    room_id = await create_room(alice, room_alias_name=alias)
    await server.application.accounts.service.set_suspended(UserID(alice.user_id), is_suspended=True)

    refused = [
        await alice.delete(f"/v3/directory/room/{quote(alias_on(server, alias))}"),
        await alice.put(f"/v3/directory/list/room/{quote(room_id)}", {"visibility": "public"}),
    ]
    assert [answer.body["errcode"] for answer in refused] == ["M_USER_SUSPENDED"] * 2


@pytest.mark.parametrize("searched", [{"generic_search_term": "x" * 1001}, {"room_types": ["x"] * 101}])
async def test_a_search_that_would_take_long_is_refused(alice: Client, searched: Any) -> None:
    assert (await alice.post("/v3/publicRooms", {"filter": searched})).status == 400
