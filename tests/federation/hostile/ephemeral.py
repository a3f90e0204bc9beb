"""EDUs: what the hostile server says of users that are not its own, or not in the room, and what is no EDU."""

import asyncio
from collections.abc import Mapping
from typing import Any

from tests.federation.hostile.faults import canonical
from tests.federation.hostile.pushing import Way, check_refused
from tests.federation.hostile.world import Case, Stage, transaction_body
from tests.federation.peer import path_of

MAX_EDUS = 100
TYPE = "test.hostile"
KINDS = ("typing", "receipts", "presence", "messages", "devices")


def edus_of(stage: Stage, user: Any, room_id: Any, tag: str) -> Mapping[str, Any]:
    """One EDU of each kind that speaks of this user, as if they were in this room."""
    event_id = stage.room.last[0]
    data = {"data": {"ts": 1, "thread_id": "main"}, "event_ids": [event_id]}
    name = user if isinstance(user, str) else "5"
    return {
        "m.typing": {"room_id": room_id, "user_id": user, "typing": True},
        "m.receipt": {room_id if isinstance(room_id, str) else "5": {"m.read": {name: data}}},
        "m.presence": {
            "push": [{"user_id": user, "presence": "online", "last_active_ago": 1, "status_msg": TYPE + stage.version}]
        },
        "m.direct_to_device": {
            "sender": user,
            "type": TYPE,
            "message_id": f"{tag}{user}",
            "messages": {stage.alice.user_id: {"*": {"a": 1}}},
        },
        "m.device_list_update": {"user_id": user, "device_id": "D", "stream_id": 1, "device_display_name": TYPE},
        "m.signing_key_update": {
            "user_id": user,
            "master_key": {"user_id": user, "usage": ["master"], "keys": {"ed25519:" + "x" * 43: "x" * 43}},
        },
    }


def _shapes(stage: Stage) -> list[Any]:
    """What is no EDU, or none of its kind."""
    right = edus_of(stage, stage.room.user_id, stage.room.room_id, "shapes")
    deep: Any = 0
    for _ in range(101):
        deep = [deep]
    junk: list[Any] = [None, 5, "x", [], {}, {"edu_type": 5, "content": {}}, {"content": {}}, {"edu_type": "m.typing"}]
    for edu_type, content in right.items():
        if edu_type in ("m.device_list_update", "m.signing_key_update"):
            continue  # one that says little says all the same that the user's devices or keys changed
        wrong: list[Any] = [None, [], "x", 5, {}, {**content, "deep": deep}]
        values: list[Any] = [None, [], "\0", {"a": None}]
        wrong += [{**content, key: value} for key in content for value in values]
        junk += [{"edu_type": edu_type, "content": each} for each in wrong]
    return junk


async def by_edus(stage: Stage) -> list[Case]:
    """Nothing is heard of users of others; then what is right is."""
    eve, stranger = stage.room.user_id, f"@stranger:{stage.world.hostile.name}"
    room_id = stage.room.room_id
    tries: list[tuple[str, Any]] = []
    for whose, user in (
        ("another server's user", stage.forger.honest_user),
        ("a user of ours", stage.alice.user_id),
        ("a user of a server that is nowhere", "@x:nowhere.test"),
        ("a user whose server begins alike", f"{eve}0"),
        ("no user", "eve"),
        ("a number", 5),
    ):
        tries += [(f"{name} of {whose}", {"edu_type": name, "content": edu}) for name, edu in _of(stage, user, room_id)]
    for where, room in (
        ("a room that it is not in", stage.other.room_id),
        ("a room that is nowhere", "!x:y"),
        ("5", 5),
    ):
        of_rooms = [(name, edu) for name, edu in _of(stage, eve, room) if name in ("m.typing", "m.receipt")]
        tries += [(f"{name} in {where}", {"edu_type": name, "content": edu}) for name, edu in of_rooms]
    of_stranger = [each for each in _of(stage, stranger, room_id) if each[0] in ("m.typing", "m.receipt", "m.presence")]
    tries += [(f"{name} of a stranger", {"edu_type": name, "content": edu}) for name, edu in of_stranger]
    tries += [("an EDU that is none", edu) for edu in _shapes(stage)]
    for start in range(0, len(tries), MAX_EDUS):
        stage.world.tried["EDUs in /send"] += len(tries[start : start + MAX_EDUS])
        await stage.push([], [edu for _, edu in tries[start : start + MAX_EDUS]])
    await _expect_heard(stage, set())
    await _check_too_many(stage)
    await stage.push([], [{"edu_type": name, "content": edu} for name, edu in _of(stage, eve, room_id)])
    await _expect_heard(stage, set(KINDS))
    return []


def _of(stage: Stage, user: Any, room_id: Any) -> list[tuple[str, Any]]:
    return list(edus_of(stage, user, room_id, f"of {room_id}").items())


async def _check_too_many(stage: Stage) -> None:
    hostile, edu = stage.world.hostile, {"edu_type": "m.typing", "content": {}}
    for name, edus in (("101 EDUs", canonical([edu] * 101)), ("EDUs as an object", b"{}"), ("EDUs as text", b'"x"')):
        stage.world.tried["EDUs in /send"] += 1
        path = path_of("/v1/send/{}", name)
        check_refused(stage, name, await hostile.request("PUT", path, transaction_body(hostile, [], edus)))


async def _expect_heard(stage: Stage, wanted: set[str]) -> None:
    """Note unless our user hears of these, and of the hostile server's user in the room alone."""
    expected = {name: {stage.room.user_id} if name in wanted else set() for name in KINDS}
    heard: dict[str, set[str]] = {name: set() for name in KINDS}
    for _ in range(20):
        for name, users in (await _heard(stage)).items():
            heard[name] |= users
        if heard == expected:
            break
        await asyncio.sleep(0.1)
    stage.world.expect(heard == expected, "EDUs in /send", f"{heard} are heard of, not {expected}")


async def _heard(stage: Stage) -> dict[str, set[str]]:
    answer = await stage.alice.ok("GET", "/v3/sync", params={"since": stage.since, "timeout": "0"})
    stage.since = answer["next_batch"]
    rooms = answer.get("rooms", {}).get("join", {})
    ephemeral = [event for room in rooms.values() for event in room["ephemeral"]["events"]]
    receipts = [content for event in ephemeral if event["type"] == "m.receipt" for content in event["content"].values()]
    return {
        "typing": {u for event in ephemeral if event["type"] == "m.typing" for u in event["content"]["user_ids"]},
        "receipts": {user for content in receipts for user in content.get("m.read", {})},
        "presence": {event["sender"] for event in answer.get("presence", {}).get("events", [])} - {stage.alice.user_id},
        "messages": {event["sender"] for event in answer.get("to_device", {}).get("events", [])},
        "devices": set(answer.get("device_lists", {}).get("changed", [])),
    }


WAYS: list[Way] = [by_edus]
