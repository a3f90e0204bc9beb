"""More of what clients do in rooms, on top of `tests/rooms.py`: histories of rooms and who may read them."""

from typing import Any

from tests.client import Client, quote, unique
from tests.rooms import create_room, put_state
from tests.rooms import join as join

set_state = put_state


async def a_room(owner: Client, *joined: Client, visibility: str | None = None, **fields: Any) -> str:
    """A new public room that these users are in; `visibility` is that of its history."""
    body: dict[str, Any] = {"preset": "public_chat", **fields}
    if visibility is not None:
        state = {"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}
        body["initial_state"] = [*body.get("initial_state", []), state]
    room_id = await create_room(owner, **body)
    for client in joined:
        await join(client, room_id)
    return room_id


async def leave(client: Client, room_id: str) -> None:
    """Leave a room."""
    await client.ok("POST", f"/v3/rooms/{quote(room_id)}/leave", {})


async def act(owner: Client, action: str, room_id: str, target: Client) -> None:
    """Invite, kick, ban or unban somebody."""
    await owner.ok("POST", f"/v3/rooms/{quote(room_id)}/{action}", {"user_id": target.user_id})


async def set_visibility(client: Client, room_id: str, visibility: str) -> str:
    """Change the room's history visibility; the event's ID."""
    return await set_state(client, room_id, "m.room.history_visibility", {"history_visibility": visibility})


async def redact(client: Client, room_id: str, event_id: str) -> str:
    """Redact an event; the redaction's ID."""
    path = f"/v3/rooms/{quote(room_id)}/redact/{quote(event_id)}/{unique()}"
    redaction: str = (await client.ok("PUT", path, {"reason": "test"}))["event_id"]
    return redaction


async def page(client: Client, room_id: str, **params: Any) -> Any:
    """One answer of /messages."""
    answer = await client.get(f"/v3/rooms/{quote(room_id)}/messages", **{"dir": "b", **params})
    assert answer.status == 200, answer.body
    return answer.body


async def history(client: Client, room_id: str, **params: Any) -> list[Any]:
    """All that somebody gets of a room's history by /messages, in the order asked for."""
    events: list[Any] = []
    for _ in range(100):
        answer = await page(client, room_id, **params)
        events.extend(answer["chunk"])
        if "end" not in answer:
            return events
        params["from_"] = answer["end"]
    raise AssertionError("pagination does not end")


def bodies(events: list[Any]) -> list[str]:
    """The texts of the messages among these events."""
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]
