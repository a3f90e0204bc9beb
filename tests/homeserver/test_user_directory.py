"""Searching users (Client-Server API, "User Directory")."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from homeserver.config import UserDirectory
from tests.client import Client, Server, unique
from tests.homeserver.rooms import a_room, act, leave, set_state, set_visibility
from tests.rooms import create_room, join
from tests.servers import running


async def search(client: Client, term: str, **body: Any) -> Any:
    return await client.ok("POST", "/v3/user_directory/search", {"search_term": term, **body})


async def found(client: Client, term: str) -> list[str]:
    return [result["user_id"] for result in (await search(client, term))["results"]]


async def until_found(client: Client, term: str, *users: Client) -> None:
    """Wait until somebody finds exactly these for a term."""
    await until(client, term, lambda ids: sorted(ids) == sorted(user.user_id for user in users))


async def until(client: Client, term: str, condition: Callable[[list[str]], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition(await found(client, term)):  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.05)


async def name(client: Client, display_name: str) -> None:
    await client.ok("PUT", f"/v3/profile/{client.user_id}/displayname", {"displayname": display_name})


async def a_private_room(owner: Client, *members: Client) -> str:
    room_id = await create_room(owner, preset="private_chat", invite=[member.user_id for member in members])
    for member in members:
        await join(member, room_id)
    return room_id


async def test_who_shares_a_room_is_found_and_others_are_not(server: Server, alice: Client, bob: Client) -> None:
    word = unique("zoe").replace("-", "")
    carol = await server.register("carol")
    await name(bob, f"{word} Smith")
    room_id = await a_private_room(alice, bob)

    await until_found(alice, word, bob)
    assert await found(carol, word) == []
    result = (await search(alice, word))["results"][0]
    assert result == {"user_id": bob.user_id, "display_name": f"{word} Smith"}

    await leave(bob, room_id)
    await until_found(alice, word)


async def test_who_is_in_a_public_room_is_found_by_everybody(server: Server, alice: Client, bob: Client) -> None:
    word = unique("yan").replace("-", "")
    carol = await server.register("carol")
    await name(alice, f"{word} one")
    await name(bob, f"{word} two")
    room_id = await a_room(alice, bob)
    await until_found(carol, word, alice, bob)

    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})
    await until_found(carol, word)
    assert await found(alice, word) == [bob.user_id]

    await set_visibility(alice, room_id, "world_readable")
    await until_found(carol, word, alice, bob)

    await act(alice, "ban", room_id, bob)
    await until_found(carol, word, alice)


@pytest.mark.parametrize(
    ("display_name", "terms", "absent"),
    [
        ("Jean-Luc Øre PICARD", ("jean", "pic", "jean pic", "LUC", "picard jean"), ("card", "jeanne")),
        ("Zoë Müller", ("zoe", "mull", "MÜLLER", "zoë"), ("oe",)),
        ("田中太郎", ("田中", "太郎", "田"), ("田太",)),
        ("Ёлка Иванова", ("елка", "ИВАН"), ("ванова",)),
        ("Hundred% _sure_", ("hundred", "sure", "SUR%"), ("%", "_", "undred")),
    ],
)
async def test_words_of_names_are_found_by_how_they_begin(
    server: Server, alice: Client, bob: Client, display_name: str, terms: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    word = unique("w").replace("-", "")
    await name(bob, f"{display_name} {word}")
    await a_private_room(alice, bob)
    await until_found(alice, word, bob)

    for term in terms:
        assert await found(alice, f"{term} {word}") == [bob.user_id], term
        assert await found(alice, term) == [bob.user_id], term
    for term in absent:
        assert await found(alice, term) == [], term


async def test_users_are_found_by_their_ids(server: Server, alice: Client, bob: Client) -> None:
    local_part = bob.user_id[1:].partition(":")[0]
    await a_private_room(alice, bob)
    await until_found(alice, bob.user_id, bob)

    for term in (f"@{local_part}", local_part, local_part.upper(), f"@{local_part}:hea", bob.user_id[:-1]):
        assert await found(alice, term) == [bob.user_id], term
    assert await found(alice, f"@{local_part}:example.org") == []
    assert await found(alice, f"@{local_part[1:]}") == []


async def test_a_changed_profile_is_found_at_once(server: Server, alice: Client, bob: Client) -> None:
    before, after = unique("before").replace("-", ""), unique("after").replace("-", "")
    await name(bob, before)
    await a_private_room(alice, bob)
    await until_found(alice, before, bob)

    await bob.ok("PUT", f"/v3/profile/{bob.user_id}/avatar_url", {"avatar_url": "mxc://example.org/face"})
    await name(bob, after)

    await until_found(alice, before)
    await until_found(alice, after, bob)
    result = {"user_id": bob.user_id, "display_name": after, "avatar_url": "mxc://example.org/face"}
    assert (await search(alice, after))["results"] == [result]


async def test_what_somebody_is_called_in_one_room_is_not_told_elsewhere(
    server: Server, alice: Client, bob: Client
) -> None:
    word, nick = unique("name").replace("-", ""), unique("nick").replace("-", "")
    await name(bob, word)
    room_id = await a_room(alice, bob)
    await until_found(alice, word, bob)

    await set_state_of(bob, room_id, {"membership": "join", "displayname": nick})
    await name(alice, "something, to wait for")
    await until(bob, "something", lambda ids: alice.user_id in ids)

    assert await found(alice, nick) == []
    assert await found(alice, word) == [bob.user_id]


async def set_state_of(client: Client, room_id: str, content: Any) -> None:
    await client.ok("PUT", f"/v3/rooms/{room_id}/state/m.room.member/{client.user_id}", content)


async def test_the_best_come_first_and_no_more_than_asked_for(server: Server, alice: Client) -> None:
    word = unique("xan").replace("-", "")
    users = [await server.register("many") for _ in range(6)]
    names = (f"{word}s", f"Mr {word}", word, f"{word}more", f"A {word} B", "Nobody")
    for user, display_name in zip(users, names, strict=True):
        await name(user, display_name)
    await a_room(users[0], *users[1:])
    await until_found(alice, word, *users[:5])

    answer = await search(alice, word, limit=3)

    assert answer["limited"] is True
    assert [result["display_name"] for result in answer["results"]] == [word, f"A {word} B", f"Mr {word}"]
    assert (await search(alice, word, limit=5))["limited"] is False
    assert (await search(alice, word, limit=0)) == {"results": [], "limited": True}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"search_term": 1}, "M_BAD_JSON"),
        ({"search_term": "a", "limit": "1"}, "M_BAD_JSON"),
        ({"search_term": "a", "limit": -1}, "M_INVALID_PARAM"),
        ({"search_term": "a" * 10_000}, "M_INVALID_PARAM"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(alice: Client, body: Any, errcode: str) -> None:
    answer = await alice.post("/v3/user_directory/search", body)

    assert (answer.status, answer.body["errcode"]) == (400, errcode)


async def test_terms_without_words_find_nobody(alice: Client) -> None:
    for term in ("", " ", "@", "%", "\\", "' or 1=1", "\u0000", "@\u0000"):
        assert await found(alice, term) == []


@pytest_asyncio.fixture
async def open_server(conninfo: str) -> AsyncIterator[Server]:
    async with running(conninfo, user_directory=UserDirectory(all_local_users=True)) as server:
        yield server


async def test_everybody_of_this_server_is_found_where_that_is_wanted(open_server: Server) -> None:
    alice, bob, carol = [await open_server.register(each) for each in ("alice", "bob", "carol")]
    await name(bob, "Robert")

    await until_found(alice, "rob", bob)
    assert await found(alice, "carol") == [carol.user_id]
    await carol.ok("POST", "/v3/account/deactivate", {"auth": carol.password_auth()})
    await until_found(alice, "carol")


async def test_a_directory_that_is_not_there_is_made(conninfo: str) -> None:
    async with running(conninfo) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        await name(bob, "Robert")
        await a_room(alice, bob)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("truncate directory_users, directory_words, directory_rooms, index_versions, followers")
    async with running(conninfo) as server:
        carol = await server.register("carol")
        await until_found(carol, "rob", bob)
