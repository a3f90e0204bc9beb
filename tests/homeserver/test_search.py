"""Searching messages (Client-Server API, "Server Side Search")."""

import asyncio
import dataclasses
from typing import Any

import pytest

from federation.rooms import message_search
from homeserver.client_api.search import MAX_STATES
from homeserver.config import Language, Search
from homeserver.followers import message_index
from storage import search_index
from tests.client import Client, Server, unique
from tests.homeserver.rooms import a_room, act, join, leave, redact, set_state, set_visibility
from tests.rooms import create_room, send, send_event
from tests.servers import running


async def until_indexed(server: Server) -> None:
    """Wait until everything that was said is indexed."""
    database, indexer = server.application.database, server.application.search.indexer
    assert indexer is not None
    async with asyncio.timeout(30), database.read() as tx:
        row = await tx.fetch_one("select position from log_head")
        head = row[0] if row is not None else 0
        while True:
            row = await tx.fetch_one(
                "select position from followers where name = 'search' and not exists (select from search_backlog)"
                " and exists (select from index_versions where name = 'search' and version = %s)",
                (indexer.version,),
            )
            if row is not None and max(row[0], server.application.followers.position_of("search") or 0) >= head:
                return
            await asyncio.sleep(0.05)


async def search(client: Client, term: str, next_batch: str | None = None, **criteria: Any) -> Any:
    """What the client is answered for a term."""
    body = {"search_categories": {"room_events": {"search_term": term, **criteria}}}
    params = {} if next_batch is None else {"next_batch": next_batch}
    return (await client.ok("POST", "/v3/search", body, params=params))["search_categories"]["room_events"]


async def found(server: Server, client: Client, term: str, **criteria: Any) -> list[str]:
    """The IDs of what the client finds, once everything is indexed, the most recent first."""
    await until_indexed(server)
    answer = await search(client, term, **{"order_by": "recent", **criteria})
    return [result["result"]["event_id"] for result in answer["results"]]


async def test_a_message_is_found_by_its_words_in_any_form(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    word = unique("word")
    wanted = await send(alice, room_id, f"Martians, and {word.upper()}: they were landing!")
    await send(alice, room_id, f"Nothing of {word} with them")
    await send(alice, room_id, "Martians alone")

    assert await found(server, alice, f"martian {word}") == [wanted]
    assert await found(server, alice, f'"MARTIANS" {word} lands') == [wanted]
    assert await found(server, alice, f"{word} venusians") == []
    answer = await search(alice, f"martian {word}")
    assert answer["count"] == 1
    assert answer["highlights"] == sorted(["martians", *word.split("-")])
    assert answer["results"][0]["result"]["content"]["body"].startswith("Martians")


@pytest.mark.parametrize(
    ("text", "terms", "absent"),
    [
        ("昨日、東京都でラーメンを食べた", ("東京", "東京都", "ラーメン", "食", "都で"), ("京東", "大阪", "東京で")),
        ("京都と東京へ行きます", ("京都", "東京"), ("東京都",)),
        ("我们明天去北京天安门广场看升旗", ("北京", "天安门", "广场", "明天 升旗"), ("南京", "天門")),
        ("학교에서 친구를 만났어요", ("학교", "친구", "만났"), ("학원",)),
        ("สวัสดีครับ ยินดีต้อนรับ", ("สวัสดี", "ยินดี"), ("ลาก่อน",)),
        ("Straße über Ångström naïve", ("strasse", "uber", "ÅNGSTRÖM", "naive"), ("strase",)),
        ("ﾃｽﾄです", ("テスト",), ("テント",)),
        ("Привет, Мир", ("привет", "МИР"), ("война",)),
        ("great work 👍", ("👍", "great 👍"), ("👎",)),
    ],
)
async def test_every_language_is_searched(
    server: Server, alice: Client, text: str, terms: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    room_id = await create_room(alice)
    event_id = await send(alice, room_id, text)

    for term in terms:
        assert await found(server, alice, term) == [event_id], term
    for term in absent:
        assert await found(server, alice, term) == [], term


async def test_names_and_topics_are_found_under_their_keys(server: Server, alice: Client) -> None:
    word = unique("word")
    room_id = await create_room(alice)
    body = await send(alice, room_id, f"body {word}")
    name = await set_state(alice, room_id, "m.room.name", {"name": f"name {word}"})
    rich = {"topic": "plain", "m.topic": {"m.text": [{"mimetype": "text/html", "body": "x"}, {"body": f"rich {word}"}]}}
    topic = await set_state(alice, room_id, "m.room.topic", rich)

    assert await found(server, alice, word) == [topic, name, body]
    assert await found(server, alice, word, keys=["content.body"]) == [body]
    assert await found(server, alice, word, keys=["content.name", "content.topic"]) == [topic, name]
    assert await found(server, alice, f"plain {word}", keys=["content.topic"]) == [topic]


async def test_nobody_finds_what_they_may_not_see(server: Server, alice: Client, bob: Client) -> None:
    word = unique("word")
    room_id = await a_room(alice, visibility="joined")
    before = await send(alice, room_id, f"before {word}")
    await join(bob, room_id)
    during = await send(alice, room_id, f"during {word}")
    await leave(bob, room_id)
    await set_visibility(alice, room_id, "world_readable")
    after = await send(alice, room_id, f"after {word}")
    carol = await server.register("carol")

    assert await found(server, alice, word) == [after, during, before]
    assert await found(server, bob, word) == [during]
    assert await found(server, carol, word) == []
    await bob.ok("POST", f"/v3/rooms/{room_id}/forget", {})
    assert await found(server, bob, word) == []


async def test_who_is_invited_finds_what_invited_users_may_see(server: Server, alice: Client, bob: Client) -> None:
    word = unique("word")
    room_id = await a_room(alice, visibility="invited")
    await send(alice, room_id, f"before {word}")
    await act(alice, "invite", room_id, bob)
    after = await send(alice, room_id, f"after {word}")

    assert await found(server, bob, word, event_context={"before_limit": 1, "after_limit": 1}) == [after]


async def test_what_is_redacted_is_gone_from_the_index(server: Server, alice: Client) -> None:
    word = unique("word")
    room_id = await create_room(alice)
    kept = await send(alice, room_id, f"kept {word}")
    gone = await send(alice, room_id, f"gone {word}")
    assert await found(server, alice, word) == [gone, kept]

    await redact(alice, room_id, gone)

    assert await found(server, alice, word) == [kept]
    async with server.application.database.read() as tx:
        rows = await tx.fetch(
            "select event_id from search_messages join events using (room, position) where event_id = any(%s::text[])",
            ([kept, gone],),
        )
    assert rows == [(kept,)]


def edit(event_id: str, text: str) -> dict[str, Any]:
    return {
        "msgtype": "m.text",
        "body": f"* {text}",
        "m.new_content": {"msgtype": "m.text", "body": text},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }


async def test_an_edited_message_is_found_by_what_it_says_now(server: Server, alice: Client, bob: Client) -> None:
    old, new, forged = unique("old"), unique("new"), unique("forged")
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, f"says {old}")
    await send_event(alice, room_id, "m.room.message", edit(event_id, "in between"))
    edited = await send_event(alice, room_id, "m.room.message", edit(event_id, f"says {new}"))
    await send_event(bob, room_id, "m.room.message", edit(event_id, f"says {forged}"))

    assert [await found(server, alice, term) for term in (old, new, forged)] == [[], [event_id], []]

    await redact(alice, room_id, edited)
    assert [await found(server, alice, term) for term in ("between", new)] == [[event_id], []]


async def test_an_edit_that_somebody_may_not_see_finds_them_nothing(server: Server, alice: Client, bob: Client) -> None:
    word = unique("word")
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "nothing yet")
    await leave(bob, room_id)
    await send_event(alice, room_id, "m.room.message", edit(event_id, word))

    assert await found(server, alice, word) == [event_id]
    assert await found(server, bob, word) == []


async def test_encrypted_rooms_are_not_searched(server: Server, alice: Client) -> None:
    word = unique("word")
    room_id = await create_room(alice)
    plain = await send(alice, room_id, f"plain {word}")
    assert await found(server, alice, word) == [plain]

    await set_state(alice, room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    await send(alice, room_id, f"plain, too {word}")

    assert await found(server, alice, word) == []
    async with server.application.database.read() as tx:
        rows = await tx.fetch("select 1 from search_messages join rooms using (room) where room_id = %s", (room_id,))
    assert rows == []


async def test_what_is_no_longer_to_be_searched_is_taken_out_in_parts(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_index, "REMOVED_AT_ONCE", 3)
    word = unique("word")
    kept_room, room_id = await create_room(alice), await create_room(alice)
    kept = await send(alice, kept_room, word)
    for _ in range(10):
        await send(alice, room_id, word)
    assert len(await found(server, alice, word, filter={"limit": 20})) == 11

    await set_state(alice, room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})

    assert await found(server, alice, word) == [kept]
    async with server.application.database.read() as tx:
        rows = await tx.fetch("select 1 from search_messages join rooms using (room) where room_id = %s", (room_id,))
    assert rows == []


async def test_results_come_page_by_page_each_once(server: Server, alice: Client) -> None:
    word = unique("word")
    rooms = [await create_room(alice) for _ in range(2)]
    sent = [await send(alice, rooms[number % 2], f"{word} {'and more ' * (number % 5)}") for number in range(23)]
    await until_indexed(server)

    for order in ("recent", "rank"):
        seen: list[str] = []
        token: str | None = None
        for _ in range(10):
            answer = await search(alice, word, token, order_by=order, filter={"limit": 5})
            seen += [result["result"]["event_id"] for result in answer["results"]]
            assert answer["count"] >= len(seen)
            token = answer.get("next_batch")
            if token is None:
                break
            if order == "rank" or len(seen) > 10:  # so few more were looked at by then
                assert answer["count"] == 23
        assert len(seen) == 23
        assert seen == sent[::-1] if order == "recent" else sorted(seen) == sorted(sent)


async def test_the_most_relevant_comes_first_unless_the_most_recent_is_asked_for(server: Server, alice: Client) -> None:
    word = unique("word")
    room_id = await create_room(alice)
    best = await send(alice, room_id, f"{word} {word}")
    worst = await send(alice, room_id, f"{word} {'and a lot of other things ' * 10}")

    assert await found(server, alice, word) == [worst, best]
    assert await found(server, alice, word, order_by="rank") == [best, worst]
    ranks = [result["rank"] for result in (await search(alice, word))["results"]]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[1]


@pytest.mark.parametrize("order", ["recent", "rank"])
@pytest.mark.parametrize("windows", [200, 4])
async def test_each_group_can_be_paged_by_itself(
    server: Server, alice: Client, bob: Client, order: str, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_search, "RANKED", windows)
    word = unique("word")
    rooms = [await a_room(alice, bob) for _ in range(2)]
    sent: dict[str, list[str]] = {}
    for number in range(16):
        room_id, who = rooms[number % 2], (alice, bob)[number // 2 % 2]
        event_id = await send(who, room_id, f"{word} {'x ' * (number % 3)}")
        sent.setdefault(room_id, []).append(event_id)
        sent.setdefault(who.user_id, []).append(event_id)
    await until_indexed(server)
    criteria: dict[str, Any] = {
        "order_by": order,
        "groupings": {"group_by": [{"key": "room_id"}, {"key": "sender"}]},
        "filter": {"limit": 4},
    }

    first = await search(alice, word, **criteria)

    shown = [result["result"]["event_id"] for result in first["results"]]
    assert len(shown) == 4
    for key in ("room_id", "sender"):
        groups = first["groups"][key]
        assert sorted(event_id for group in groups.values() for event_id in group["results"]) == sorted(shown)
        assert sorted(group["order"] for group in groups.values()) == list(range(1, len(groups) + 1))
        for value, group in groups.items():
            seen, token = list(group["results"]), group["next_batch"]
            while token is not None:
                answer = await search(alice, word, token, **criteria)
                seen += [result["result"]["event_id"] for result in answer["results"]]
                token = answer.get("next_batch")
            assert sorted(seen) == sorted(sent[value])


async def test_results_come_with_their_context(server: Server, alice: Client, bob: Client) -> None:
    word = unique("word")
    room_id = await a_room(alice, bob)
    await alice.ok("PUT", f"/v3/profile/{alice.user_id}/displayname", {"displayname": "Old name"})
    around = [await send(who, room_id, f"{number}") for number, who in enumerate((alice, bob, alice))]
    wanted = await send(bob, room_id, word)
    around += [await send(who, room_id, f"{number}") for number, who in enumerate((alice, bob, alice))]
    await alice.ok("PUT", f"/v3/profile/{alice.user_id}/displayname", {"displayname": "New name"})
    await until_indexed(server)

    limits = {"before_limit": 2, "after_limit": 1, "include_profile": True}
    (result,) = (await search(bob, word, event_context=limits))["results"]

    context = result["context"]
    assert result["result"]["event_id"] == wanted
    assert [event["event_id"] for event in context["events_before"]] == [around[2], around[1]]
    assert [event["event_id"] for event in context["events_after"]] == [around[3]]
    assert context["profile_info"][alice.user_id]["displayname"] == "Old name"
    page = await bob.get(f"/v3/rooms/{room_id}/messages", dir="b", from_=context["start"], limit=1)
    assert page.body["chunk"][0]["event_id"] == around[0]
    page = await bob.get(f"/v3/rooms/{room_id}/messages", dir="f", from_=context["end"], limit=1)
    assert page.body["chunk"][0]["event_id"] == around[4]


async def test_a_filter_says_whose_and_which_events_are_wanted(server: Server, alice: Client, bob: Client) -> None:
    word = unique("word")
    rooms = [await a_room(alice, bob) for _ in range(2)]
    sent = [await send(who, room_id, word) for room_id in rooms for who in (alice, bob)]
    image = {"msgtype": "m.image", "body": word, "url": "mxc://example.org/a"}
    picture = await send_event(alice, rooms[0], "m.room.message", image)

    assert await found(server, alice, word, filter={"rooms": [rooms[1]]}) == [sent[3], sent[2]]
    assert await found(server, alice, word, filter={"not_rooms": [rooms[1]]}) == [picture, sent[1], sent[0]]
    assert await found(server, alice, word, filter={"senders": [bob.user_id]}) == [sent[3], sent[1]]
    assert await found(server, alice, word, filter={"not_senders": [alice.user_id]}) == [sent[3], sent[1]]
    assert await found(server, alice, word, filter={"contains_url": True}) == [picture]
    assert await found(server, alice, word, filter={"types": ["m.room.topic"]}) == []
    assert await found(server, alice, word, filter={"rooms": ["!unknown:example.org"]}) == []
    ignored: Any = {"ignored_users": {bob.user_id: {}}}
    await alice.ok("PUT", f"/v3/user/{alice.user_id}/account_data/m.ignored_user_list", ignored)
    assert await found(server, alice, word) == [picture, sent[2], sent[0]]


async def test_the_state_of_rooms_with_results_is_given_where_asked_for(
    server: Server, alice: Client, bob: Client
) -> None:
    word = unique("word")
    room_id = await a_room(alice, bob, name="The room")
    await send(alice, room_id, word)
    await until_indexed(server)

    assert "state" not in await search(bob, word)
    state = (await search(bob, word, include_state=True))["state"]

    assert list(state) == [room_id]
    assert {event["content"].get("name") for event in state[room_id] if event["type"] == "m.room.name"} == {"The room"}


async def test_the_state_of_few_rooms_is_told_at_once(server: Server, alice: Client) -> None:
    word = unique("word")
    for _ in range(7):
        await send(alice, await a_room(alice), word)
    await until_indexed(server)

    answer = await search(alice, word, include_state=True)

    assert len(answer["results"]) == len(answer["state"]) == MAX_STATES
    assert "next_batch" in answer


@pytest.mark.parametrize(
    ("criteria", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"search_term": 5}, "M_BAD_JSON"),
        ({"search_term": "x" * 10_000}, "M_INVALID_PARAM"),
        ({"search_term": "x", "keys": ["content.formatted_body"]}, "M_INVALID_PARAM"),
        ({"search_term": "x", "keys": "content.body"}, "M_BAD_JSON"),
        ({"search_term": "x", "order_by": "best"}, "M_INVALID_PARAM"),
        ({"search_term": "x", "filter": []}, "M_BAD_JSON"),
        ({"search_term": "x", "filter": {"limit": -1}}, "M_BAD_JSON"),
        ({"search_term": "x", "event_context": {"before_limit": -1}}, "M_INVALID_PARAM"),
        ({"search_term": "x", "event_context": {"after_limit": "1"}}, "M_BAD_JSON"),
        ({"search_term": "x", "groupings": {"group_by": [{"key": "type"}]}}, "M_INVALID_PARAM"),
        ({"search_term": "x", "groupings": {"group_by": [{}]}}, "M_MISSING_PARAM"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(alice: Client, criteria: Any, errcode: str) -> None:
    answer = await alice.post("/v3/search", {"search_categories": {"room_events": criteria}})

    assert (answer.status, answer.body["errcode"]) == (400, errcode)


@pytest.mark.parametrize(
    "token", ["", "x", "§", "W10", "bnVsbA", "WzEsMiwzXQ", "WzEsbnVsbCwtMSwwLG51bGwsbnVsbF0", "WzFlOTksMCwwLDAsMSwyXQ"]
)
async def test_a_token_of_somewhere_else_is_refused(alice: Client, token: str) -> None:
    body = {"search_categories": {"room_events": {"search_term": "x"}}}

    answer = await alice.post("/v3/search", body, next_batch=token)

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_terms_without_words_find_nothing(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    await send(alice, room_id, "?!")

    for term in ("", "?!", "'\"\\ %_", "\u0000", "\u200b"):
        assert await found(server, alice, term) == []
    assert await alice.ok("POST", "/v3/search", {"search_categories": {}}) == {"search_categories": {}}


async def test_words_beyond_all_bounds_are_cut_off(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    word = unique("word")
    event_id = await send(alice, room_id, f"{word} " + " ".join(f"w{number}" for number in range(8_000)))
    long = await send(alice, room_id, word + "x" * 40_000)

    assert await found(server, alice, word) == [event_id]
    assert await found(server, alice, word + "x" * 900) == [long]
    assert await found(server, alice, f"{word} w5") == [event_id]


async def test_bands_are_looked_through_one_after_the_other(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "BAND_SIZE", 3)
    word = unique("word")
    room_id = await create_room(alice)
    sent = []
    for number in range(14):
        sent.append(await send(alice, room_id, f"{word} {number % 2}"))
        if number % 2:
            await until_indexed(server)
    await send_event(alice, room_id, "m.room.message", edit(sent[1], f"{word} edited"))

    assert await found(server, alice, word, filter={"limit": 14}) == sent[::-1]
    assert await found(server, alice, f"{word} 0", filter={"limit": 3}) == sent[12:7:-2]
    assert await found(server, alice, f"{word} edited") == [sent[1]]


@pytest.mark.one_process("a limit is lowered here")
async def test_names_and_topics_stand_among_messages(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "_TITLES", 2)
    word = unique("word")
    room_id = await create_room(alice)
    wanted: list[str] = []
    gone = await set_state(alice, room_id, "m.room.topic", {"topic": f"{word} was redacted"})
    for number in range(5):
        wanted.append(await set_state(alice, room_id, "m.room.topic", {"topic": f"{word} {number}"}))
        await set_state(alice, room_id, "m.room.name", {"name": f"something else {number}"})
        wanted.append(await send(alice, room_id, f"{word} {number}"))
    await redact(alice, room_id, gone)

    assert await found(server, alice, word, filter={"limit": 20}) == wanted[::-1]
    assert await found(server, alice, word, filter={"limit": 20}, keys=["content.topic"]) == wanted[-2::-2]
    pages: list[str] = []
    token: str | None = None
    for _ in range(20):
        answer = await search(alice, word, token, filter={"limit": 3}, order_by="recent")
        pages += [each["result"]["event_id"] for each in answer["results"]]
        token = answer.get("next_batch")
        if token is None:
            break
    assert pages == wanted[::-1]
    async with server.application.database.read() as tx:
        rows = await tx.fetch("select 1 from search_titles join rooms using (room) where room_id = %s", (room_id,))
    assert len(rows) == 10


async def test_an_index_that_is_not_there_is_made(conninfo: str) -> None:
    async with running(conninfo) as server:
        alice = await server.register("alice")
        room_id = await create_room(alice)
        sent = [await send(alice, room_id, f"hello {number}") for number in range(20)]
        await send_event(alice, room_id, "m.room.message", edit(sent[0], "hello edited"))
        await redact(alice, room_id, sent[1])
        await until_indexed(server)
    async with running(conninfo, search=Search(enabled=False)) as server:
        alice = again(alice, server)
        answer = await alice.post("/v3/search", {"search_categories": {"room_events": {"search_term": "hello"}}})
        assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")
        late = await send(alice, room_id, "hello, too")
        async with server.application.database.read() as tx:
            assert await tx.fetch("select 1 from search_messages union all select 1 from search_bands") == []
    async with running(conninfo) as server:
        alice = again(alice, server)
        assert await found(server, alice, "hello", filter={"limit": 50}) == [late, *sent[:1:-1], sent[0]]
        assert await found(server, alice, "hello edited") == [sent[0]]
    async with running(conninfo, search=Search(language=Language.GERMAN)) as server:
        alice = again(alice, server)
        assert await found(server, alice, "hello", filter={"limit": 50}) == [late, *sent[:1:-1], sent[0]]


def again(client: Client, server: Server) -> Client:
    """The same user at a server that was started anew."""
    return dataclasses.replace(client, base_url=server.base_url, session=server.anonymous.session)
