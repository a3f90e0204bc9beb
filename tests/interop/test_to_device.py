"""Messages to devices of the other server, and what a server is owed that was away."""

import asyncio
from typing import Any

from tests.client import unique
from tests.interop.border import Border
from tests.interop.people import Person, Seen
from tests.interop.test_membership import a_shared_room


async def send_to(sender: Person, recipient: Person, content: dict[str, Any], device_id: str = "") -> None:
    """A to-device message to their device, or to all with `*`."""
    messages = {recipient.user_id: {device_id or recipient.client.device_id: content}}
    await sender.ok("PUT", f"/sendToDevice/org.example.note/{unique('t')}", {"messages": messages})


def received(number: int) -> Any:
    """Whether the message with this number has come."""

    def look(seen: Seen) -> bool:
        return any(event["content"].get("number") == number for event in seen.to_device)

    return look


async def test_messages_to_devices_arrive(host: Person, guest: Person) -> None:
    second = await guest.client.login()

    await send_to(host, guest, {"number": 1})
    await send_to(host, guest, {"number": 2}, "*")

    await guest.until(received(2))
    assert [event["content"]["number"] for event in guest.seen.to_device] == [1, 2]
    assert all(event["sender"] == host.user_id for event in guest.seen.to_device)
    other = Person(second, guest.server_name)
    await other.until(received(2))
    assert [event["content"]["number"] for event in other.seen.to_device] == [2]


async def test_messages_that_cross_one_another_arrive_once(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    async with asyncio.TaskGroup() as group:
        for number in range(30):
            for sender, recipient in ((host, guest), (guest, host)):
                group.create_task(send_to(sender, recipient, {"number": number}))
    # Synapse may have left the last ones where they are until it has more to send (see test_encryption.py).
    for person, other in ((host, guest), (guest, host)):
        await other.sees(room_id, await person.says(room_id, "have you got it all?"))

    for person in (host, guest):
        for number in range(30):
            await person.until(received(number))
        assert sorted(event["content"]["number"] for event in person.seen.to_device) == list(range(30))


async def test_what_was_sent_while_a_server_was_out_of_reach_arrives(
    border: Border, host: Person, guest: Person
) -> None:
    room_id = await a_shared_room(host, guest)
    away, sender = border.server_of(guest), border.server_of(host)
    border.links.set_cut({(away, sender), (sender, away)})
    event_ids = []
    try:
        for number in range(3):
            await send_to(host, guest, {"number": number})
            event_ids.append(await host.says(room_id, f"while you were away {number}"))
    finally:
        border.links.set_cut(set())

    # It hears nothing by itself: the other server notices, at the latest when there is something to say.
    await guest.says(room_id, "back")
    for number in range(3):
        await guest.until(received(number))
    for event_id in event_ids:
        await guest.sees(room_id, event_id)
    numbers = [event["content"]["number"] for event in guest.seen.to_device]
    assert sorted(numbers) == [0, 1, 2]  # in their order or not: Synapse lets them race


async def test_what_was_sent_while_a_server_was_down_arrives_although_the_sender_was_restarted(
    border: Border, host: Person, guest: Person
) -> None:
    room_id = await a_shared_room(host, guest)
    away, sender = border.server_of(guest), border.server_of(host)
    await away.stop()
    event_ids = []
    try:
        for number in range(3):
            await send_to(host, guest, {"number": number})
            event_ids.append(await host.says(room_id, f"while you were down {number}"))
        await sender.restart()
    finally:
        await away.start()

    await guest.says(room_id, "back")

    for number in range(3):
        await guest.until(received(number))
    for event_id in event_ids:
        await guest.sees(room_id, event_id)
