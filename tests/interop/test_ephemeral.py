"""Who types, has read, and what they are called."""

from typing import Any

from tests.client import quote
from tests.interop.border import Border
from tests.interop.people import Person, Seen
from tests.interop.test_membership import a_shared_room


async def test_typing_is_seen_and_ends(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    def typists(expected: list[str]) -> Any:
        return lambda seen: seen.rooms[room_id].ephemeral.get("m.typing", [{}])[-1].get("user_ids") == expected

    for writer, reader in ((host, guest), (guest, host)):
        path = f"/rooms/{quote(room_id)}/typing/{quote(writer.user_id)}"
        await writer.ok("PUT", path, {"typing": True, "timeout": 30_000})
        await reader.until(typists([writer.user_id]))
        await writer.ok("PUT", path, {"typing": False})
        await reader.until(typists([]))


async def test_receipts_are_seen_unthreaded_and_by_thread(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    root = await host.says(room_id, "root")
    threaded = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    reply = await host.says(room_id, "in the thread", **threaded)
    await guest.sees(room_id, reply)

    async def read(event_id: str, **body: str) -> None:
        await guest.ok("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", body)

    def receipt(event_id: str, thread_id: str | None) -> Any:
        def look(seen: Seen) -> bool:
            contents = seen.rooms[room_id].ephemeral.get("m.receipt", [])
            found = [content.get(event_id, {}).get("m.read", {}).get(guest.user_id) for content in contents]
            return any(one is not None and one.get("thread_id") == thread_id for one in found)

        return look

    await read(root)
    await host.until(receipt(root, None))
    await read(reply, thread_id=root)
    await host.until(receipt(reply, root))
    await read(root, thread_id="main")
    await host.until(receipt(root, "main"))


async def test_a_private_receipt_stays_at_home(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    first = await host.says(room_id, "first")
    second = await host.says(room_id, "second")
    await guest.sees(room_id, second)

    await guest.ok("POST", f"/rooms/{quote(room_id)}/receipt/m.read.private/{quote(second)}", {})
    await guest.ok("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(first)}", {})

    def receipts(seen: Seen) -> list[dict[str, Any]]:
        return seen.rooms[room_id].ephemeral.get("m.receipt", [])

    await host.until(receipts)
    assert all(set(content) == {first} and set(content[first]) == {"m.read"} for content in receipts(host.seen))


async def test_presence_is_seen_across_the_border(alice: Person, bob: Person) -> None:
    room_id = await a_shared_room(alice, bob)

    for person, other in ((alice, bob), (bob, alice)):
        person.set_presence = "online"
        await person.sync()
        status = {"presence": "online", "status_msg": f"busy with {room_id}"}
        await person.ok("PUT", f"/presence/{quote(person.user_id)}/status", status)

        def look(seen: Seen, person: Person = person, status: dict[str, str] = status) -> bool:
            return status.items() <= seen.presence.get(person.user_id, {}).items()

        await other.until(look)


async def test_a_new_name_is_seen_in_shared_rooms(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    await host.ok("PUT", f"/profile/{quote(host.user_id)}/displayname", {"displayname": "Renamed"})

    await guest.sees_state(room_id, "m.room.member", host.user_id, displayname="Renamed", membership="join")


async def test_people_of_shared_rooms_are_found_in_the_user_directory(
    border: Border, alice: Person, bob: Person
) -> None:
    name = alice.user_id[1:].partition(":")[0]
    await alice.ok("PUT", f"/profile/{quote(alice.user_id)}/displayname", {"displayname": f"Known as {name}"})
    await a_shared_room(alice, bob)

    async def found() -> bool:
        results = (await bob.ok("POST", "/user_directory/search", {"search_term": name}))["results"]
        return alice.user_id in [result["user_id"] for result in results]

    await border.eventually(found)
