"""Rooms for tests: what a client does in one call, and what the server has stored of a room."""

import itertools
from typing import Any

import orjson

from storage.event_bytes import unpack
from tests.client import Client, Server, quote

_txn_ids = itertools.count(1)


async def create_room(client: Client, **body: Any) -> str:
    """A new room's ID."""
    room_id: str = (await client.ok("POST", "/v3/createRoom", body))["room_id"]
    return room_id


async def join(client: Client, room: str, **body: Any) -> str:
    """Join by ID or alias."""
    room_id: str = (await client.ok("POST", f"/v3/join/{quote(room)}", body))["room_id"]
    return room_id


async def send(client: Client, room_id: str, text: str, **content: Any) -> str:
    """Send a text message: its event ID."""
    return await send_event(client, room_id, "m.room.message", {"msgtype": "m.text", "body": text, **content})


async def send_event(client: Client, room_id: str, event_type: str, content: Any) -> str:
    """Send an event: its ID."""
    path = f"/v3/rooms/{quote(room_id)}/send/{quote(event_type)}/t{next(_txn_ids)}"
    event_id: str = (await client.ok("PUT", path, content))["event_id"]
    return event_id


async def put_state(client: Client, room_id: str, event_type: str, content: Any, state_key: str = "") -> str:
    """Set state: the event's ID."""
    path = f"/v3/rooms/{quote(room_id)}/state/{quote(event_type)}/{quote(state_key)}"
    event_id: str = (await client.ok("PUT", path, content))["event_id"]
    return event_id


async def pdus_of(server: Server, room_id: str, event_type: str | None = None) -> list[Any]:
    """The room's events as they are stored, oldest first, each with its `event_id`."""
    async with server.application.database.read() as tx:
        rows = await tx.fetch(
            "select event_id, json from events join rooms using (room) where room_id = %s order by position", (room_id,)
        )
    pdus = [{**orjson.loads(unpack(json)), "event_id": event_id} for event_id, json in rows]
    return [pdu for pdu in pdus if event_type in (None, pdu["type"])]


async def state_of(server: Server, room_id: str) -> dict[tuple[str, str], Any]:
    """The room's current state as it is stored."""
    async with server.application.database.read() as tx:
        rows = await tx.fetch(
            "select event_id, json from room_state join rooms using (room) join events on events.room = rooms.room"
            " and position = room_state.event where room_id = %s and room_state.line = 0 and until_version is null",
            (room_id,),
        )
    pdus = [{**orjson.loads(unpack(json)), "event_id": event_id} for event_id, json in rows]
    return {(pdu["type"], pdu["state_key"]): pdu for pdu in pdus}


async def membership_of(server: Server, room_id: str, user: Client) -> str | None:
    """The user's membership now."""
    member = (await state_of(server, room_id)).get(("m.room.member", user.user_id))
    return None if member is None else member["content"]["membership"]
