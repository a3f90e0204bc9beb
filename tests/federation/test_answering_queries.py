"""What another server is told of aliases, profiles and published rooms of this one, and what its own answers may do."""

import dataclasses
from typing import Any

import pytest

from federation.outbound.query_answers import MAX_NAME, MAX_ROOMS, MAX_TOPIC
from tests.client import Client, Server, quote, unique
from tests.federation.answering_peer import answering_peer
from tests.federation.peer import Peer
from tests.federation.servers import Pair, federating

QUERY = "/v1/query/"


async def test_an_alias_comes_with_the_servers_in_its_room(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    name = unique("hall")
    room_id = (await bob.ok("POST", "/v3/createRoom", {"preset": "public_chat", "room_alias_name": name}))["room_id"]
    alias = f"#{name}:{pair.far.name}"
    await alice.ok("POST", f"/v3/join/{quote(alias)}", {})
    peer = await Peer(pair.far).trust()

    both = (await peer.request("GET", QUERY + "directory", room_alias=alias)).body
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})
    only_guest = (await peer.request("GET", QUERY + "directory", room_alias=alias)).body

    assert both == {"room_id": room_id, "servers": [pair.far.name, pair.near.name]}
    assert only_guest == {"room_id": room_id, "servers": [pair.near.name]}


async def test_users_come_back_by_an_alias_of_their_own_server(pair: Pair) -> None:
    alice, bob, carol = [
        await server.register(name) for server, name in ((pair.near, "alice"), (pair.far, "bob"), (pair.far, "carol"))
    ]
    name = unique("hall")
    room_id = (await bob.ok("POST", "/v3/createRoom", {"preset": "public_chat", "room_alias_name": name}))["room_id"]
    alias = f"#{name}:{pair.far.name}"
    await alice.ok("POST", f"/v3/join/{quote(alias)}", {})
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})

    assert (await carol.ok("POST", f"/v3/join/{quote(alias)}", {}))["room_id"] == room_id


@pytest.mark.parametrize(
    ("query", "status", "errcode"),
    [
        ({}, 400, "M_MISSING_PARAM"),
        ({"room_alias": "nonsense"}, 400, "M_INVALID_PARAM"),
        ({"room_alias": "#none:elsewhere.test"}, 404, "M_NOT_FOUND"),
        ({"room_alias": "#none:hearth.test"}, 404, "M_NOT_FOUND"),
    ],
)
async def test_no_other_alias_is_told(server: Server, query: dict[str, str], status: int, errcode: str) -> None:
    peer = await Peer(server).trust()

    answer = await peer.request("GET", QUERY + "directory", **query)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)


async def test_a_profile_is_told_whole_and_by_field(server: Server, alice: Client) -> None:
    peer = await Peer(server).trust()
    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/displayname", {"displayname": "Alice"})
    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/org.example.cat", {"org.example.cat": {"legs": 4}})

    async def ask(**query: str) -> Any:
        return (await peer.request("GET", QUERY + "profile", user_id=alice.user_id, **query)).body

    assert await ask() == {"displayname": "Alice", "org.example.cat": {"legs": 4}}
    assert await ask(field="displayname") == {"displayname": "Alice"}
    assert await ask(field="org.example.cat") == {"org.example.cat": {"legs": 4}}
    assert await ask(field="avatar_url") == {}
    assert (await peer.request("GET", QUERY + "profile")).status == 400
    assert (await peer.request("GET", QUERY + "profile", user_id="@x:elsewhere.test")).status == 404
    assert (await peer.request("GET", QUERY + "profile", user_id="@nobody:hearth.test")).status == 404


async def test_an_unknown_query_is_not_recognized(server: Server) -> None:
    peer = await Peer(server).trust()

    answer = await peer.request("GET", QUERY + "weather")

    assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_queries_are_signed(server: Server) -> None:
    stranger = Peer(server)  # whose key nobody knows

    for path in ("query/directory", "query/profile", "publicRooms"):
        assert (await stranger.request("GET", "/v1/" + path)).status == 401


async def test_published_rooms_are_told_to_nobody_else_unless_the_settings_say_so(
    server: Server, alice: Client
) -> None:
    peer = await Peer(server).trust()
    await alice.ok("POST", "/v3/createRoom", {"name": "Here", "visibility": "public"})

    for answer in (await peer.request("GET", "/v1/publicRooms"), await peer.request("POST", "/v1/publicRooms", {})):
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_published_rooms_are_told_by_pages_and_by_search(pair: Pair) -> None:
    bob, peer = await pair.far.register("bob"), await Peer(pair.far).trust()
    word = unique("wombat")
    for number in range(3):
        await bob.ok("POST", "/v3/createRoom", {"name": f"{word} {number}", "visibility": "public"})
    await bob.ok("POST", "/v3/createRoom", {"name": f"{word} of our own"})
    path = "/v1/publicRooms"

    def names(answer: Any) -> set[str]:
        assert answer.status == 200, answer
        return {room["name"] for room in answer.body["chunk"] if room.get("name", "").startswith(word)}

    everything = {f"{word} {number}" for number in range(3)}
    search = {"filter": {"generic_search_term": word.upper()}}
    first = await peer.request("POST", path, {**search, "limit": 2})
    second = await peer.request("POST", path, {**search, "limit": 2, "since": first.body["next_batch"]})

    assert names(await peer.request("GET", path)) == everything
    assert names(await peer.request("GET", path, limit="0")) == everything
    assert names(await peer.request("POST", path, search)) == everything
    assert (len(first.body["chunk"]), len(second.body["chunk"])) == (2, 1)
    assert names(first) | names(second) == everything
    page = await peer.request("GET", path, limit="1")
    assert len(page.body["chunk"]) == 1
    assert (
        page.body["chunk"] != (await peer.request("GET", path, limit="1", since=page.body["next_batch"])).body["chunk"]
    )
    for bad in ({"limit": "many"}, {"since": "nonsense"}):
        assert (await peer.request("GET", path, **bad)).status == 400
        assert (await peer.request("POST", path, bad)).status == 400


# --- answers that do harm


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.one_process("each remembers what it was told")
async def test_no_profile_does_harm(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    async with answering_peer(pair.near, pair.authority) as peer:

        async def told(name: str, answer: Any, field: str = "") -> Any:
            peer.answers["query"] = lambda _path, _query, _body: answer
            found = await alice.get(f"/v3/profile/{quote(peer.user(name))}{field}")
            return found.body if found.status == 200 else found.status

        fields = {"displayname": {"a": 1}, "avatar_url": "https://example.org/spy.png", "m.tz": 7, "x" * 300: 1}
        assert await told("a", {**fields, "": 1, "a\0b": 1, "org.example.cat": [4]}) == {"org.example.cat": [4]}
        assert await told("b", {"displayname": "x" * (MAX_NAME + 1)}) == {}
        assert await told("c", {"avatar_url": None, "displayname": "C"}) == {"displayname": "C"}
        assert await told("d", {"displayname": "D", "org.example.secret": 1}, "/displayname") == {"displayname": "D"}
        assert await told("e", {"displayname": "E"}, "/avatar_url") == 404
        for number, bad in enumerate(
            (["a"], "text", {"org.example.big": "x" * 70_000}, {"big": "x" * 3_000_000}, {"deep": nested(200)})
        ):
            assert await told(f"f{number}", bad) == 502
        peer.answers.clear()
        assert await told("b", None) == {}  # as it was a moment ago
        assert await told("g", None) == 404


async def test_no_list_of_rooms_does_harm(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    asked: list[Any] = []
    async with answering_peer(pair.near, pair.authority) as peer:

        async def told(answer: Any, body: Any = None, status: int = 200) -> Any:
            def answer_to(_path: Any, _query: Any, body: Any) -> Any:
                asked.append(body)
                return answer

            peer.answers["publicRooms"] = answer_to
            found = await alice.request("POST", "/v3/publicRooms", body or {}, params={"server": peer.name})
            assert found.status == status
            return found.body

        def room(**changes: Any) -> Any:
            plain = {"room_id": "!a:b", "num_joined_members": 1, "world_readable": False, "guest_can_join": False}
            return {**plain, **changes}

        odd = {"name": ["x"], "avatar_url": "javascript:1", "room_type": {}, "join_rule": "x" * 300, "topic": 1}
        rooms = [room(**odd), room(world_readable="yes"), room(num_joined_members=-1), room(room_id="#a:b"), None]
        assert (await told({"chunk": rooms}))["chunk"] == [room(), room()]
        long = await told({"chunk": [room(name="x" * 50_000, topic="y" * 50_000)], "next_batch": "t" * 50_000})
        assert long == {"chunk": [room(name="x" * MAX_NAME, topic="y" * MAX_TOPIC)]}
        assert len((await told({"chunk": [room()] * (MAX_ROOMS + 100)}))["chunk"]) == MAX_ROOMS
        assert await told({"chunk": [], "total_room_count_estimate": "many", "prev_batch": 1}) == {"chunk": []}
        await told({"chunk": "rooms"}, status=502)
        await told({"chunk": [{"x": "y" * 1_000_000}] * 9}, status=502)
        asked.clear()
        await told({"chunk": []}, {"limit": 10_000, "filter": {"generic_search_term": "Cat"}, "other": {"x": 1}})
        await told({"chunk": []}, {"since": "x" * 5_000}, status=400)
        await told({"chunk": []}, {"limit": "x"}, status=400)
        assert asked == [{"limit": 500, "filter": {"generic_search_term": "Cat"}}]


async def test_no_alias_does_harm(pair: Pair) -> None:
    alice = await pair.near.register("alice")
    async with answering_peer(pair.near, pair.authority) as peer:

        async def told(answer: Any) -> Any:
            peer.answers["query"] = lambda _path, _query, _body: answer
            found = await alice.get(f"/v3/directory/room/{quote('#hall:' + peer.name)}")
            return found.body if found.status == 200 else found.status

        many = [f"s{number}.example" for number in range(5_000)]
        assert len((await told({"room_id": "!a:b", "servers": many}))["servers"]) == 20
        assert await told({"room_id": "!a:b", "servers": ["no name", {}]}) == {
            "room_id": "!a:b",
            "servers": [peer.name],
        }
        answers: list[Any] = [{"room_id": ["!a:b"], "servers": []}, {"room_id": "!a:b", "servers": {}}, {}, [], 1]
        for bad in answers:
            assert await told(bad) == 502
        assert await told({"room_id": "!a:b", "servers": ["x" * 300_000]}) == 502
        assert await told(None) == 404


async def test_a_list_that_another_server_keeps_for_itself_is_forbidden(maintenance_conninfo: str, pair: Pair) -> None:
    private = dataclasses.replace(pair.near.application.config.federation, publish_rooms=False)
    alice = await pair.near.register("alice")
    async with federating(maintenance_conninfo, pair.authority, federation=private) as closed:
        answer = await alice.request("POST", "/v3/publicRooms", {}, params={"server": closed.name})

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
