"""Reports (Client-Server API, "Reporting Content") and what administrators see of them."""

import pytest

from tests.client import Client, Server, quote
from tests.rooms import create_room, join, send

REPORTS = "/_synapse/admin/v1/event_reports"


async def test_a_report_of_an_event_reaches_the_administrators(server: Server, admin: Client) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    event_id = await send(alice, room_id, "spam")

    path = f"/v3/rooms/{quote(room_id)}/report/{quote(event_id)}"
    assert (await bob.post(path, {"reason": "this is spam", "score": -100})).body == {}

    listed = await admin.ok("GET", REPORTS, params={"limit": "1"})
    (report,) = listed["event_reports"]
    assert {name: report[name] for name in ("room_id", "event_id", "user_id", "sender", "reason", "score")} == {
        "room_id": room_id,
        "event_id": event_id,
        "user_id": bob.user_id,
        "sender": alice.user_id,
        "reason": "this is spam",
        "score": -100,
    }
    assert await admin.ok("GET", f"{REPORTS}/{report['id']}") == report
    assert (await admin.delete(f"{REPORTS}/{report['id']}")).status == 200
    assert (await admin.get(f"{REPORTS}/{report['id']}")).status == 404


async def test_only_who_is_in_the_room_reports_its_events(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    event_id = await send(alice, room_id, "hello")
    path = f"/v3/rooms/{quote(room_id)}/report/{quote(event_id)}"
    statuses = [(await bob.post(path, {})).status]
    await join(bob, room_id)
    statuses.append((await bob.post(path, {})).status)
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})
    statuses.append((await bob.post(path, {})).status)

    assert statuses == [404, 200, 404]
    other = f"/v3/rooms/{quote(room_id)}/report/$unknown"
    assert (await alice.post(other, {})).body["errcode"] == "M_NOT_FOUND"


async def test_anybody_reports_rooms_and_users(server: Server, admin: Client) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create_room(alice)

    for path in (f"/v3/rooms/{quote(room_id)}/report", f"/v3/users/{quote(alice.user_id)}/report"):
        assert (await bob.post(path, {"reason": ""})).body == {}

    newest = (await admin.ok("GET", REPORTS, params={"limit": "2"}))["event_reports"]
    assert [(each["room_id"], each["sender"]) for each in newest] == [(None, alice.user_id), (room_id, None)]


async def test_the_answer_does_not_tell_what_there_is(alice: Client) -> None:
    for path in ("/v3/rooms/!unknown:hearth.test/report", "/v3/users/@unknown:hearth.test/report"):
        assert (await alice.post(path, {"reason": "x"})).body == {}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [({}, "M_MISSING_PARAM"), ({"reason": 5}, "M_INVALID_PARAM"), ({"reason": "x" * 9000}, "M_INVALID_PARAM")],
)
async def test_a_report_needs_a_reason(alice: Client, body: dict[str, object], errcode: str) -> None:
    for path in ("/v3/rooms/!unknown:hearth.test/report", "/v3/users/@unknown:hearth.test/report"):
        answer = await alice.post(path, body)
        assert (answer.status, answer.body["errcode"]) == (400, errcode)


async def test_only_administrators_read_reports(alice: Client) -> None:
    for method, path in (("GET", REPORTS), ("GET", f"{REPORTS}/1"), ("DELETE", f"{REPORTS}/1")):
        answer = await alice.request(method, path)
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
