"""Events that relate to others, as clients send them, and what they are told of these."""

from typing import Any

from tests.client import Client, quote
from tests.homeserver.rooms import page
from tests.rooms import send, send_event


def relates_to(rel_type: str, event_id: str, **more: Any) -> dict[str, Any]:
    """Content that relates to an event."""
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id, **more}}


async def reply(client: Client, room_id: str, root: str, text: str = "reply") -> str:
    """A message in a thread."""
    return await send(client, room_id, text, **relates_to("m.thread", root))


async def edit(client: Client, room_id: str, event_id: str, text: str, **params: Any) -> str:
    """An edit of a message."""
    new = {"m.new_content": {"msgtype": "m.text", "body": text}}
    return await send(client, room_id, f"* {text}", **new, **relates_to("m.replace", event_id), **params)


async def refer(client: Client, room_id: str, event_id: str, event_type: str = "org.example.vote") -> str:
    """An event that refers to another."""
    return await send_event(client, room_id, event_type, relates_to("m.reference", event_id))


async def react(client: Client, room_id: str, event_id: str, key: str = "+1") -> str:
    """A reaction."""
    return await send_event(client, room_id, "m.reaction", relates_to("m.annotation", event_id, key=key))


async def event(client: Client, room_id: str, event_id: str) -> Any:
    """One event as somebody is told it."""
    return await client.ok("GET", f"/v3/rooms/{quote(room_id)}/event/{quote(event_id)}")


def bundle_of(event: Any) -> Any:
    """What is bundled with an event."""
    return event["unsigned"].get("m.relations", {})


async def bundle(client: Client, room_id: str, event_id: str) -> Any:
    """What is bundled with an event when somebody asks for it."""
    return bundle_of(await event(client, room_id, event_id))


async def bundles(client: Client, room_id: str) -> dict[str, Any]:
    """What is bundled with the newest hundred events, where anything is."""
    chunk = (await page(client, room_id, limit=100))["chunk"]
    return {event["event_id"]: bundle_of(event) for event in chunk if bundle_of(event)}


async def children_page(client: Client, room_id: str, event_id: str, *path: str, **params: Any) -> Any:
    """One answer of /relations."""
    names = "".join(f"/{quote(name)}" for name in path)
    answer = await client.get(f"/v1/rooms/{quote(room_id)}/relations/{quote(event_id)}{names}", **params)
    assert answer.status == 200, answer.body
    return answer.body


async def children(client: Client, room_id: str, event_id: str, *path: str, **params: Any) -> list[str]:
    """The IDs of what relates to an event, by all pages."""
    found: list[str] = []
    for _ in range(100):
        answer = await children_page(client, room_id, event_id, *path, **params)
        found += [event["event_id"] for event in answer["chunk"]]
        if "next_batch" not in answer:
            return found
        params["from_"] = answer["next_batch"]
    raise AssertionError("pagination does not end")


async def threads(client: Client, room_id: str, **params: Any) -> list[Any]:
    """The roots of a room's threads, by all pages."""
    found: list[Any] = []
    for _ in range(100):
        answer = await client.get(f"/v1/rooms/{quote(room_id)}/threads", **params)
        assert answer.status == 200, answer.body
        found += answer.body["chunk"]
        if "next_batch" not in answer.body:
            return found
        params["from_"] = answer.body["next_batch"]
    raise AssertionError("pagination does not end")


async def ignore(client: Client, *others: Client) -> None:
    """Ignore these users, and nobody else."""
    content: dict[str, Any] = {"ignored_users": {other.user_id: {} for other in others}}
    path = f"/v3/user/{quote(client.user_id)}/account_data/m.ignored_user_list"
    await client.ok("PUT", path, content)
