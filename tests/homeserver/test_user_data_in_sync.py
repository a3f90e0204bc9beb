"""What users keep and tell of themselves, as syncs show it to them and to others."""

import asyncio
from typing import Any

import pytest

from federation.protocol.types import UserID
from storage.ephemeral import OFFLINE_AFTER_MS, now_ms
from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room
from tests.rooms import send
from tests.servers import running


async def sync(client: Client, since: str | None = None, **params: Any) -> Any:
    query = {"timeout": "0", **params} | ({} if since is None else {"since": since})
    return await client.ok("GET", "/v3/sync", params=query)


async def token(client: Client) -> str:
    next_batch: str = (await sync(client))["next_batch"]
    return next_batch


def joined(answer: Any, room_id: str) -> Any:
    return answer.get("rooms", {}).get("join", {}).get(room_id, {})


def ephemeral(answer: Any, room_id: str, event_type: str) -> list[Any]:
    events = joined(answer, room_id).get("ephemeral", {}).get("events", [])
    return [event["content"] for event in events if event["type"] == event_type]


def data(answer: Any) -> dict[str, Any]:
    return {event["type"]: event["content"] for event in answer.get("account_data", {}).get("events", [])}


def room_data(answer: Any, room_id: str) -> dict[str, Any]:
    return data(joined(answer, room_id))


def own(client: Client, path: str) -> str:
    return f"/v3/user/{quote(client.user_id)}/{path}"


# --- receipts and typing


async def test_a_receipt_reaches_the_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    since = await token(alice)

    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})

    (content,) = ephemeral(await sync(alice, since, timeout="5000"), room_id, "m.receipt")
    assert list(content) == [event_id]
    assert list(content[event_id]) == ["m.read"]
    assert list(content[event_id]["m.read"]) == [bob.user_id]
    (first,) = ephemeral(await sync(alice), room_id, "m.receipt")
    assert first == content


async def test_a_private_receipt_reaches_its_user_alone(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    of_alice, of_bob = await token(alice), await token(bob)

    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read.private/{quote(event_id)}", {})

    (content,) = ephemeral(await sync(bob, of_bob), room_id, "m.receipt")
    assert list(content[event_id]["m.read.private"]) == [bob.user_id]
    assert ephemeral(await sync(alice, of_alice), room_id, "m.receipt") == []
    assert ephemeral(await sync(alice), room_id, "m.receipt") == []
    assert ephemeral(await sync(bob), room_id, "m.receipt") == [content]


async def typing_after(client: Client, since: str, room_id: str) -> tuple[Any, str]:
    """Who types, as soon as a sync tells, and the token after it. Other syncs tell of something else."""
    for _ in range(10):
        answer = await sync(client, since, timeout="10000")
        since = answer["next_batch"]
        for content in ephemeral(answer, room_id, "m.typing"):
            return content, since
    raise AssertionError("nobody types")


async def test_typing_reaches_a_waiting_sync_and_ends(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(alice)
    path = f"/v3/rooms/{quote(room_id)}/typing/{quote(bob.user_id)}"

    waiting = asyncio.create_task(typing_after(alice, since, room_id))
    await asyncio.sleep(0.3)
    await bob.ok("PUT", path, {"typing": True, "timeout": 30_000})
    content, since = await waiting
    assert content == {"user_ids": [bob.user_id]}

    again = await sync(alice, since)
    assert ephemeral(again, room_id, "m.typing") == []
    await bob.ok("PUT", path, {"typing": True, "timeout": 100})
    assert (await typing_after(alice, again["next_batch"], room_id))[0] == {"user_ids": []}


# --- account data


async def test_account_data_is_in_the_first_sync_and_its_changes_in_the_next(alice: Client) -> None:
    room_id = await a_room(alice)
    path = own(alice, "account_data/org.example")
    await alice.ok("PUT", path, {"a": 1})
    await alice.ok("PUT", own(alice, f"rooms/{quote(room_id)}/account_data/org.room"), {"r": 1})
    await alice.ok("PUT", own(alice, f"rooms/{quote(room_id)}/tags/u.work"), {"order": 0.5})

    first = await sync(alice)
    assert data(first)["org.example"] == {"a": 1}
    assert [rule["rule_id"] for rule in data(first)["m.push_rules"]["global"]["underride"]][-1] == ".m.rule.encrypted"
    assert room_data(first, room_id) == {"org.room": {"r": 1}, "m.tag": {"tags": {"u.work": {"order": 0.5}}}}

    nothing = await sync(alice, first["next_batch"])
    assert (data(nothing), room_data(nothing, room_id)) == ({}, {})
    await alice.ok("PUT", path, {"a": 2})
    await alice.ok("DELETE", own(alice, f"rooms/{quote(room_id)}/tags/u.work"))
    await alice.ok("PUT", "/v3/pushrules/global/room/" + quote(room_id), {"actions": []})
    second = await sync(alice, nothing["next_batch"])
    assert data(second)["org.example"] == {"a": 2}
    assert data(second)["m.push_rules"]["global"]["room"][0]["rule_id"] == room_id
    assert room_data(second, room_id) == {"m.tag": {"tags": {}}}


async def test_deleted_account_data_is_empty_once_and_then_gone(alice: Client) -> None:
    path = own(alice, "account_data/org.example")
    await alice.ok("PUT", path, {"a": 1})
    since = await token(alice)

    await alice.ok("DELETE", path.replace("/v3/", "/unstable/org.matrix.msc3391/"))

    assert data(await sync(alice, since)) == {"org.example": {}}
    assert "org.example" not in data(await sync(alice))


async def test_account_data_is_nobody_elses(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    since = await token(bob)

    await alice.ok("PUT", own(alice, "account_data/org.example"), {"secret": 1})

    assert data(await sync(bob, since)) == {}
    assert "org.example" not in data(await sync(bob))


async def test_messages_of_an_ignored_user_are_not_sent(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(alice)
    await alice.ok("PUT", own(alice, "account_data/m.ignored_user_list"), {"ignored_users": {bob.user_id: {}}})

    await send(bob, room_id, "hello")
    heard = await send(alice, room_id, "hello")

    events = joined(await sync(alice, since), room_id)["timeline"]["events"]
    assert [event["event_id"] for event in events] == [heard]


# --- unread counts


def unread(answer: Any, room_id: str) -> tuple[int, int]:
    counts = joined(answer, room_id)["unread_notifications"]
    return counts["notification_count"], counts["highlight_count"]


async def test_messages_count_until_they_are_read(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    await send(alice, room_id, "hello")
    last = await send(alice, room_id, "hello", **{"m.mentions": {"user_ids": [bob.user_id]}})
    first = await sync(bob)
    assert unread(first, room_id) == (2, 1)

    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read.private/{quote(last)}", {})

    assert unread(await sync(bob, first["next_batch"]), room_id) == (0, 0)
    assert unread(await sync(bob), room_id) == (0, 0)
    assert unread(await sync(alice), room_id) == (0, 0)


async def test_what_a_user_muted_does_not_count(alice: Client, bob: Client) -> None:
    room_id, loud = await a_room(alice, bob), await a_room(alice, bob)
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    rule = f"/v3/pushrules/global/override/{quote(room_id)}"
    await bob.ok("PUT", rule, {"actions": [], "conditions": [condition]})

    await send(alice, room_id, "hello")
    await send(alice, loud, "hello")
    muted = await sync(bob)
    assert (unread(muted, room_id), unread(muted, loud)) == ((0, 0), (1, 0))

    await bob.ok("DELETE", rule)
    await send(alice, room_id, "hello")
    assert unread(await sync(bob, muted["next_batch"]), room_id) == (1, 0)


async def test_a_keyword_counts_where_nothing_else_does(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    actions = ["notify", {"set_tweak": "highlight"}]
    await bob.ok("PUT", "/v3/pushrules/global/content/tea", {"pattern": "t?a", "actions": actions})
    await bob.ok("PUT", "/v3/pushrules/global/underride/.m.rule.message/enabled", {"enabled": False})

    await send(alice, room_id, "hello")
    await send(alice, room_id, "Time for TEA!")

    answer = await sync(bob)
    # In a room of two, another default rule counts every message.
    assert unread(answer, room_id) == (2, 1)


# --- profiles


async def test_a_new_name_is_told_in_every_room(alice: Client, bob: Client) -> None:
    rooms = [await a_room(alice, bob) for _ in range(2)]
    since = await token(bob)

    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/displayname", {"displayname": "Alice"})
    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/avatar_url", {"avatar_url": "mxc://hearth.test/a"})
    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/org.example", {"org.example": 1})

    answer = await sync(bob, since)
    for room_id in rooms:
        events = joined(answer, room_id)["timeline"]["events"]
        assert [event["type"] for event in events] == ["m.room.member"] * 2
        content = events[-1]["content"]
        assert (content["membership"], content["displayname"], content["avatar_url"]) == (
            "join",
            "Alice",
            "mxc://hearth.test/a",
        )


# --- presence


def presences(answer: Any) -> dict[str, Any]:
    return {event["sender"]: event["content"] for event in answer.get("presence", {}).get("events", [])}


async def status_of(reader: Client, user: Client) -> Any:
    return await reader.get(f"/v3/presence/{quote(user.user_id)}/status")


async def set_status(client: Client, **status: Any) -> Any:
    return await client.put(f"/v3/presence/{quote(client.user_id)}/status", status)


async def test_presence_is_told_to_those_who_share_a_room(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    await a_room(alice, bob)
    since, of_carol = await token(alice), await token(carol)

    waiting = asyncio.create_task(sync(alice, since, timeout="10000"))
    await asyncio.sleep(0.3)
    assert (await set_status(bob, presence="unavailable", status_msg="at lunch")).status == 200

    told = presences(await waiting)
    while told.get(bob.user_id, {}).get("presence") != "unavailable":
        told = presences(await sync(alice, since, timeout="5000"))
    assert told[bob.user_id]["status_msg"] == "at lunch"
    assert told[bob.user_id]["last_active_ago"] < 60_000
    assert presences(await sync(alice))[bob.user_id]["presence"] == "unavailable"
    assert bob.user_id not in presences(await sync(carol, of_carol))
    assert bob.user_id not in presences(await sync(carol))

    answer = await status_of(alice, bob)
    assert (answer.status, answer.body["presence"], answer.body["status_msg"]) == (200, "unavailable", "at lunch")
    assert (await status_of(carol, bob)).status == 403
    assert (await status_of(bob, bob)).status == 200


async def test_who_syncs_is_online(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    assert (await status_of(alice, bob)).body["presence"] == "offline"

    await sync(bob, set_presence="offline")
    assert (await status_of(alice, bob)).body["presence"] == "offline"
    await sync(bob, set_presence="unavailable")
    assert (await status_of(alice, bob)).body["presence"] == "unavailable"
    await sync(bob)

    answer = (await status_of(alice, bob)).body
    assert (answer["presence"], answer["currently_active"]) == ("online", True)


async def test_who_sends_is_online_again(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    await set_status(bob, presence="unavailable", status_msg="away")

    await send(bob, room_id, "hello")

    answer = (await status_of(alice, bob)).body
    assert (answer["presence"], answer["status_msg"], answer["currently_active"]) == ("online", "away", True)


@pytest.mark.one_process("time is moved on here")
async def test_who_no_longer_syncs_goes_offline(server: Server, alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    await set_status(bob, presence="online", status_msg="here")
    later = now_ms() + OFFLINE_AFTER_MS + 1000

    await server.application.user_data.presence.sweep(later)

    answer = (await status_of(alice, bob)).body
    assert (answer["presence"], answer["status_msg"]) == ("offline", "here")
    assert "currently_active" not in answer


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"presence": "here"},
        {"presence": 7},
        {"presence": ["online"]},
        {"presence": "online", "status_msg": 7},
        {"presence": "online", "status_msg": "a\0b"},
        {"presence": "online", "status_msg": "x" * 5000},
    ],
)
async def test_a_malformed_presence_is_refused(alice: Client, status: Any) -> None:
    answer = await set_status(alice, **status)

    assert answer.status == 400
    assert answer.body["errcode"] in {"M_BAD_JSON", "M_MISSING_PARAM", "M_INVALID_PARAM"}


async def test_nobody_sets_the_presence_of_others(alice: Client, bob: Client) -> None:
    answer = await alice.put(f"/v3/presence/{quote(bob.user_id)}/status", {"presence": "offline"})

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_presence_that_is_switched_off_tells_nothing(conninfo: str) -> None:
    async with running(conninfo, presence=False) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        await a_room(alice, bob)
        since = await token(alice)

        assert (await set_status(bob, presence="online", status_msg="hi")).status == 200
        await sync(bob)

        assert (await status_of(alice, bob)).body == {"presence": "offline"}
        assert presences(await sync(alice, since)) == {}
        assert presences(await sync(alice)) == {}


# --- filters


async def test_a_stored_filter_decides_what_a_sync_holds(alice: Client) -> None:
    room_id = await a_room(alice)
    await send(alice, room_id, "hello")
    body = {
        "event_fields": ["type", "content.body"],
        "account_data": {"not_types": ["m.push_rules"]},
        "room": {"timeline": {"types": ["m.room.mess*"]}, "state": {"types": []}},
    }
    filter_id = (await alice.ok("POST", own(alice, "filter"), body))["filter_id"]

    answer = await sync(alice, filter=filter_id)

    assert "m.push_rules" not in data(answer)
    assert joined(answer, room_id)["timeline"]["events"] == [{"type": "m.room.message", "content": {"body": "hello"}}]
    assert joined(answer, room_id).get("state", {}).get("events", []) == []


@pytest.mark.parametrize("name", ["9999", "x", '{"room": 7}', "{", "[]"])
async def test_a_sync_with_a_filter_that_is_none_is_refused(alice: Client, name: str) -> None:
    answer = await alice.get("/v3/sync", filter=name, timeout=0)

    assert answer.status == 400


# --- what is kept of users who sync


async def test_who_stopped_syncing_is_forgotten_and_misses_nothing(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await a_room(alice, bob)
    since = await token(alice)
    monkeypatch.setattr("homeserver.services.user_views.KEPT_SECONDS", -1)

    server.application.views.drop_unused()

    assert server.application.tail.listener(UserID(alice.user_id)) is None
    event_id = await send(bob, room_id, "hello")
    timeline = joined(await sync(alice, since), room_id)["timeline"]
    assert [event["event_id"] for event in timeline["events"]] == [event_id]
