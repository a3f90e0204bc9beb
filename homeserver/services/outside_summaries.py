"""What lists of sliding sync must know of rooms that this server is not in, from what came with the invite or knock."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from federation.protocol.types import JsonObject, RoomID, UserID
from federation.rooms.timelines import Timelines
from homeserver.services.sliding_connections import RoomKey
from homeserver.services.user_views import Member
from storage import outside_memberships
from storage.database import Database
from storage.memberships import Membership


class OutsideSummaries:
    """Looks at invites and knocks."""

    def __init__(self, database: Database, timelines: Timelines) -> None:
        self._database = database
        self._timelines = timelines

    async def encrypted(self, user_id: UserID, outside: Mapping[RoomID, Member]) -> dict[RoomKey, bool]:
        """Which of these rooms say that they are encrypted; rooms of which nothing is said are left out."""
        states = await self._states(user_id, outside)
        return {
            room_id: any(event.get("type") == "m.room.encryption" for event in state)
            for room_id, state in states.items()
        }

    async def types(self, user_id: UserID, outside: Mapping[RoomID, Member]) -> dict[RoomKey, str | None]:
        """The types of these rooms, as far as they are said."""
        found: dict[RoomKey, str | None] = {}
        for room_id, state in (await self._states(user_id, outside)).items():
            for event in state:
                if event.get("type") == "m.room.create":
                    content = event.get("content")
                    value = content.get("type") if isinstance(content, dict) else None
                    found[room_id] = value if isinstance(value, str) else None
        return found

    async def _states(self, user_id: UserID, outside: Mapping[RoomID, Member]) -> dict[RoomID, list[JsonObject]]:
        if not outside:
            return {}
        async with self._database.read() as tx:
            found = await outside_memberships.get_many(tx, user_id, list(outside))
        return {each.room_id: _events(each.stripped_state) for each in found}

    async def invited_by(
        self, user_id: UserID, members: Mapping[RoomKey, Member], senders: Collection[UserID]
    ) -> list[RoomKey]:
        """Those of these rooms to which one of `senders` has invited the user."""
        invited = [key for key, member in members.items() if member.membership is Membership.INVITE]
        numbers = [key for key in invited if isinstance(key, int)]
        outside = [key for key in invited if not isinstance(key, int)]
        found: list[RoomKey] = []
        async with self._database.read() as tx:
            if numbers:
                own = await self._timelines.current_of_many(tx, numbers, [("m.room.member", user_id)])
                found.extend(room for room, events in own.items() if any(event.sender in senders for event in events))
            if outside:
                invites = await outside_memberships.get_many(tx, user_id, outside)
                found.extend(each.room_id for each in invites if orjson.loads(each.json)["sender"] in senders)
        return found


def _events(stripped_state: bytes) -> list[JsonObject]:
    value: Any = orjson.loads(stripped_state)
    return [event for event in value if isinstance(event, dict)] if isinstance(value, list) else []
