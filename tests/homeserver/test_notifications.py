"""GET /notifications ("Listing Notifications")."""

from typing import Any

import pytest

from tests.client import Client, quote
from tests.homeserver.rooms import a_room, act, redact
from tests.homeserver.syncs import ignore, read
from tests.rooms import create_room, send, send_event


async def listed(client: Client, **params: Any) -> list[Any]:
    """All notifications, page by page."""
    found: list[Any] = []
    for _ in range(50):
        answer = await client.get("/v3/notifications", **params)
        assert answer.status == 200, answer.body
        found.extend(answer.body["notifications"])
        if "next_token" not in answer.body:
            return found
        params["from_"] = answer.body["next_token"]
    raise AssertionError("there is no end to it")


def ids(found: list[Any]) -> list[str]:
    """Of their events."""
    return [each["event"]["event_id"] for each in found]


async def test_it_lists_what_notified_newest_first(alice: Client, bob: Client) -> None:
    first, second = await a_room(alice, bob), await a_room(alice, bob)
    own = await send(bob, first, "from himself")
    hello = await send(alice, first, "hello")
    await send(alice, second, "a note", msgtype="m.notice")
    await send_event(alice, second, "org.example.other", {})
    named = await send(alice, second, "look", **{"m.mentions": {"user_ids": [bob.user_id]}})
    gone = await send(alice, second, "gone")
    await redact(alice, second, gone)
    found = await listed(bob)

    assert ids(found) == [named, hello]
    assert own not in ids(found)
    assert found[0]["actions"] == ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}]
    assert (found[0]["room_id"], found[0]["read"], found[0]["event"]["content"]["body"]) == (second, False, "look")
    assert ids(await listed(bob, only="highlight")) == [named]


async def test_pages_join_to_the_whole(alice: Client, bob: Client) -> None:
    rooms = [await a_room(alice, bob) for _ in range(3)]
    sent = [await send(alice, rooms[number % 3], str(number)) for number in range(11)]

    assert ids(await listed(bob, limit=2)) == sent[::-1]
    assert ids(await listed(bob, limit=100)) == sent[::-1]


async def test_what_is_read_says_so(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    sent = [await send(alice, room_id, str(number)) for number in range(3)]
    await read(bob, room_id, sent[1])

    assert [each["read"] for each in await listed(bob)] == [False, True, True]


async def test_nobody_sees_what_is_not_theirs(alice: Client, bob: Client) -> None:
    secret = await a_room(alice, visibility="joined")
    await send(alice, secret, "before he came")
    await bob.ok("POST", f"/v3/join/{quote(secret)}", {})
    elsewhere = await a_room(alice)
    await send(alice, elsewhere, "without him")
    known = await send(alice, secret, "with him")

    assert ids(await listed(bob)) == [known]


async def test_invites_are_among_them_and_those_ignored_are_not(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice)
    await act(alice, "invite", room_id, bob)
    (found,) = await listed(bob)
    assert (found["room_id"], found["event"]["state_key"]) == (room_id, bob.user_id)

    await ignore(bob, alice)
    assert await listed(bob) == []


async def test_own_rules_decide(alice: Client, bob: Client) -> None:
    muted, room_id = await a_room(alice, bob), await a_room(alice, bob)
    await bob.ok("PUT", f"/v3/pushrules/global/room/{quote(muted)}", {"actions": []})
    await send(alice, muted, "quiet")
    heard = await send(alice, room_id, "loud")

    assert ids(await listed(bob)) == [heard]


@pytest.mark.parametrize("query", [{"from_": "x"}, {"limit": "0"}, {"limit": "many"}])
async def test_what_makes_no_sense_is_refused(alice: Client, query: dict[str, str]) -> None:
    answer = await alice.get("/v3/notifications", **query)
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
