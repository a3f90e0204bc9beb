"""What relates to an event, and a room's threads (Client-Server API, "Relationships API", "Threading")."""

import pytest

from tests.client import Client, quote
from tests.homeserver.relating import (
    bundle_of,
    children,
    children_page,
    edit,
    ignore,
    react,
    refer,
    relates_to,
    reply,
    threads,
)
from tests.homeserver.rooms import a_room, act, join, leave, page, redact, set_visibility
from tests.rooms import create_room, send, send_event

# --- children


async def test_children_are_told_by_kind_and_by_type(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    parent = await send(alice, room_id, "parent")
    first = await reply(bob, room_id, parent)
    liked = await react(bob, room_id, parent)
    edited = await edit(alice, room_id, parent, "edited")
    voted = await refer(bob, room_id, parent)
    counted = await refer(bob, room_id, parent, "org.example.count")
    await send(bob, room_id, "a rich reply", **{"m.relates_to": {"m.in_reply_to": {"event_id": parent}}})

    assert await children(alice, room_id, parent) == [counted, voted, edited, liked, first]
    assert await children(alice, room_id, parent, "m.reference") == [counted, voted]
    assert await children(alice, room_id, parent, "m.reference", "org.example.vote") == [voted]
    assert await children(alice, room_id, parent, "m.thread", "org.example.vote") == []
    assert await children(alice, room_id, parent, "org.example.never.seen") == []
    assert await children(alice, room_id, first) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
async def test_pages_join_to_the_whole_in_both_directions(alice: Client, limit: int) -> None:
    room_id = await a_room(alice)
    parent = await send(alice, room_id, "parent")
    sent = []
    for number in range(4):
        sent += [await reply(alice, room_id, parent, f"r{number}"), await refer(alice, room_id, parent)]
        await send(alice, room_id, "between")

    assert await children(alice, room_id, parent, limit=limit, dir="b") == sent[::-1]
    assert await children(alice, room_id, parent, limit=limit, dir="f") == sent
    assert await children(alice, room_id, parent, "m.thread", limit=limit) == sent[::2][::-1]


async def test_tokens_are_those_of_messages_and_a_page_says_where_it_stands(alice: Client) -> None:
    room_id = await a_room(alice)
    parent = await send(alice, room_id, "parent")
    early = [await reply(alice, room_id, parent, f"e{number}") for number in range(2)]
    between = (await page(alice, room_id, limit=1))["start"]
    synced = (await alice.ok("GET", "/v3/sync"))["next_batch"]
    late = [await reply(alice, room_id, parent, f"l{number}") for number in range(2)]

    for token in (between, synced):
        assert await children(alice, room_id, parent, from_=token) == early[::-1]
        assert await children(alice, room_id, parent, from_=token, dir="f") == late
        assert await children(alice, room_id, parent, to=token) == late[::-1]
        assert await children(alice, room_id, parent, to=token, dir="f") == early
    first = await children_page(alice, room_id, parent, limit=2)
    second = await children_page(alice, room_id, parent, limit=2, from_=first["next_batch"])
    assert "prev_batch" not in first
    assert second["prev_batch"] == first["next_batch"]
    assert "next_batch" not in second
    assert "recursion_depth" not in second


async def test_children_come_with_what_relates_to_them(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    first = await reply(alice, room_id, root)
    edited = await edit(alice, room_id, first, "edited")

    (told,) = (await children_page(alice, room_id, root, "m.thread"))["chunk"]

    assert bundle_of(told)["m.replace"]["event_id"] == edited


async def test_recursion_follows_three_relations_and_what_is_asked_for_alone(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    first = await reply(alice, room_id, root)
    liked = await react(alice, room_id, first)
    chain = [await refer(alice, room_id, root)]
    for _ in range(3):
        chain.append(await refer(alice, room_id, chain[-1]))

    answer = await children_page(alice, room_id, root, recurse="true", limit=50)
    assert [event["event_id"] for event in answer["chunk"]] == [*chain[2::-1], liked, first]
    assert answer["recursion_depth"] == 3
    assert (await children_page(alice, room_id, root, recurse="false"))["recursion_depth"] == 1
    assert await children(alice, room_id, root, recurse="true", limit=2, dir="f") == [first, liked, *chain[:3]]
    assert await children(alice, room_id, root, recurse="true", limit=1) == [*chain[2::-1], liked, first]
    assert await children(alice, room_id, root, "m.annotation", recurse="true") == []
    assert await children(alice, room_id, root, "m.reference", recurse="true") == chain[2::-1]


async def test_a_redacted_child_is_none_and_a_redacted_parent_keeps_its_children(alice: Client) -> None:
    room_id = await a_room(alice)
    parent = await send(alice, room_id, "parent")
    first, second = [await reply(alice, room_id, parent) for _ in range(2)]
    await redact(alice, room_id, first)
    await redact(alice, room_id, parent)

    assert await children(alice, room_id, parent) == [second]


async def test_children_are_only_for_who_may_see_them(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="joined")
    parent = await send(alice, room_id, "parent")
    path = f"/v1/rooms/{quote(room_id)}/relations/"

    assert (await bob.get(f"{path}{quote(parent)}")).body["errcode"] == "M_NOT_FOUND"
    await join(bob, room_id)
    assert (await bob.get(f"{path}{quote(parent)}")).body["errcode"] == "M_NOT_FOUND"
    seen = await send(alice, room_id, "seen")
    before = await reply(alice, room_id, seen)
    await leave(bob, room_id)
    await reply(alice, room_id, seen)
    assert await children(bob, room_id, seen) == [before]
    await join(bob, room_id)
    after = await reply(alice, room_id, seen)
    for limit in (1, 2, 10):
        assert await children(bob, room_id, seen, limit=limit) == [after, before]
    await act(alice, "ban", room_id, bob)
    await reply(alice, room_id, seen)
    assert await children(bob, room_id, seen) == [after, before]
    assert (await alice.get(f"{path}{quote('$' + 'a' * 43)}")).status == 404
    other = await a_room(alice)
    assert (await alice.get(f"/v1/rooms/{quote(other)}/relations/{quote(seen)}")).status == 404


async def test_children_of_ignored_users_are_left_out(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    parent = await send(alice, room_id, "parent")
    own = await reply(alice, room_id, parent)
    for _ in range(5):
        await reply(bob, room_id, parent)
    await ignore(alice, bob)

    assert await children(alice, room_id, parent, limit=1) == [own]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "x"},
        {"dir": "x"},
        {"from_": "x"},
        {"to": "t"},
        {"recurse": "maybe"},
    ],
)
async def test_a_query_that_means_nothing_is_refused(alice: Client, query: dict[str, str]) -> None:
    room_id = await a_room(alice)
    parent = await send(alice, room_id, "parent")

    answer = await alice.get(f"/v1/rooms/{quote(room_id)}/relations/{quote(parent)}", **query)

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_names_that_cannot_be_are_found_nowhere(alice: Client) -> None:
    room_id = await a_room(alice)
    parent = await send(alice, room_id, "parent")
    await reply(alice, room_id, parent)

    assert await children(alice, room_id, parent, "m.thread", "\u2063") == []
    assert await children(alice, room_id, parent, "x" * 3000) == []


# --- threads


async def test_threads_are_told_by_their_newest_reply(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    roots = [await send(alice, room_id, f"root {number}") for number in range(4)]
    for root in roots:
        await reply(alice, room_id, root)
    last = await reply(bob, room_id, roots[1])
    await send(alice, room_id, "no thread")

    for limit in (1, 2, 3, 100):
        told = await threads(alice, room_id, limit=limit)
        assert [root["event_id"] for root in told] == [roots[1], roots[3], roots[2], roots[0]]
        assert bundle_of(told[0])["m.thread"]["latest_event"]["event_id"] == last
    assert [root["event_id"] for root in await threads(bob, room_id, include="participated")] == [roots[1]]
    assert len(await threads(alice, room_id, include="participated")) == 4

    await redact(bob, room_id, last)
    assert [root["event_id"] for root in await threads(alice, room_id)] == roots[::-1]
    assert await threads(bob, room_id, include="participated") == []


async def test_the_root_of_an_ignored_user_is_told_redacted(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    theirs = await send(bob, room_id, "theirs")
    await edit(bob, room_id, theirs, "edited")
    await reply(alice, room_id, theirs)
    alone = await send(alice, room_id, "mine")
    await reply(bob, room_id, alone)
    await ignore(alice, bob)

    (told,) = await threads(alice, room_id)

    assert (told["event_id"], told["content"]) == (theirs, {})
    assert bundle_of(told).keys() == {"m.thread"}
    assert {root["event_id"] for root in await threads(bob, room_id)} == {theirs, alone}


async def test_only_visible_threads_are_told(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="joined")
    hidden, half = [await send(alice, room_id, text) for text in ("hidden", "half")]
    await reply(alice, room_id, hidden)
    await join(bob, room_id)
    await reply(alice, room_id, half)
    shown = await send(alice, room_id, "shown")
    await reply(alice, room_id, shown)

    assert [root["event_id"] for root in await threads(bob, room_id, limit=1)] == [shown]
    await leave(bob, room_id)
    await reply(alice, room_id, await send(alice, room_id, "later"))
    assert [root["event_id"] for root in await threads(bob, room_id)] == [shown]
    carol = await alice.register("carol")
    answer = await carol.get(f"/v1/rooms/{quote(room_id)}/threads")
    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    await set_visibility(alice, room_id, "world_readable")
    await reply(alice, room_id, shown)
    assert (await carol.get(f"/v1/rooms/{quote(room_id)}/threads")).status == 200


async def test_what_relates_to_another_event_starts_no_thread(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    children = [await reply(alice, room_id, root), await react(alice, room_id, root)]

    for child in children:
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/{quote(child)}"
        answer = await alice.put(path, {"msgtype": "m.text", "body": "x", **relates_to("m.thread", child)})
        assert (answer.status, answer.body["errcode"]) == (400, "M_UNKNOWN")
    assert [each["event_id"] for each in await threads(alice, room_id)] == [root]


async def test_a_query_of_threads_that_means_nothing_is_refused(alice: Client) -> None:
    room_id = await create_room(alice)

    for query in ({"include": "some"}, {"limit": "0"}, {"from_": "nowhere"}):
        answer = await alice.get(f"/v1/rooms/{quote(room_id)}/threads", **query)
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_the_same_annotation_is_refused_until_the_first_is_redacted(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    parent = await send(alice, room_id, "parent")
    first = await react(alice, room_id, parent, "+1")

    path = f"/v3/rooms/{quote(room_id)}/send/m.reaction/again"
    again = await alice.put(path, relates_to("m.annotation", parent, key="+1"))
    assert (again.status, again.body["errcode"]) == (400, "M_DUPLICATE_ANNOTATION")

    await react(bob, room_id, parent, "+1")
    await react(alice, room_id, parent, "-1")
    await send_event(alice, room_id, "org.example.flag", relates_to("m.annotation", parent, key="+1"))
    await redact(alice, room_id, first)
    await react(alice, room_id, parent, "+1")
