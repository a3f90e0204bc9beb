"""What is said and changed in a room reaches the other side, and both sides agree on it."""

import asyncio

from tests.client import quote
from tests.interop.border import Border
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room


async def test_messages_go_both_ways_in_their_order(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    said = [
        await person.says(room_id, f"{number}. of {person.user_id}") for number in range(10) for person in (host, guest)
    ]

    for person in (host, guest):
        for event_id in said:
            await person.sees(room_id, event_id)
    texts = [text for text in await guest.texts(room_id) if text.endswith(host.user_id)]
    assert texts == [f"{number}. of {host.user_id}" for number in range(10)]
    assert sorted(await host.texts(room_id)) == sorted(await guest.texts(room_id))


async def test_everybody_talks_at_once(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(person.says(room_id, f"{person.user_id} {number}"))
            for number in range(25)
            for person in (host, guest)
        ]

    for person in (host, guest):
        for task in tasks:
            await person.sees(room_id, task.result())
    assert sorted(await host.texts(room_id)) == sorted(await guest.texts(room_id))


async def test_events_are_the_same_on_both_sides(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    content = {
        "msgtype": "m.text",
        "body": 'Ω≈ç 𝄞 \u0000\u2028 \\ "',
        "org.example.deep": {"a": [1, -(2**53) + 1, None, True]},
    }

    event_id = await guest.sends(room_id, "m.room.message", content)
    at_host, at_guest = await host.sees(room_id, event_id), await guest.sees(room_id, event_id)

    for member in ("content", "sender", "type", "origin_server_ts", "event_id"):
        assert at_host[member] == at_guest[member]
    assert at_host["content"] == content


async def test_a_state_change_of_either_side_is_both_sides_state(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest, power_level_content_override={"state_default": 0})

    await host.set_state(room_id, "m.room.topic", {"topic": "by the host"})
    await guest.sees_state(room_id, "m.room.topic", topic="by the host")
    await guest.set_state(room_id, "m.room.topic", {"topic": "by the guest"})
    await host.sees_state(room_id, "m.room.topic", topic="by the guest")
    await guest.set_state(room_id, "org.example.thing", {"a": 1}, "ключ/ä")
    await host.sees_state(room_id, "org.example.thing", "ключ/ä", a=1)

    for person in (host, guest):
        assert (await person.state(room_id, "m.room.topic"))["topic"] == "by the guest"


async def test_state_changed_by_both_at_once_ends_up_the_same(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest, power_level_content_override={"state_default": 0})

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            for person in (host, guest):
                topic = {"topic": f"{number} by {person.user_id}"}
                group.create_task(person.set_state(room_id, "m.room.topic", topic))
    # A last message of each refers to all that its server knows.
    for person, other in ((host, guest), (guest, host)):
        await other.sees(room_id, await person.says(room_id, "done"))

    assert await host.state(room_id, "m.room.topic") == await guest.state(room_id, "m.room.topic")


async def test_who_lost_power_changes_nothing_any_more(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    levels = await host.state(room_id, "m.room.power_levels")
    levels["users"][guest.user_id] = 50
    await guest.sees(room_id, await host.set_state(room_id, "m.room.power_levels", levels))
    await guest.set_state(room_id, "m.room.name", {"name": "with power"})
    await host.sees_state(room_id, "m.room.name", name="with power")

    levels["users"][guest.user_id] = 0
    await guest.sees(room_id, await host.set_state(room_id, "m.room.power_levels", levels))

    path = f"/v3/rooms/{quote(room_id)}/state/m.room.name/"
    assert (await guest.client.request("PUT", path, {"name": "without"})).status == 403
    assert await host.state(room_id, "m.room.name") == {"name": "with power"}


async def test_a_redaction_takes_the_content_away_on_both_sides(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    for author, reader, redactor in ((guest, host, guest), (host, guest, host), (guest, host, host)):
        event_id = await author.says(room_id, "a slip")
        await reader.sees(room_id, event_id)

        redaction_id = await redactor.redact(room_id, event_id)

        for person in (host, guest):
            await person.sees(room_id, redaction_id)
            event = await person.ok("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == redaction_id


async def test_reactions_edits_and_threads_of_both_sides_are_counted(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    root = await host.says(room_id, "a root")
    await guest.sees(room_id, root)
    edit = {"m.new_content": {"msgtype": "m.text", "body": "the root"}, "m.relates_to": relates("m.replace", root)}
    await host.says(room_id, "* the root", **edit)
    reaction = {"rel_type": "m.annotation", "event_id": root, "key": "👍"}
    await guest.sends(room_id, "m.reaction", {"m.relates_to": reaction})
    last = await guest.says(room_id, "in a thread", **{"m.relates_to": relates("m.thread", root)})
    for person in (host, guest):
        await person.sees(room_id, last)

    (counting,) = (person for person in (host, guest) if not person.is_ours)
    event = await counting.ok("GET", f"/rooms/{quote(room_id)}/event/{quote(root)}")
    assert event["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"] == last
    assert event["unsigned"]["m.relations"]["m.replace"]["sender"] == host.user_id


def relates(kind: str, event_id: str) -> dict[str, str]:
    """`m.relates_to`."""
    return {"rel_type": kind, "event_id": event_id}


async def test_a_message_of_the_greatest_size_arrives_and_a_larger_one_does_not_leave(
    host: Person, guest: Person
) -> None:
    room_id = await a_shared_room(host, guest)

    event_id = await host.says(room_id, "x" * 64_000)
    status, body = await host.try_to_say(room_id, "x" * 66_000)

    assert len((await guest.sees(room_id, event_id))["content"]["body"]) == 64_000
    assert (status, body["errcode"]) == (413, "M_TOO_LARGE")


async def test_what_the_other_side_says_is_counted_as_unread(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    for _ in range(3):
        await guest.says(room_id, "ping")
    await guest.says(room_id, "you!", **{"m.mentions": {"user_ids": [host.user_id]}})

    expected = {"notification_count": 4, "highlight_count": 1}
    await host.until(lambda seen: seen.rooms[room_id].unread == expected)


async def test_three_servers_hear_each_other(border: Border, host: Person, guest: Person) -> None:
    carol = await border.somebody_third()
    room_id = await a_shared_room(host, guest)
    await carol.join(room_id, via=[guest])
    people = (host, guest, carol)
    for person in people:
        await person.sees_member(room_id, carol)

    for speaker in people:
        event_id = await speaker.says(room_id, f"said by {speaker.user_id}")
        for person in people:
            await person.sees(room_id, event_id)


async def test_a_third_server_that_left_hears_nothing_more(border: Border, host: Person, guest: Person) -> None:
    carol = await border.somebody_third()
    room_id = await a_shared_room(host, guest)
    await carol.join(room_id, via=[host])
    await carol.sees_member(room_id, guest)
    for person in (host, guest):
        await person.sees_member(room_id, carol)

    await carol.leave(room_id)
    for person in (host, guest):
        await person.sees_member(room_id, carol, "leave")
    event_id = await host.says(room_id, "now we are alone")
    await guest.sees(room_id, event_id)
    other = await a_shared_room(host, guest)
    await carol.join(other, via=[host])  # what is said here reaches them after it
    await carol.sees(other, await host.says(other, "hello"))

    status, _ = await carol.client.get(f"/v3/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert status == 404
    assert "now we are alone" not in await carol.texts(room_id)
