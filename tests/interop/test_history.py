"""What happened before a guest came, as far as the room shows it to them."""

import pytest

from tests.client import quote
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room


def visibility(value: str) -> dict[str, object]:
    """A state event for `initial_state`."""
    return {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": value}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("world_readable", ["early", "invited", "joined"]),
        ("shared", ["early", "invited", "joined"]),
        ("invited", ["invited", "joined"]),
        ("joined", ["joined"]),
    ],
)
async def test_a_guest_reads_what_history_visibility_allows(
    host: Person, guest: Person, value: str, shown: list[str]
) -> None:
    room_id = await host.create_room(preset="private_chat", initial_state=[visibility(value)])
    early = await host.says(room_id, "early")
    await host.invite(room_id, guest)
    await host.says(room_id, "invited")
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    await host.sees_member(room_id, guest)
    await guest.sees(room_id, await host.says(room_id, "joined"))

    assert await guest.texts(room_id) == shown
    assert await host.texts(room_id) == ["early", "invited", "joined"]
    status, _ = await guest.client.get(f"/v3/rooms/{quote(room_id)}/event/{quote(early)}")
    assert status == (200 if "early" in shown else 404)


async def test_history_that_is_closed_later_shows_what_was_open(host: Person, guest: Person) -> None:
    room_id = await host.create_room(initial_state=[visibility("shared")])
    await host.says(room_id, "open")
    await host.set_state(room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    await host.says(room_id, "closed")

    await guest.join(room_id, via=[host])

    assert await guest.texts(room_id) == ["open"]


async def test_hundreds_of_events_from_before_are_fetched(host: Person, guest: Person) -> None:
    things = [
        {"type": "org.example.thing", "state_key": f"{number}", "content": {"number": number}} for number in range(400)
    ]
    room_id = await host.create_room(initial_state=things)
    said = [f"message {number}" for number in range(100)]
    for text in said:
        await host.says(room_id, text)
    await guest.join(room_id, via=[host])

    history, whole = await guest.history(room_id), await host.history(room_id)

    assert len(whole) > 500
    assert [event["event_id"] for event in history] == [event["event_id"] for event in whole]
    assert [event["content"]["body"] for event in history if event["type"] == "m.room.message"] == said


async def test_history_with_state_changes_is_fetched_with_its_state(host: Person, guest: Person) -> None:
    room_id = await host.create_room()
    events = []
    for number in range(30):
        await host.set_state(room_id, "m.room.topic", {"topic": f"topic {number}"})
        events.append(await host.says(room_id, f"under {number}"))
    await guest.join(room_id, via=[host])
    assert len(await guest.texts(room_id)) == 30

    for number in (3, 17):
        path = f"/rooms/{quote(room_id)}/context/{quote(events[number])}"
        context = await guest.ok("GET", path, params={"limit": "0"})
        topics = [event["content"] for event in context["state"] if event["type"] == "m.room.topic"]
        assert topics == [{"topic": f"topic {number}"}]


async def test_the_first_event_after_a_time_is_found_on_the_other_side(host: Person, guest: Person) -> None:
    room_id = await host.create_room()
    first = await host.says(room_id, "first")
    await host.says(room_id, "second")
    await guest.join(room_id, via=[host])
    at = (await host.ok("GET", f"/rooms/{quote(room_id)}/event/{quote(first)}"))["origin_server_ts"]

    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event"
    found = await guest.ok("GET", path, params={"ts": str(at), "dir": "f"})

    assert found["event_id"] == first


async def test_a_gap_in_history_is_closed_when_a_guest_comes_back(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    await guest.leave(room_id)
    await host.sees_member(room_id, guest, "leave")
    missed = [f"missed {number}" for number in range(40)]
    for text in missed:
        await host.says(room_id, text)
    await guest.join(room_id, via=[host])
    await guest.sees(room_id, await host.says(room_id, "at last"))

    assert await guest.texts(room_id) == [*missed, "at last"]
