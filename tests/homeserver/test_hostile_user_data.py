"""No body and no path, however wrong, breaks an endpoint of what users keep, or is stored so that a sync breaks."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.client import Client, quote, unique
from tests.homeserver.test_hostile_keys import variants

RULE: Any = {
    "actions": ["notify", {"set_tweak": "sound", "value": "default"}],
    "conditions": [
        {"kind": "event_match", "key": "content.body", "pattern": "a*"},
        {"kind": "event_property_is", "key": "content.v", "value": 1},
        {"kind": "room_member_count", "is": ">2"},
        {"kind": "contains_display_name"},
        {"kind": "sender_notification_permission", "key": "room"},
    ],
    "pattern": "tea",
}
FILTER: Any = {
    "event_fields": ["content.body"],
    "event_format": "client",
    "presence": {"types": ["m.*"], "not_senders": ["@a:b"]},
    "room": {
        "rooms": ["!r:x"],
        "include_leave": True,
        "timeline": {"limit": 5, "types": ["m.*"], "contains_url": True, "related_by_senders": ["@a:b"]},
    },
}
BODIES: list[tuple[str, str, Any]] = [
    ("PUT", "/v3/user/{user}/account_data/org.example", {"a": 1}),
    ("PUT", "/v3/user/{user}/account_data/m.ignored_user_list", {"ignored_users": {"@a:b": {}}}),
    ("PUT", "/v3/user/{user}/account_data/m.direct", {"@a:b": ["!r:x"]}),
    ("PUT", "/v3/user/{user}/rooms/{room}/account_data/org.example", {"a": 1}),
    ("PUT", "/v3/user/{user}/rooms/{room}/tags/u.work", {"order": 0.5}),
    ("POST", "/v3/user/{user}/filter", FILTER),
    ("PUT", "/v3/pushrules/global/override/mine", RULE),
    ("PUT", "/v3/pushrules/global/content/mine", RULE),
    ("PUT", "/v3/pushrules/global/override/.m.rule.master/enabled", {"enabled": False}),
    ("PUT", "/v3/pushrules/global/underride/.m.rule.message/actions", {"actions": ["notify"]}),
    ("PUT", "/v3/profile/{user}/displayname", {"displayname": "x"}),
    ("PUT", "/v3/profile/{user}/avatar_url", {"avatar_url": "mxc://a/b"}),
    ("PUT", "/v3/profile/{user}/m.tz", {"m.tz": "Europe/London"}),
    ("PUT", "/v3/profile/{user}/org.example", {"org.example": {"a": 1}}),
    ("PUT", "/v3/rooms/{room}/typing/{user}", {"typing": True, "timeout": 10}),
    ("POST", "/v3/rooms/{room}/receipt/m.read/{event}", {"thread_id": "main"}),
    ("POST", "/v3/rooms/{room}/read_markers", {"m.fully_read": "$x", "m.read": "$x", "m.read.private": "$x"}),
    ("PUT", "/v3/presence/{user}/status", {"presence": "online", "status_msg": "hi"}),
]


async def a_place(alice: Client, bob: Client) -> tuple[dict[str, str], Callable[[], Any]]:
    """What paths name, and a check that the room and both users still work."""
    room_id = (await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/v3/join/{quote(room_id)}", {})
    send = f"/v3/rooms/{quote(room_id)}/send/m.room.message"
    event_id = (await alice.ok("PUT", f"{send}/{unique()}", {"body": "x"}))["event_id"]

    async def check() -> None:
        said = (await bob.ok("PUT", f"{send}/{unique()}", {"msgtype": "m.text", "body": "tea a"}))["event_id"]
        for client in (alice, bob):
            answer = await client.ok("GET", "/v3/sync", params={"timeout": "0"})
            timeline = answer["rooms"]["join"][room_id]["timeline"]["events"]
            assert said in [event["event_id"] for event in timeline] or client is alice  # whom alice may ignore
            await client.ok("GET", "/v3/pushrules/")
            await client.ok("GET", f"/v3/profile/{quote(alice.user_id)}")

    names = {"user": quote(alice.user_id), "room": quote(room_id), "event": quote(event_id)}
    return names, check


@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=[path for _, path, _ in BODIES])
async def test_wrong_bodies_are_refused_or_harmless(
    alice: Client, bob: Client, method: str, path: str, body: Any
) -> None:
    names, check = await a_place(alice, bob)
    failed: list[Any] = []

    async def attempt(variant: Any) -> None:
        answer = await alice.request(method, path.format(**names), variant)
        if answer.status >= 500 or (answer.status >= 400 and "errcode" not in answer.body):
            failed.append((answer.status, answer.body, variant))

    bodies = list(variants(body))
    for start in range(0, len(bodies), 50):
        await asyncio.gather(*(attempt(variant) for variant in bodies[start : start + 50]))

    assert not failed, (len(failed), failed[0])
    await check()


WRONG_NAMES = [
    "%00",
    "a%00b",
    "%F0%9F%99%82" * 100,
    "x" * 3000,
    "..",
    "%2e%2e%2f",
    "@",
    "!",
    "$",
    "*",
    "%20",
    "%ED%A0%80",
]


@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=[path for _, path, _ in BODIES])
async def test_wrong_paths_are_refused(alice: Client, bob: Client, method: str, path: str, body: Any) -> None:
    names, check = await a_place(alice, bob)
    segments = path.format(**names).split("/")

    for index in range(2, len(segments)):
        for name in WRONG_NAMES:
            wrong = "/".join([*segments[:index], name, *segments[index + 1 :]])
            for verb in {method, "GET", "DELETE"}:
                answer = await alice.request(verb, wrong, body if verb == method else None)
                assert answer.status < 500, (verb, wrong, answer.body)

    await check()
