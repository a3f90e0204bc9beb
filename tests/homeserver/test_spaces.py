"""The rooms in spaces over HTTP."""

from typing import Any

import pytest

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, leave, set_state
from tests.queries import is_answering

PRIVATE = {"preset": "private_chat"}


async def a_space(owner: Client, *joined: Client, **fields: Any) -> str:
    return await a_room(owner, *joined, creation_content={"type": "m.space"}, **fields)


async def put_in(owner: Client, space: str, child: str, **content: Any) -> None:
    await set_state(owner, space, "m.space.child", {"via": ["hearth.test"], **content}, child)


async def walk(client: Client, space: str, **query: Any) -> list[str]:
    """The rooms that are shown, in their order."""
    return [room["room_id"] for room in (await ask(client, space, **query))["rooms"]]


async def ask(client: Client, space: str, **query: Any) -> Any:
    answer = await client.get(f"/v1/rooms/{quote(space)}/hierarchy", **query)
    assert answer.status == 200, answer.body
    return answer.body


async def test_a_tree_is_walked_depth_first(alice: Client, bob: Client) -> None:
    space, inner = await a_space(alice, name="Space"), await a_space(alice, bob, name="Inner")
    first, second, third = [await a_room(alice, name=f"Room {number}") for number in range(3)]
    await put_in(alice, space, third, order="z")
    await put_in(alice, space, inner, order="b", suggested=True)
    await put_in(alice, space, first, order="a")
    await put_in(alice, inner, second)

    body = await ask(bob, space)

    assert [room["room_id"] for room in body["rooms"]] == [space, first, inner, second, third]
    assert "next_batch" not in body
    told = body["rooms"][2]
    version = (await alice.get(f"/v3/rooms/{quote(inner)}/state/m.room.create")).body["room_version"]
    (child,) = told.pop("children_state")
    assert told == {
        "room_id": inner,
        "name": "Inner",
        "room_type": "m.space",
        "room_version": version,
        "join_rule": "public",
        "num_joined_members": 2,
        "world_readable": False,
        "guest_can_join": False,
    }
    assert child.pop("origin_server_ts") > 0
    assert child == {
        "type": "m.space.child",
        "state_key": second,
        "sender": alice.user_id,
        "content": {"via": ["hearth.test"]},
    }
    assert body["rooms"][1]["children_state"] == []


async def test_children_are_ordered_as_specified(alice: Client) -> None:
    space = await a_space(alice)
    rooms = [await a_room(alice) for _ in range(5)]
    orders: list[Any] = ["\x7f", "first", 5, "aaaa", " "]
    for room, order in zip(rooms, orders, strict=True):
        await put_in(alice, space, room, order=order)

    body = await ask(alice, space)

    # What has no valid order comes last, by the time that it was put there.
    expected = [rooms[number] for number in (4, 3, 1, 0, 2)]
    assert [room["room_id"] for room in body["rooms"]] == [space, *expected]
    assert [event["state_key"] for event in body["rooms"][0]["children_state"]] == expected


@pytest.mark.parametrize("content", [{"via": []}, {"via": "hearth.test"}, {"via": None}, {}])
async def test_what_names_no_server_is_no_child(alice: Client, content: dict[str, Any]) -> None:
    space, room, gone = await a_space(alice), await a_room(alice), await a_room(alice)
    await set_state(alice, space, "m.space.child", content, room)
    await set_state(alice, space, "m.space.child", {"via": ["hearth.test"]}, "not a room")
    event_id = await set_state(alice, space, "m.space.child", {"via": ["hearth.test"]}, gone)
    await alice.ok("PUT", f"/v3/rooms/{quote(space)}/redact/{quote(event_id)}/{quote(gone)}", {})

    body = await ask(alice, space)

    assert [room["room_id"] for room in body["rooms"]] == [space]
    assert body["rooms"][0]["children_state"] == []


async def test_an_event_that_is_too_large_names_no_child(alice: Client) -> None:
    space, room = await a_space(alice), await a_room(alice)
    noise = "".join(f"{number * 7919 % 10007:x}" for number in range(12_000))
    await put_in(alice, space, room, noise=noise)

    assert await walk(alice, space) == [space]


async def test_a_room_that_is_no_space_has_no_children(alice: Client) -> None:
    room, other = await a_room(alice), await a_room(alice)
    await put_in(alice, room, other)

    body = await ask(alice, room)

    assert [each["room_id"] for each in body["rooms"]] == [room]
    assert body["rooms"][0]["children_state"] == []


async def test_loops_are_broken_and_every_room_is_shown_once(alice: Client) -> None:
    spaces = [await a_space(alice) for _ in range(3)]
    room = await a_room(alice)
    for number, space in enumerate(spaces):
        await put_in(alice, space, spaces[(number + 1) % 3], order="a")
        await put_in(alice, space, space, order="b")
        await put_in(alice, space, room, order="c")

    assert await walk(alice, spaces[0]) == [*spaces, room]


async def test_how_deep_and_what_is_suggested(alice: Client) -> None:
    space, inner, deep = [await a_space(alice) for _ in range(3)]
    room = await a_room(alice)
    await put_in(alice, space, inner, order="a", suggested=True)
    await put_in(alice, inner, deep, suggested=True)
    await put_in(alice, space, room, order="b", suggested="true")

    assert await walk(alice, space, max_depth=0) == [space]
    assert await walk(alice, space, max_depth=1) == [space, inner, room]
    assert await walk(alice, space, max_depth=2) == [space, inner, deep, room]
    suggested = await ask(alice, space, suggested_only="true")
    assert [each["room_id"] for each in suggested["rooms"]] == [space, inner, deep]
    assert [each["state_key"] for each in suggested["rooms"][0]["children_state"]] == [inner]


async def test_only_rooms_that_the_user_may_know_are_shown(alice: Client, bob: Client) -> None:
    space = await a_space(alice, bob)
    shown = {
        "public": await a_room(alice),
        "knock": await a_room(alice),
        "joined": await a_room(alice, bob),
        "invited": await a_room(alice, **PRIVATE),
        "world readable": await a_room(alice, visibility="world_readable", **PRIVATE),
        "restricted": await a_room(alice),
    }
    hidden = {
        "private": await a_room(alice, **PRIVATE),
        "left": await a_room(alice, bob),
        "banned": await a_room(alice),
        "restricted to another": await a_room(alice),
        "no longer restricted": await a_room(alice),
    }
    own = await a_space(alice)
    await set_state(alice, shown["knock"], "m.room.join_rules", {"join_rule": "knock"})
    await set_state(alice, shown["joined"], "m.room.join_rules", {"join_rule": "invite"})
    await act(alice, "invite", shown["invited"], bob)
    await leave(bob, hidden["left"])
    await set_state(alice, hidden["left"], "m.room.join_rules", {"join_rule": "invite"})
    await act(alice, "ban", hidden["banned"], bob)
    for room, rule, allowed in (
        (shown["restricted"], "restricted", space),
        (hidden["restricted to another"], "restricted", own),
        (hidden["no longer restricted"], "invite", space),
    ):
        allow = [{"type": "m.room_membership", "room_id": allowed}]
        await set_state(alice, room, "m.room.join_rules", {"join_rule": rule, "allow": allow})
    # One of them hides what is in it, too.
    behind = await a_room(alice)
    await set_state(alice, own, "m.room.join_rules", {"join_rule": "invite"})
    await put_in(alice, own, behind)
    for room in (*shown.values(), *hidden.values(), own):
        await put_in(alice, space, room)

    body = await ask(bob, space)

    by_id = {room["room_id"]: room for room in body["rooms"]}
    assert by_id.keys() == {space, *shown.values()}
    assert by_id[shown["restricted"]]["allowed_room_ids"] == [space]
    assert "allowed_room_ids" not in by_id[shown["public"]]


async def test_a_space_that_the_user_may_not_know_is_forbidden(server: Server, alice: Client, bob: Client) -> None:
    private, banned = await a_space(alice, **PRIVATE), await a_space(alice)
    await act(alice, "ban", banned, bob)

    for space in (private, banned, "!nowhere:hearth.test", "nothing", "!\0:hearth.test"):
        status, body = await bob.get(f"/v1/rooms/{quote(space)}/hierarchy")
        assert (status, body["errcode"]) in ((403, "M_FORBIDDEN"), (400, "M_INVALID_PARAM")), space
    assert (await server.anonymous.get(f"/v1/rooms/{quote(private)}/hierarchy")).status == 401


async def test_a_walk_comes_in_pages(alice: Client) -> None:
    space, inner = await a_space(alice), await a_space(alice)
    rooms = [await a_room(alice) for _ in range(4)]
    await put_in(alice, space, inner, order="a")
    for room in rooms[:2]:
        await put_in(alice, inner, room)
    for room in rooms[2:]:
        await put_in(alice, space, room)

    pages = [await ask(alice, space, limit=2)]
    while "next_batch" in pages[-1]:
        pages.append(await ask(alice, space, limit=2, from_=pages[-1]["next_batch"]))

    assert [[room["room_id"] for room in page["rooms"]] for page in pages] == [
        [space, inner],
        rooms[:2],
        rooms[2:],
    ]


async def test_a_token_is_for_its_walk_alone(alice: Client, bob: Client) -> None:
    space, other = await a_space(alice, bob), await a_space(alice, bob)
    await put_in(alice, space, await a_room(alice))
    token = (await ask(alice, space, limit=1, max_depth=2))["next_batch"]

    assert len(await walk(alice, space, max_depth=2, from_=token)) == 1
    for client, room, query in (
        (bob, space, {"max_depth": 2}),
        (alice, other, {"max_depth": 2}),
        (alice, space, {"max_depth": 1}),
        (alice, space, {"max_depth": 2, "suggested_only": "true"}),
    ):
        answer = await client.get(f"/v1/rooms/{quote(room)}/hierarchy", from_=token, **query)
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    for wrong in ("x", "h1_0123456789abcdef", "h99999999_0", token.replace("h1", "h999999")):
        assert (await alice.get(f"/v1/rooms/{quote(space)}/hierarchy", max_depth=2, from_=wrong)).status == 400


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": "x"}, {"max_depth": -1}, {"suggested_only": "perhaps"}])
async def test_parameters_that_mean_nothing_are_refused(alice: Client, query: dict[str, Any]) -> None:
    space = await a_space(alice)

    assert (await alice.get(f"/v1/rooms/{quote(space)}/hierarchy", **query)).status == 400
    assert await walk(alice, space, limit=10**6, max_depth=10**6) == [space]


@pytest.mark.one_process("its queries are counted here")
async def test_the_work_for_a_large_space_does_not_grow_with_its_rooms(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, small = await a_space(alice), await a_space(alice)
    rooms = [await a_room(alice) for _ in range(12)]
    await put_in(alice, small, rooms[0])
    for room in rooms:
        await put_in(alice, space, room)
    asked: list[str] = []
    tx_type = type(await _a_transaction(server))
    fetch = tx_type.fetch

    async def counting(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if is_answering():
            asked.append(str(query))
        return await fetch(self, query, *args, **options)

    monkeypatch.setattr(tx_type, "fetch", counting)
    figures = []
    for each in (small, space):
        asked.clear()
        await walk(alice, each)
        figures.append(len(asked))

    assert figures[1] <= figures[0] + 1, asked


async def _a_transaction(server: Server) -> Any:
    async with server.application.database.read() as tx:
        return tx


@pytest.mark.one_process("a limit is lowered here")
async def test_a_space_without_end_is_not_walked_without_end(alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeserver.services.spaces.MAX_WALKED", 3)
    space = await a_space(alice)
    for _ in range(4):
        await put_in(alice, space, await a_room(alice))

    body = await ask(alice, space)

    assert (len(body["rooms"]), "next_batch" in body) == (3, False)
