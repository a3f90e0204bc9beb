"""Syncs as clients make them, and the parts of their answers."""

import json
from typing import Any

from tests.client import Client, quote
from tests.rooms import send


async def sync(client: Client, since: str | None = None, **params: Any) -> Any:
    """One answer of /sync; `filter` may be an object."""
    query = {"timeout": "0", "set_presence": "offline", **params} | ({} if since is None else {"since": since})
    if isinstance(query.get("filter"), dict):
        query["filter"] = json.dumps(query["filter"])
    return await client.ok("GET", "/v3/sync", params={name: str(value) for name, value in query.items()})


async def token(client: Client, **params: Any) -> str:
    """Where a first sync stops."""
    next_batch: str = (await sync(client, **params))["next_batch"]
    return next_batch


def part(answer: Any, name: str, room_id: str) -> Any:
    """A room in a section; an empty object when it is not there."""
    return answer.get("rooms", {}).get(name, {}).get(room_id, {})


def joined(answer: Any, room_id: str) -> Any:
    """A joined room."""
    return part(answer, "join", room_id)


def timeline(answer: Any, room_id: str, name: str = "join") -> list[Any]:
    """A room's timeline."""
    events: list[Any] = part(answer, name, room_id).get("timeline", {}).get("events", [])
    return events


def state(answer: Any, room_id: str, name: str = "join", field: str = "state") -> dict[tuple[str, str], Any]:
    """A room's state, by type and state key."""
    events = part(answer, name, room_id).get(field, {}).get("events", [])
    return {(event["type"], event["state_key"]): event for event in events}


def ids(events: Any) -> list[str]:
    """The IDs of events."""
    return [event["event_id"] for event in events]


def members(found: dict[tuple[str, str], Any]) -> set[str]:
    """Whose member events a state holds."""
    return {state_key for event_type, state_key in found if event_type == "m.room.member"}


def counts(answer: Any, room_id: str) -> tuple[int, int]:
    """Unread notifications and highlights of a room."""
    unread = joined(answer, room_id)["unread_notifications"]
    return unread["notification_count"], unread["highlight_count"]


async def say_with(client: Client, room_id: str, body: str, content: Any) -> str:
    """Send a message with these properties, too; its ID."""
    return await send(client, room_id, body, **content)


async def set_state(client: Client, room_id: str, event_type: str, content: Any, state_key: str = "") -> str:
    """Set one entry of a room's state; the event's ID."""
    path = f"/v3/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key)}"
    event_id: str = (await client.ok("PUT", path, content))["event_id"]
    return event_id


async def whole_state(client: Client, room_id: str) -> dict[tuple[str, str], str]:
    """A room's present state as /state tells it: event IDs."""
    events = await client.ok("GET", f"/v3/rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


async def read(client: Client, room_id: str, event_id: str, kind: str = "m.read", thread: str | None = None) -> None:
    """Send a receipt."""
    body: dict[str, str] = {} if thread is None else {"thread_id": thread}
    await client.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}", body)


def own(client: Client, path: str) -> str:
    """A path below the user's own."""
    return f"/v3/user/{quote(client.user_id)}/{path}"


async def ignore(client: Client, *others: Client) -> None:
    """Ignore these users and nobody else."""
    content: dict[str, Any] = {"ignored_users": {other.user_id: {} for other in others}}
    await client.ok("PUT", own(client, "account_data/m.ignored_user_list"), content)
