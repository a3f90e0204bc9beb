"""Spaces whose rooms are on another server, and servers that answer badly (what they are told: test_hierarchy.py)."""

from collections.abc import Iterable
from typing import Any

import pytest

from federation.protocol.errors import InvalidInput, PeerRefused, PeerUnreachable
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms import remote_spaces
from federation.rooms.remote_spaces import RemoteSpaces, parse_answer
from tests.client import Client, quote
from tests.federation.servers import Pair
from tests.homeserver.rooms import a_room, set_state

PRIVATE = {"preset": "private_chat"}
SPACE, CHILD = RoomID("!space:there.example"), RoomID("!child:there.example")
THERE, ELSEWHERE = ServerName("there.example"), ServerName("elsewhere.example")


async def a_space(owner: Client, *joined: Client, **fields: Any) -> str:
    return await a_room(owner, *joined, creation_content={"type": "m.space"}, **fields)


async def put_in(owner: Client, space: str, child: str, *via: str, **content: Any) -> None:
    await set_state(owner, space, "m.space.child", {"via": list(via), **content}, child)


async def walk(client: Client, space: str, **query: Any) -> list[Any]:
    answer = await client.get(f"/v1/rooms/{quote(space)}/hierarchy", **query)
    assert answer.status == 200, answer.body
    rooms: list[Any] = answer.body["rooms"]
    return rooms


async def test_rooms_of_another_server_are_shown(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    here, there = pair.near.name, pair.far.name
    space = await a_space(alice, name="Space")
    inner, deep = await a_space(bob, name="Inner"), await a_space(bob, name="Deep")
    plain, deepest = await a_room(bob, name="Plain"), await a_room(bob, name="Deepest")
    secret, ours = await a_room(bob, name="Secret", **PRIVATE), await a_room(alice, name="Ours", **PRIVATE)
    restricted, hidden = await a_room(bob, name="Restricted"), await a_room(bob, name="Hidden")
    for room, allowed in ((restricted, space), (hidden, secret)):
        allow = [{"type": "m.room_membership", "room_id": allowed}]
        await set_state(bob, room, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
    await put_in(alice, space, inner, there, order="a")
    await put_in(alice, space, secret, there, order="b")
    await put_in(alice, space, "!nowhere:" + there, there, order="c")
    await put_in(bob, inner, plain, there, order="a")
    await put_in(bob, inner, deep, there, order="b")
    await put_in(bob, inner, ours, here, order="c")
    await put_in(bob, inner, restricted, there, order="d")
    await put_in(bob, inner, hidden, there, order="e")
    await put_in(bob, inner, space, here, order="f")
    await put_in(bob, deep, deepest, there)

    rooms = await walk(alice, space)

    assert [room.get("name") for room in rooms][:4] == ["Space", "Inner", "Plain", "Deep"]
    # The far server does not know who is in `space`, so it tells nobody of the room that its members may join.
    assert [room["room_id"] for room in rooms] == [space, inner, plain, deep, deepest, ours]
    assert [event["state_key"] for event in rooms[3]["children_state"]] == [deepest]
    assert rooms[2]["num_joined_members"] == 1

    assert [room["name"] for room in await walk(alice, space, max_depth=1)] == ["Space", "Inner"]
    first = (await alice.get(f"/v1/rooms/{quote(space)}/hierarchy", limit=3)).body
    rest = await walk(alice, space, limit=10, from_=first["next_batch"])
    assert [room["room_id"] for room in (*first["rooms"], *rest)] == [room["room_id"] for room in rooms]


@pytest.mark.one_process("each remembers what it was told")
async def test_what_a_server_has_told_of_the_spaces_in_its_space_is_asked_of_nobody(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    there = pair.far.name
    space, inner, deep = await a_space(alice), await a_space(bob), await a_space(bob)
    plain, restricted = await a_room(bob), await a_room(bob)
    allow = [{"type": "m.room_membership", "room_id": space}]
    await set_state(bob, restricted, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
    await put_in(alice, space, inner, there)
    for child in (deep, plain, restricted):
        await put_in(bob, inner, child, there)

    rooms = await walk(alice, space)

    assert {room["room_id"] for room in rooms} == {space, inner, deep, plain}
    spaces = pair.near.application.fetching.spaces
    assert [spaces.must_ask(RoomID(room), [there]) for room in (deep, plain, restricted)] == [False, True, True]


async def test_a_space_of_another_server_is_looked_into_before_it_is_joined(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    # In these versions a room's ID names a server, which is all that there is to ask.
    space = await a_space(bob, name="Space", room_version="11")
    private = await a_space(bob, room_version="11", **PRIVATE)
    room = await a_room(bob, name="Room")
    await put_in(bob, space, room, pair.far.name, suggested=True)
    via = f"?via={quote(pair.far.name)}"

    assert [each["name"] for each in await walk(alice, space)] == ["Space", "Room"]
    summary = await alice.ok("GET", f"/v1/room_summary/{quote(room)}{via}")

    assert (summary["name"], summary["membership"], summary["join_rule"]) == ("Room", "leave", "public")
    assert (await alice.get(f"/v1/rooms/{quote(private)}/hierarchy")).status == 403
    assert (await alice.request("GET", f"/v1/room_summary/{quote(private)}{via}")).status == 404
    assert (await alice.anonymous().request("GET", f"/v1/room_summary/{quote(room)}{via}")).status == 404


async def test_who_is_invited_sees_what_is_in_the_space(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    space = await a_space(bob, name="Space", room_version="11", **PRIVATE)
    await bob.ok("POST", f"/v3/rooms/{quote(space)}/invite", {"user_id": alice.user_id})

    assert [each["name"] for each in await walk(alice, space)] == ["Space"]
    carol = await pair.near.register("carol")
    assert (await carol.get(f"/v1/rooms/{quote(space)}/hierarchy")).status == 403


# --- servers that answer badly


class Answers:
    """In the place of the client: what each server answers. Every request is in `asked`."""

    def __init__(self, **answers: JsonObject | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    async def get(
        self, server: ServerName, path: str, _query: Iterable[tuple[str, str]], **_options: Any
    ) -> JsonObject:
        """The answer."""
        self.asked.append((server, path))
        answer = self.answers[server.partition(".")[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer


def remote(client: Answers) -> RemoteSpaces:
    return RemoteSpaces(client, ServerName("here.example"))  # type: ignore[arg-type]  # it has what they use


def a_child(room_id: str = CHILD, **changes: Any) -> JsonObject:
    return {
        "type": "m.space.child",
        "state_key": room_id,
        "sender": "@bob:there.example",
        "origin_server_ts": 1,
        "content": {"via": ["there.example"]},
        **changes,
    }


def told(*children: Any, room_id: str = SPACE, **changes: Any) -> JsonObject:
    return {
        "room_id": room_id,
        "num_joined_members": 1,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "room_type": "m.space",
        "children_state": list(children),
        **changes,
    }


def an_answer(room: Any, *children: Any, **changes: Any) -> JsonObject:
    return {"room": room, "children": list(children), "inaccessible_children": [], **changes}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        an_answer(None),
        an_answer([]),
        an_answer(told(room_id=CHILD)),
        an_answer(told(room_id="space")),
        an_answer(told(num_joined_members="many")),
        an_answer(told(num_joined_members=True)),
        an_answer(told(num_joined_members=-1)),
        an_answer(told(), children={}),
        an_answer(told(), inaccessible_children=1),
    ],
)
async def test_an_answer_that_is_none_is_not_used(answer: JsonObject) -> None:
    with pytest.raises(InvalidInput):
        parse_answer(answer, SPACE)
    assert await remote(Answers(there=answer)).find(SPACE, [THERE]) is None


def test_children_that_are_none_are_left_out() -> None:
    bad: list[Any] = [
        1,
        [],
        {},
        a_child("child"),
        a_child(type="m.room.member"),
        a_child(sender="bob"),
        a_child(origin_server_ts="now"),
        a_child(origin_server_ts=True),
        a_child(content=[]),
        a_child(content={}),
        a_child(content={"via": []}),
        a_child(content={"via": "there.example"}),
        a_child(content={"via": [1, {}]}),
    ]

    space = parse_answer(an_answer(told(*bad, a_child(), a_child(origin_server_ts=0))), SPACE)

    assert [child.stripped for child in space.room.children] == [a_child()]
    assert parse_answer(an_answer(told(children_state={})), SPACE).room.children == ()


def test_only_what_means_something_is_taken_over() -> None:
    child = a_child(unsigned={"a": 1}, content={"via": ["there.example", 1], "order": "a", "suggested": 1, "x": "y"})
    odd: JsonObject = {
        "name": 7,
        "topic": "t" * 9000,
        "avatar_url": "https://spy.example/x",
        "canonical_alias": "none",
        "y": 1,
    }

    space = parse_answer(an_answer(told(child, **odd)), SPACE)

    (event,) = space.room.as_json(suggested_only=False)["children_state"]
    assert event == a_child(content={"via": ["there.example"], "order": "a"})
    expected = told(topic="t" * 4000)
    del expected["children_state"]
    assert space.room.summary == expected


def test_a_server_tells_only_of_rooms_that_the_space_names() -> None:
    other = "!other:elsewhere.example"
    answer = an_answer(
        told(a_child()), told(room_id=CHILD), told(room_id=other), 7, inaccessible_children=[other, CHILD, 1]
    )

    space = parse_answer(answer, SPACE)

    assert space.told.keys() == {CHILD}
    assert space.inaccessible == {CHILD}


def test_of_endless_lists_only_the_beginning_is_read() -> None:
    many = [a_child(f"!{number}:there.example") for number in range(3000)]
    content = {"via": [f"s{number}.example" for number in range(1000)]}

    assert len(parse_answer(an_answer(told(*many)), SPACE).room.children) == 1000
    (child,) = parse_answer(an_answer(told(a_child(content=content))), SPACE).room.children
    assert len(child.via) == len(child.stripped["content"]["via"]) == 20


async def test_servers_are_asked_in_turn_and_answers_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Answers(elsewhere=PeerUnreachable(ELSEWHERE, "gone"), there=an_answer(told()))
    spaces = remote(client)
    assert spaces.must_ask(SPACE, [ELSEWHERE, THERE])

    for _ in range(2):
        found = await spaces.find(SPACE, [ELSEWHERE, "here.example", "not a server", THERE])
        assert found is not None
    assert [server for server, _ in client.asked] == [ELSEWHERE, THERE]
    assert not spaces.must_ask(SPACE, [ELSEWHERE, THERE])

    # What one server says is not what another is asked for.
    client.answers["third"] = PeerRefused(ServerName("third.example"), 404, "M_NOT_FOUND", "no")
    assert await spaces.find(SPACE, ["third.example"]) is None
    assert await spaces.find(CHILD, [THERE]) is None
    assert len(client.asked) == 4
    monkeypatch.setattr("federation.rooms.remote_spaces.REMEMBERED_SECONDS", -1.0)
    client.answers["fourth"] = an_answer(told())
    assert await spaces.find(SPACE, ["fourth.example"]) is not None
    assert spaces.must_ask(SPACE, ["fourth.example"])


async def test_not_many_servers_are_asked_for_one_room() -> None:
    client = Answers(**{f"s{number}": PeerUnreachable(THERE, "gone") for number in range(30)})

    assert await remote(client).find(SPACE, [f"s{number}.example" for number in range(30)]) is None

    assert len(client.asked) == remote_spaces.MAX_SERVERS


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.rooms.remote_spaces.REMEMBERED_ROOMS", 5)
    client = Answers(there=an_answer(told(a_child())), elsewhere=PeerUnreachable(ELSEWHERE, "gone"))
    spaces = remote(client)

    await spaces.find(SPACE, [THERE])
    for number in range(3):
        await spaces.find(RoomID(f"!{number}:there.example"), [ELSEWHERE])
    assert not spaces.must_ask(SPACE, [THERE])
    await spaces.find(RoomID("!last:there.example"), [ELSEWHERE])

    assert spaces.must_ask(SPACE, [THERE])
