"""Spaces as other servers see them, and summaries of rooms that nobody of ours is in."""

from collections.abc import Awaitable, Callable
from typing import Any

from tests.client import Client, Server, quote
from tests.federation.answering_peer import answering_peer
from tests.federation.handshakes import joined, member_event, send_leave
from tests.federation.peer import Peer, path_of
from tests.federation.servers import Pair

PUBLIC, INVITE = {"preset": "public_chat"}, {"preset": "private_chat"}


async def a_space(user: Client, **settings: Any) -> str:
    body = {**PUBLIC, "creation_content": {"type": "m.space"}, **settings}
    return str((await user.ok("POST", "/v3/createRoom", body))["room_id"])


async def a_room(user: Client, **settings: Any) -> str:
    return str((await user.ok("POST", "/v3/createRoom", settings))["room_id"])


async def set_child(user: Client, space: str, child: str, **content: Any) -> None:
    path = f"/v3/rooms/{quote(space)}/state/m.space.child/{quote(child)}"
    await user.ok("PUT", path, {"via": ["hearth.test"], **content})


async def restricted_to(user: Client, allowed: str) -> str:
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": allowed}]}
    return await a_room(user, **INVITE, initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}])


def asking(peer: Peer) -> Callable[..., Awaitable[Any]]:
    async def ask(room_id: str, **query: str) -> Any:
        answer = await peer.request("GET", path_of("/v1/hierarchy/{}", room_id), **query)
        return answer.body if answer.status == 200 else answer.status

    return ask


async def test_a_space_is_told_with_its_children(server: Server, alice: Client) -> None:
    ask = asking(await Peer(server).trust())
    space = await a_space(alice, name="Space", topic="all of it")
    open_room, closed_room = await a_room(alice, **PUBLIC, name="Open"), await a_room(alice, **INVITE, name="Closed")
    await set_child(alice, space, open_room, order="b", suggested=True)
    await set_child(alice, space, closed_room, order="a")
    await set_child(alice, space, "!elsewhere:other.test")
    await set_child(alice, space, "!gone:other.test", via=None)

    whole, suggested = await ask(space), await ask(space, suggested_only="true")

    room = whole["room"]
    assert (room["room_id"], room["name"], room["topic"], room["room_type"]) == (space, "Space", "all of it", "m.space")
    assert (room["num_joined_members"], room["join_rule"]) == (1, "public")
    assert [each["state_key"] for each in room["children_state"]] == [closed_room, open_room, "!elsewhere:other.test"]
    assert {name: value for name, value in room["children_state"][1].items() if name != "origin_server_ts"} == {
        "type": "m.space.child",
        "state_key": open_room,
        "sender": alice.user_id,
        "content": {"via": ["hearth.test"], "order": "b", "suggested": True},
    }
    assert all(type(each["origin_server_ts"]) is int for each in room["children_state"])
    assert [each["name"] for each in whole["children"]] == ["Open"]
    assert whole["inaccessible_children"] == [closed_room]
    assert [each["state_key"] for each in suggested["room"]["children_state"]] == [open_room]
    assert suggested["inaccessible_children"] == []


async def test_a_server_sees_only_what_its_users_could_join(server: Server, alice: Client) -> None:
    peer = await Peer(server).trust()
    ask = asking(peer)
    closed = await a_room(alice, **INVITE)
    world_readable = await a_room(
        alice,
        **INVITE,
        initial_state=[
            {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "world_readable"}}
        ],
    )
    restricted = await restricted_to(alice, closed)
    denying = await a_room(alice, **PUBLIC)
    acl = {"allow": ["*"], "deny": [peer.name]}
    await alice.ok("PUT", f"/v3/rooms/{quote(denying)}/state/m.room.server_acl", acl)

    assert [await ask(each) for each in (closed, restricted, denying, "!none:hearth.test", "nonsense")] == [404] * 5
    assert (await ask(world_readable))["room"]["world_readable"] is True
    plain = await a_room(alice, **PUBLIC)
    await set_child(alice, plain, closed)
    assert (await ask(plain))["room"]["children_state"] == []  # it is no space


async def test_a_restricted_child_is_told_to_those_in_the_rooms_that_it_names(server: Server, alice: Client) -> None:
    peer = await Peer(server).trust()
    space = await a_space(alice, **PUBLIC)
    club, left = await a_room(alice, **PUBLIC), await a_room(alice, **PUBLIC)
    for room_id in (space, left):
        await joined(peer, room_id, "12")
    leave = await member_event(peer, left, "12", "leave")
    assert (await send_leave(peer, left, leave)).status == 200
    children = [await restricted_to(alice, each) for each in (space, club, left)]
    for child in children:
        await set_child(alice, space, child)

    answer = await asking(peer)(space)

    assert [each["room_id"] for each in answer["children"]] == children[:1]
    assert answer["children"][0]["allowed_room_ids"] == [space]
    assert set(answer["inaccessible_children"]) == set(children[1:])


async def test_members_of_a_restricting_room_see_what_they_may_join(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    space = await a_space(bob, name="Club")
    room_id = await restricted_to(bob, space)
    invited = await a_room(bob, **INVITE, name="Invited", invite=[alice.user_id])
    await set_child(bob, space, room_id, via=[pair.far.name])
    before = (await summary(alice, room_id, via=pair.far.name)).status

    await alice.ok("POST", f"/v3/join/{quote(space)}", {}, params={"via": pair.far.name})

    after = await summary(alice, room_id, via=pair.far.name)
    assert (before, after.status) == (404, 200)
    assert (after.body["allowed_room_ids"], after.body["membership"]) == ([space], "leave")
    assert (await summary(alice, invited)).body["name"] == "Invited"
    assert (await summary(alice, invited)).body["membership"] == "invite"


async def summary(user: Client, room: str, **query: str) -> Any:
    return await user.get(f"/v1/room_summary/{quote(room)}", **query)


async def test_a_room_of_another_server_is_summed_up_there(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    alias = f"hall-{bob.user_id[1:].partition(':')[0]}"
    room_id = await a_room(bob, **PUBLIC, name="Hall", topic="echo", room_alias_name=alias)
    closed = await a_room(bob, **INVITE)
    expected = (await summary(bob, room_id)).body | {"membership": "leave"}

    by_id = await summary(alice, room_id, via=pair.far.name)
    by_alias = await summary(alice, f"#{alias}:{pair.far.name}")

    assert by_id.body == by_alias.body == expected
    assert (await summary(alice, closed, via=pair.far.name)).status == 404
    assert (await summary(alice.anonymous(), room_id, via=pair.far.name)).status == 404
    assert (await summary(alice, room_id, via="127.0.0.1:1")).status == (200 if ":" in room_id else 404)


async def test_no_summary_does_harm(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    async with answering_peer(pair.near, pair.authority) as peer:
        room_id = f"!room:{peer.name}"
        good = {
            "room_id": room_id,
            "num_joined_members": 3,
            "world_readable": True,
            "guest_can_join": False,
            "join_rule": "restricted",
        }

        async def told(room: Any) -> Any:
            peer.answers["hierarchy"] = lambda _path, _query, _body: {"room": room, "children": []}
            found = await summary(alice, room_id, via=peer.name)
            return found.body if found.status == 200 else found.status

        assert await told(good | {"room_id": "!other:b"}) == 404
        rooms: list[Any] = [None, [], "x", {}, good | {"num_joined_members": "x"}]
        for bad in rooms:
            assert await told(bad) == 404
        odd = {"name": 1, "room_version": [], "encryption": {}, "allowed_room_ids": ["x", 1, "!a:b"], "extra": "x"}
        assert await told(good | odd) == good | {"allowed_room_ids": ["!a:b"], "membership": "leave"}
        room_id = good["room_id"] = f"!closed:{peer.name}"
        assert await told(good | {"world_readable": False, "join_rule": "invite"}) == 404
