"""Aliases, profiles and published rooms of other servers, between two servers and from a server that answers badly."""

from collections.abc import Iterable
from typing import Any

import pytest

from federation.outbound.queries import MAX_PROFILES, MAX_REMEMBERED, PROFILE_SECONDS, Queries
from federation.protocol.errors import Forbidden, NotFound, PeerRefused, PeerUnreachable
from federation.protocol.types import JsonObject, RoomAlias, ServerName, UserID
from tests.client import quote, unique
from tests.federation.servers import Pair

THERE = ServerName("there.example")
ALIAS = RoomAlias(f"#hall:{THERE}")
BOB = UserID(f"@bob:{THERE}")


async def test_users_join_by_an_alias_of_another_server(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    name = unique("hall")
    body = {"preset": "public_chat", "room_alias_name": name}
    room_id = (await bob.ok("POST", "/v3/createRoom", body))["room_id"]
    alias = f"#{name}:{pair.far.name}"

    found = await alice.ok("GET", f"/v3/directory/room/{quote(alias)}")
    joined = await alice.ok("POST", f"/v3/join/{quote(alias)}", {})

    assert found == {"room_id": room_id, "servers": [pair.far.name]}
    assert joined["room_id"] == room_id
    assert (await alice.get(f"/v3/directory/room/{quote('#none:' + pair.far.name)}")).status == 404


async def test_an_alias_of_another_server_names_a_room_only_where_it_stands_for_it(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    ours, others = unique("ours"), unique("others")
    room_id = (await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"via": pair.near.name})
    await bob.ok("PUT", f"/v3/directory/room/{quote(f'#{ours}:{pair.far.name}')}", {"room_id": room_id})
    await bob.ok("POST", "/v3/createRoom", {"room_alias_name": others})
    path = f"/v3/rooms/{quote(room_id)}/state/m.room.canonical_alias"

    async def named(name: str, member: str = "alt_aliases") -> Any:
        alias = f"#{name}:{pair.far.name}"
        return await alice.put(path, {member: alias if member == "alias" else [alias]})

    assert (await named(ours)).status == 200
    assert (await named(ours, "alias")).status == 200
    for wrong in (await named(others), await named(others, "alias"), await named("none"), await named("none", "alias")):
        assert (wrong.status, wrong.body["errcode"]) == (400, "M_BAD_ALIAS")


async def test_users_look_up_profiles_of_another_server(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    await bob.ok("PUT", f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})

    assert (await alice.ok("GET", f"/v3/profile/{quote(bob.user_id)}"))["displayname"] == "Bob"
    assert await alice.ok("GET", f"/v3/profile/{quote(bob.user_id)}/displayname") == {"displayname": "Bob"}
    assert (await alice.get(f"/v3/profile/{quote('@nobody:' + pair.far.name)}")).status == 404
    assert (await alice.anonymous().get(f"/v3/profile/{quote(bob.user_id)}")).status == 403


async def test_users_see_the_published_rooms_of_another_server(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    word = unique("quokka")
    for number in range(3):
        await bob.ok("POST", "/v3/createRoom", {"name": f"{word} {number}", "visibility": "public"})
    search, server = {"filter": {"generic_search_term": word}, "limit": 2}, pair.far.name

    first = await alice.ok("POST", "/v3/publicRooms", search, params={"server": server})
    rest = await alice.ok(
        "POST", "/v3/publicRooms", {**search, "since": first["next_batch"]}, params={"server": server}
    )
    listed = await alice.ok("GET", "/v3/publicRooms", params={"server": server, "limit": "500"})

    names = [room["name"] for page in (first, rest) for room in page["chunk"]]
    assert sorted(names) == [f"{word} {number}" for number in range(3)]
    assert set(names) <= {room.get("name") for room in listed["chunk"]}
    assert (await alice.anonymous().get("/v3/publicRooms", server=server)).status == 403


class Peer:
    """In the place of the client: it gives one answer to everything."""

    def __init__(self, answer: JsonObject | PeerRefused) -> None:
        self.answer = answer
        self.asked = 0

    async def get(
        self, _server: ServerName, _path: str, _query: Iterable[tuple[str, str]], **_options: Any
    ) -> JsonObject:
        """The answer."""
        self.asked += 1
        if isinstance(self.answer, PeerRefused):
            raise self.answer
        return self.answer

    async def post(self, _server: ServerName, _path: str, _body: JsonObject, **_options: Any) -> JsonObject:
        """The answer."""
        assert not isinstance(self.answer, PeerRefused)
        return self.answer


def asking(answer: JsonObject | PeerRefused) -> Queries:
    """Queries to a server that answers so."""
    return Queries(Peer(answer))  # type: ignore[arg-type]  # it has what they use


@pytest.mark.parametrize(
    "answer", [{}, {"room_id": "!a:b"}, {"room_id": 1, "servers": []}, {"room_id": "x", "servers": []}]
)
async def test_a_malformed_answer_about_an_alias_is_none(answer: JsonObject) -> None:
    with pytest.raises(PeerUnreachable):
        await asking(answer).alias(ALIAS)


async def test_servers_that_are_none_are_left_out_and_the_aliass_own_is_asked_first() -> None:
    named = ["other.example", "not a server", 1, THERE, *(f"s{number}.example" for number in range(100))]

    _, servers = await asking({"room_id": "!a:b", "servers": named}).alias(ALIAS)

    assert servers[:2] == [THERE, "other.example"]
    assert len(servers) <= 20


async def test_what_another_server_does_not_know_is_not_found() -> None:
    with pytest.raises(NotFound):
        await asking(PeerRefused(THERE, 404, "M_NOT_FOUND", "?")).alias(ALIAS)
    with pytest.raises(Forbidden):
        await asking(PeerRefused(THERE, 403, "M_FORBIDDEN", "no")).profile(BOB, None)
    with pytest.raises(PeerRefused):
        await asking(PeerRefused(THERE, 500, "M_UNKNOWN", "?")).profile(BOB, None)


async def test_names_that_are_no_text_are_left_out_of_profiles() -> None:
    answer = {"displayname": {"a": 1}, "avatar_url": 7, "m.tz": "Europe/Berlin"}

    assert await asking(answer).profile(BOB, None) == {"m.tz": "Europe/Berlin"}


async def test_a_field_is_just_that_field() -> None:
    answer = {"displayname": "Bob", "m.tz": "Europe/Berlin", "org.example.cat": {"name": "Tom"}}

    assert await asking(answer).profile(BOB, "org.example.cat") == {"org.example.cat": {"name": "Tom"}}
    assert await asking(answer).profile(BOB, "org.example.dog") == {}


async def test_a_profile_is_asked_for_once_a_minute() -> None:
    now = 1000.0
    peer = Peer({"displayname": "Bob"})
    queries = Queries(peer, lambda: now)  # type: ignore[arg-type]  # it has what they use

    assert [await queries.profile(BOB, None) for _ in range(3)] == [{"displayname": "Bob"}] * 3
    assert await queries.profile(BOB, "displayname") == {"displayname": "Bob"}
    assert peer.asked == 1
    peer.answer = {"displayname": "Robert"}
    now += PROFILE_SECONDS + 1
    assert await queries.profile(BOB, None) == {"displayname": "Robert"}
    peer.answer = PeerRefused(THERE, 404, "M_NOT_FOUND", "?")
    now += PROFILE_SECONDS + 1
    for _ in range(2):
        with pytest.raises(NotFound):
            await queries.profile(BOB, None)
    assert peer.asked == 3


async def test_profiles_are_not_remembered_without_end() -> None:
    peer = Peer({"displayname": "Bob", "org.example.big": "x" * MAX_REMEMBERED})
    queries = Queries(peer)  # type: ignore[arg-type]  # it has what they use
    await queries.profile(BOB, None)
    await queries.profile(BOB, None)
    assert peer.asked == 2  # too large to be remembered
    peer.answer = {"displayname": "Bob"}
    await queries.profile(BOB, None)
    for number in range(MAX_PROFILES):
        await queries.profile(UserID(f"@user{number}:{THERE}"), None)

    await queries.profile(BOB, None)

    assert peer.asked == 4 + MAX_PROFILES


async def test_rooms_that_are_none_are_left_out_of_lists() -> None:
    good = {"room_id": "!a:b", "num_joined_members": 2, "world_readable": True, "guest_can_join": False}
    bad: list[Any] = [1, {}, {**good, "room_id": 7}, {**good, "num_joined_members": "many"}]
    odd = {**good, "name": 7, "topic": "t", "canonical_alias": "none", "extra": {"a": 1}}

    page = await asking({"chunk": [*bad, good, odd], "next_batch": 1, "prev_batch": "p"}).public_rooms(THERE, {})

    assert page == {"chunk": [good, {**good, "topic": "t"}], "prev_batch": "p"}
    with pytest.raises(PeerUnreachable):
        await asking({"chunk": {}}).public_rooms(THERE, {})
