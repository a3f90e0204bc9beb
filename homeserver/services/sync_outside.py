"""Rooms in a sync that this server is not in: invites from outside, knocks, and what became of them."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from federation.protocol.types import JsonObject, RoomID, UserID
from homeserver.services.sync_sorting import RoomsRequest
from homeserver.services.user_views import Member
from storage import outside_memberships
from storage.database import Database
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership

_STATE_NAMES = {Membership.INVITE: ("invite", "invite_state"), Membership.KNOCK: ("knock", "knock_state")}


class OutsideRooms:
    """Tells of memberships that came without their room's state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def collect(
        self, request: RoomsRequest, user_id: UserID, outside: Mapping[RoomID, Member], ignored: Collection[UserID]
    ) -> list[tuple[str, RoomID, JsonObject]]:
        """The rooms to tell of: the part of `rooms` they belong into, their IDs, and what to say."""
        since = None if request.since is None else request.since.position
        wanted = [
            room_id
            for room_id, member in outside.items()
            if (since is None or member.position > since)
            and (member.membership in _STATE_NAMES or since is not None or request.filter.include_leave)
            and request.filter.allows_room(room_id)
        ]
        if not wanted:
            return []
        async with self._database.read() as tx:
            found = await outside_memberships.get_many(tx, user_id, wanted)
        answer: list[tuple[str, RoomID, JsonObject]] = []
        for each in found:
            event: JsonObject = orjson.loads(each.json)
            if each.membership is Membership.INVITE and event["sender"] in ignored:
                continue
            if each.membership in _STATE_NAMES:
                part, name = _STATE_NAMES[each.membership]
                answer.append((part, each.room_id, {name: {"events": orjson.Fragment(each.stripped_state)}}))
            else:
                answer.append(("leave", each.room_id, _left(request, each, event)))
        return answer


def _left(request: RoomsRequest, each: OutsideMembership, event: JsonObject) -> JsonObject:
    """A room that the user did not get into after all: the event that says so is all that there is of it."""
    events: list[Any] = []
    if request.filter.timeline.allows_event("m.room.member", event["sender"], event["content"]):
        events.append(request.filter.shape(event if request.filter.federation_format else client_form(each, event)))
    return {"timeline": {"events": events, "limited": False}, request.state_name: {"events": []}}


def client_form(each: OutsideMembership, event: JsonObject) -> JsonObject:
    """The member event as clients see events."""
    kept = {name: event[name] for name in ("content", "origin_server_ts", "sender", "state_key", "type")}
    return {**kept, "event_id": each.event_id, "room_id": each.room_id}
