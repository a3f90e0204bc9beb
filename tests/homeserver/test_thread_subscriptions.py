"""Threads that users follow (MSC4306), and what clients are told of it (MSC4308)."""

import asyncio
from typing import Any

import pytest

from tests.client import Answer, Client, quote
from tests.homeserver.relating import react, reply
from tests.homeserver.rooms import a_room, act, leave
from tests.homeserver.syncs import set_state, token
from tests.rooms import send

CHANGES = "/unstable/io.element.msc4308/thread_subscriptions"
CONFLICT = (409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
NOT_IN_THREAD = (400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")


async def ask(client: Client, method: str, room_id: str, root: str, body: Any = None) -> Answer:
    path = f"/unstable/io.element.msc4306/rooms/{quote(room_id)}/thread/{quote(root)}/subscription"
    return await client.request(method, path, body)


async def subscribe(client: Client, room_id: str, root: str, automatic: str | None = None) -> None:
    answer = await ask(client, "PUT", room_id, root, {} if automatic is None else {"automatic": automatic})
    assert (answer.status, answer.body) == (200, {})


async def unsubscribe(client: Client, room_id: str, root: str) -> None:
    answer = await ask(client, "DELETE", room_id, root)
    assert (answer.status, answer.body) == (200, {})


async def subscription(client: Client, room_id: str, root: str) -> Any:
    """What is told of a subscription; None where there is none."""
    answer = await ask(client, "GET", room_id, root)
    if answer.status == 404:
        assert answer.body["errcode"] == "M_NOT_FOUND"
        return None
    assert answer.status == 200
    return answer.body


async def changes(client: Client, **params: Any) -> Any:
    """One page of what changed."""
    answer = await client.get(CHANGES, **{"dir": "b", **params})
    assert answer.status == 200, answer.body
    return answer.body


async def a_thread(alice: Client, *others: Client) -> tuple[str, str, str]:
    """A room, a root and a reply."""
    room_id = await a_room(alice, *others)
    root = await send(alice, room_id, "root")
    return room_id, root, await reply(alice, room_id, root)


async def test_a_thread_is_followed_until_it_is_not(alice: Client, bob: Client) -> None:
    room_id, root, _ = await a_thread(alice, bob)
    assert await subscription(bob, room_id, root) is None

    await subscribe(bob, room_id, root)
    await subscribe(bob, room_id, root)
    assert await subscription(bob, room_id, root) == {"automatic": False}
    assert await subscription(alice, room_id, root) is None

    await unsubscribe(bob, room_id, root)
    await unsubscribe(bob, room_id, root)
    assert await subscription(bob, room_id, root) is None


async def test_what_a_user_chose_counts_more_than_what_their_client_does(alice: Client) -> None:
    room_id, root, first = await a_thread(alice)

    await subscribe(alice, room_id, root, first)
    assert await subscription(alice, room_id, root) == {"automatic": True}
    await subscribe(alice, room_id, root)
    assert await subscription(alice, room_id, root) == {"automatic": False}
    await subscribe(alice, room_id, root, first)
    assert await subscription(alice, room_id, root) == {"automatic": False}


async def test_what_came_before_an_unsubscription_subscribes_nobody_again(alice: Client) -> None:
    room_id, root, first = await a_thread(alice)
    await subscribe(alice, room_id, root, first)
    await unsubscribe(alice, room_id, root)

    for _ in range(2):
        answer = await ask(alice, "PUT", room_id, root, {"automatic": first})
        assert (answer.status, answer.body["errcode"]) == CONFLICT
    assert await subscription(alice, room_id, root) is None

    later = await reply(alice, room_id, root)
    await subscribe(alice, room_id, root, later)
    assert await subscription(alice, room_id, root) == {"automatic": True}
    await unsubscribe(alice, room_id, root)
    await subscribe(alice, room_id, root)
    assert await subscription(alice, room_id, root) == {"automatic": False}


async def test_the_cause_has_to_be_in_the_thread(alice: Client) -> None:
    room_id, root, _ = await a_thread(alice)
    elsewhere = await reply(alice, room_id, await send(alice, room_id, "another root"))

    for cause in (elsewhere, await react(alice, room_id, root), "$" + "a" * 43):
        answer = await ask(alice, "PUT", room_id, root, {"automatic": cause})
        assert (answer.status, answer.body["errcode"]) == NOT_IN_THREAD
    for nonsense in (True, 1, "", "event", ["$a"]):
        answer = await ask(alice, "PUT", room_id, root, {"automatic": nonsense})
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_a_thread_that_one_sees_can_be_followed(alice: Client, bob: Client, method: str) -> None:
    room_id, root, first = await a_thread(alice)
    name = await set_state(alice, room_id, "m.room.name", {"name": "a"})

    for client, event_id in ((bob, root), (alice, "$" + "a" * 43), (alice, first), (alice, name)):
        answer = await ask(client, method, room_id, event_id, None if method == "GET" else {})
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_who_left_or_was_banned_may_stop_following(alice: Client, bob: Client) -> None:
    room_id, root, _ = await a_thread(alice, bob)
    await subscribe(bob, room_id, root)
    await leave(bob, room_id)
    assert await subscription(bob, room_id, root) == {"automatic": False}

    await act(alice, "ban", room_id, bob)
    await unsubscribe(bob, room_id, root)

    assert await subscription(bob, room_id, root) is None


async def test_changes_are_told_newest_first_and_each_thread_once(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    roots = [await send(alice, room_id, f"root {number}") for number in range(5)]
    since = await token(alice)
    for root in roots:
        await subscribe(alice, room_id, root)
    await unsubscribe(alice, room_id, roots[1])
    middle = await token(alice)
    await subscribe(alice, room_id, roots[0], await reply(alice, room_id, roots[0]))  # it is so already
    await unsubscribe(alice, room_id, roots[2])

    found = await changes(alice)
    assert list(found["subscribed"][room_id]) == [roots[4], roots[3], roots[0]]
    assert list(found["unsubscribed"][room_id]) == [roots[2], roots[1]]
    assert all(entry["automatic"] is False for entry in found["subscribed"][room_id].values())
    stamps = [entry["bump_stamp"] for entry in found["unsubscribed"][room_id].values()]
    assert stamps[0] > stamps[1] > max(entry["bump_stamp"] for entry in found["subscribed"][room_id].values())
    assert "end" not in found

    assert await changes(alice, to=middle) == {"unsubscribed": {room_id: {roots[2]: {"bump_stamp": stamps[0]}}}}
    assert await changes(alice, from_=since) == {}
    assert await changes(bob) == {}
    walked: list[str] = []
    page = await changes(alice, limit=2, to=since)
    while True:
        walked += [thread for part in ("unsubscribed", "subscribed") for thread in page.get(part, {}).get(room_id, {})]
        if "end" not in page:
            break
        page = await changes(alice, limit=2, to=since, from_=page["end"])
    assert walked == [roots[2], roots[1], roots[4], roots[3], roots[0]]


@pytest.mark.parametrize("query", [{"dir": "f"}, {"dir": "x"}, {"limit": "0"}, {"from_": "x"}, {"to": "x"}])
async def test_a_query_that_means_nothing_is_refused(alice: Client, query: dict[str, str]) -> None:
    answer = await alice.get(CHANGES, **{"dir": "b", **query})

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_of_requests_that_cross_none_brings_back_what_was_unsubscribed(alice: Client) -> None:
    room_id, root, first = await a_thread(alice)

    async def flap(number: int) -> None:
        if number % 2:
            await unsubscribe(alice, room_id, root)
        else:
            assert (await ask(alice, "PUT", room_id, root, {"automatic": first})).status in (200, 409)

    await asyncio.gather(*map(flap, range(30)))

    assert await subscription(alice, room_id, root) is None
