"""Reading a room's state and members (Client-Server API v1.19, "Getting events for a room").

Who is in the room reads its state now, who left reads it as of their leave; of a world-readable room everybody does.
"""

from typing import Any

import orjson

from federation.protocol.errors import InvalidInput, NotFound
from federation.web import Answer, Call
from homeserver.client_api.reading_events import RoomReading, fragments, one
from homeserver.client_api.routing import requester
from homeserver.tokens import parse_page_token
from storage.memberships import Membership


class ReadingStateAPI:
    """State of rooms."""

    def __init__(self, reading: RoomReading) -> None:
        self._reading = reading
        self._database = reading.database
        self._reader = reading.reader

    async def get_state(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/state."""
        who = requester(call)
        await self._reading.until_complete(call.path["room_id"])
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            state = await self._reader.state(tx, access)
            return orjson.dumps(fragments(await self._reader.render_state(tx, state, who.device)))

    async def get_state_event(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/state/{eventType}/{stateKey}; the key may be left out with its slash when empty."""
        who = requester(call)
        form = call.query_text("format") or "content"
        if form not in ("content", "event"):
            raise InvalidInput("format must be content or event")
        key = (call.path["event_type"], call.path.get("state_key", ""))
        if key[0] == "m.room.member" and key[1] != who.user_id:
            await self._reading.until_complete(call.path["room_id"])
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            state = await self._reader.state(tx, access, [key])
            if not state:
                raise NotFound("The room has no such state")
            event = one(await self._reader.render_state(tx, state, who.device))
        if form == "event":
            return event
        return orjson.dumps(orjson.loads(event)["content"])

    async def get_members(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/members."""
        who = requester(call)
        wanted = set(Membership)
        only, without = _membership(call, "membership"), _membership(call, "not_membership")
        if only is not None or without is not None:
            wanted = ({only} if only is not None else set()) | (wanted - {without} if without is not None else set())
        at = call.query_text("at")
        position = parse_page_token(at) if at else None
        await self._reading.until_complete(call.path["room_id"])
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            members = await self._reader.members(tx, access, wanted, position)
            return orjson.dumps({"chunk": fragments(await self._reader.render_state(tx, members, who.device))})

    async def get_joined_members(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/joined_members: only for who is in the room."""
        who = requester(call)
        await self._reading.until_complete(call.path["room_id"])
        async with self._database.read() as tx:
            access = await self._reader.joined(tx, call.path["room_id"], who.user_id)
            members = await self._reader.members(tx, access, {Membership.JOIN})
            rendered = await self._reader.render_state(tx, members)
        joined = {}
        for event in map(orjson.loads, rendered):
            joined[event["state_key"]] = _profile(event["content"])
        return {"joined": joined}


def _profile(content: dict[str, Any]) -> dict[str, str]:
    """What a member event says of its user, under the names of this endpoint."""
    named = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _membership(call: Call, name: str) -> Membership | None:
    text = call.query_text(name)
    if text is None:
        return None
    membership = Membership.of(text)
    if membership is None:
        raise InvalidInput(f"{name} must be a membership")
    return membership
