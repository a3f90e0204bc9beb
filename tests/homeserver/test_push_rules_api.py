"""The endpoints of push rules."""

import asyncio
from typing import Any

import pytest

from federation.protocol.types import UserID
from homeserver.services.account_data import client_event
from storage import account_data
from tests.client import Client, Server

GLOBAL = "/v3/pushrules/global"


async def rule_ids(client: Client, kind: str) -> list[str]:
    return [rule["rule_id"] for rule in (await client.ok("GET", f"{GLOBAL}/"))[kind]]


async def put(client: Client, rule_id: str, kind: str = "sender", **query: str) -> None:
    answer = await client.put(f"{GLOBAL}/{kind}/{rule_id}", {"actions": ["notify"]}, **query)
    assert answer.status == 200, answer.body


async def test_the_defaults_are_those_of_the_specification(alice: Client) -> None:
    rules = (await alice.ok("GET", "/v3/pushrules/"))["global"]

    assert [rule["rule_id"] for rule in rules["override"]] == [
        ".m.rule.master", ".m.rule.suppress_notices", ".m.rule.invite_for_me", ".m.rule.member_event",
        ".m.rule.is_user_mention", ".m.rule.is_room_mention", ".m.rule.tombstone", ".m.rule.reaction",
        ".m.rule.room.server_acl", ".m.rule.suppress_edits",
    ]  # fmt: skip
    assert [rule["rule_id"] for rule in rules["underride"]] == [
        ".m.rule.call", ".m.rule.encrypted_room_one_to_one", ".m.rule.room_one_to_one", ".m.rule.message",
        ".m.rule.encrypted",
    ]  # fmt: skip
    assert [rules[kind] for kind in ("content", "room", "sender")] == [[], [], []]
    assert [rule["rule_id"] for rule in rules["override"] if not rule["enabled"]] == [".m.rule.master"]
    mention = rules["override"][4]
    assert mention["conditions"][0] == {
        "kind": "event_property_contains",
        "key": "content.m\\.mentions.user_ids",
        "value": alice.user_id,
    }
    assert mention["actions"] == ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}]


async def test_every_form_of_reading_agrees(alice: Client) -> None:
    everything = await alice.ok("GET", "/v3/pushrules/")

    assert await alice.ok("GET", "/v3/pushrules") == everything
    assert await alice.ok("GET", "/r0/pushrules/") == everything
    assert await alice.ok("GET", GLOBAL) == everything["global"]
    assert await alice.ok("GET", f"{GLOBAL}/") == everything["global"]
    assert await alice.ok("GET", f"{GLOBAL}/override/") == everything["global"]["override"]
    assert await alice.ok("GET", f"{GLOBAL}/underride/.m.rule.message") == everything["global"]["underride"][3]


async def test_a_rule_is_made_and_taken_away(alice: Client) -> None:
    body = {
        "actions": ["notify", "dont_notify"],
        "conditions": [{"kind": "event_match", "key": "type", "pattern": "x"}],
    }
    await alice.ok("PUT", f"{GLOBAL}/override/mine", body)

    assert await alice.ok("GET", f"{GLOBAL}/override/mine") == {
        "rule_id": "mine",
        "default": False,
        "enabled": True,
        "actions": ["notify"],
        "conditions": body["conditions"],
    }
    assert (await rule_ids(alice, "override"))[:3] == [".m.rule.master", "mine", ".m.rule.suppress_notices"]
    await alice.ok("DELETE", f"{GLOBAL}/override/mine")
    assert (await alice.get(f"{GLOBAL}/override/mine")).status == 404
    assert (await alice.delete(f"{GLOBAL}/override/mine")).status == 404


async def test_the_order_of_rules(alice: Client) -> None:
    for rule_id in ("@a:x", "@b:x", "@c:x"):
        await put(alice, rule_id)
    assert await rule_ids(alice, "sender") == ["@c:x", "@b:x", "@a:x"]

    await put(alice, "@d:x", before="@b:x")
    await put(alice, "@e:x", after="@b:x")
    assert await rule_ids(alice, "sender") == ["@c:x", "@d:x", "@b:x", "@e:x", "@a:x"]

    await put(alice, "@a:x", before="@c:x", after="@b:x")
    assert await rule_ids(alice, "sender") == ["@a:x", "@c:x", "@d:x", "@b:x", "@e:x"]

    await put(alice, "@b:x")
    assert await rule_ids(alice, "sender") == ["@a:x", "@c:x", "@d:x", "@b:x", "@e:x"]


async def test_ids_are_unique_within_their_kind_alone(alice: Client) -> None:
    await put(alice, "same", "sender")
    await put(alice, "same", "room")
    await alice.ok("DELETE", f"{GLOBAL}/sender/same")

    assert await rule_ids(alice, "room") == ["same"]


async def test_a_rule_that_is_replaced_stays_disabled(alice: Client) -> None:
    await put(alice, "@a:x")
    await alice.ok("PUT", f"{GLOBAL}/sender/@a:x/enabled", {"enabled": False})

    await put(alice, "@a:x")

    assert await alice.ok("GET", f"{GLOBAL}/sender/@a:x/enabled") == {"enabled": False}


async def test_a_default_can_be_changed_and_not_deleted(alice: Client) -> None:
    rule = f"{GLOBAL}/underride/.m.rule.message"
    await alice.ok("PUT", f"{rule}/actions", {"actions": ["notify", {"set_tweak": "highlight"}]})
    await alice.ok("PUT", f"{rule}/enabled", {"enabled": False})

    found = await alice.ok("GET", rule)
    assert (found["enabled"], found["actions"], found["default"]) == (
        False,
        ["notify", {"set_tweak": "highlight"}],
        True,
    )
    assert await alice.ok("GET", f"{rule}/actions") == {"actions": ["notify", {"set_tweak": "highlight"}]}
    assert (await alice.delete(rule)).status == 400
    assert (await rule_ids(alice, "underride")).count(".m.rule.message") == 1


NOTIFY: dict[str, Any] = {"actions": ["notify"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "errcode"),
    [
        ("PUT", "override/.mine", NOTIFY, 400, "M_INVALID_PARAM"),
        ("PUT", "override/a%2Fb", NOTIFY, 400, "M_INVALID_PARAM"),
        ("PUT", "override/a%5Cb", NOTIFY, 400, "M_INVALID_PARAM"),
        ("PUT", f"override/{'x' * 2000}", NOTIFY, 400, "M_INVALID_PARAM"),
        ("PUT", "other/mine", NOTIFY, 400, "M_INVALID_PARAM"),
        ("PUT", "override/mine", {}, 400, "M_MISSING_PARAM"),
        ("PUT", "override/mine", {"actions": "notify"}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [7]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [{"set_tweak": 7}]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": {}}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": [{"kind": 7}]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": [{"kind": "a", "key": None}]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": [{"kind": "a", "pattern": ["x"]}]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": [{"kind": "a", "is": 2}]}, 400, "M_BAD_JSON"),
        ("PUT", "override/mine", {"actions": [], "conditions": [{"kind": "a", "value": {}}]}, 400, "M_BAD_JSON"),
        ("PUT", "content/mine", NOTIFY, 400, "M_MISSING_PARAM"),
        ("PUT", "content/mine", {"actions": [], "pattern": 7}, 400, "M_BAD_JSON"),
        ("PUT", "content/mine", {"actions": [], "pattern": "x" * 5000}, 400, "M_INVALID_PARAM"),
        ("PUT", "override/mine?before=absent", NOTIFY, 400, "M_UNKNOWN"),
        ("PUT", "override/mine?after=.m.rule.master", NOTIFY, 400, "M_UNKNOWN"),
        ("GET", "override/absent", None, 404, "M_NOT_FOUND"),
        ("GET", "override/absent/enabled", None, 404, "M_NOT_FOUND"),
        ("GET", "override/absent/actions", None, 404, "M_NOT_FOUND"),
        ("GET", "other/absent", None, 400, "M_INVALID_PARAM"),
        ("PUT", "override/absent/enabled", {"enabled": True}, 404, "M_NOT_FOUND"),
        ("PUT", "override/absent/actions", {"actions": []}, 404, "M_NOT_FOUND"),
        ("PUT", "override/.m.rule.master/enabled", {"enabled": "yes"}, 400, "M_BAD_JSON"),
        ("PUT", "override/.m.rule.master/enabled", {}, 400, "M_MISSING_PARAM"),
        ("PUT", "override/.m.rule.master/actions", {"actions": {}}, 400, "M_BAD_JSON"),
        ("PUT", "underride/.m.rule.master/enabled", {"enabled": True}, 404, "M_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_is_refused(
    alice: Client, method: str, path: str, body: Any, status: int, errcode: str
) -> None:
    before = await alice.ok("GET", "/v3/pushrules/")

    answer = await alice.request(method, f"{GLOBAL}/{path}", body)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)
    assert await alice.ok("GET", "/v3/pushrules/") == before


async def test_rules_made_at_once_are_all_kept(alice: Client) -> None:
    await asyncio.gather(*(put(alice, f"@{n}:x") for n in range(20)))

    assert sorted(await rule_ids(alice, "sender")) == sorted(f"@{n}:x" for n in range(20))


async def test_a_change_is_in_the_users_account_data(server: Server, alice: Client) -> None:
    before = server.application.tail.position
    await put(alice, "@a:x")

    application = server.application
    (heard,) = [change for _, change in application.tail.for_user(UserID(alice.user_id), before)]
    async with application.database.read() as tx:
        (read,) = await account_data.changed_between(tx, UserID(alice.user_id), before, application.tail.position)
        everything = await application.user_data.account_data.all_of(tx, UserID(alice.user_id))

    assert heard == read
    assert [client_event(change) for change in everything] == [client_event(read)]
    assert b'"rule_id":"@a:x"' in client_event(read)
    assert b".m.rule.master" in client_event(read)
