"""Member events that follow from something else: a changed profile, an account that ended, a room closed to guests."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from federation.protocol.errors import MatrixError
from federation.protocol.pdu import Draft
from federation.protocol.types import JsonObject, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from homeserver.services.membership import GUEST_ACCESS
from homeserver.services.remote_rooms import RemoteRooms
from storage import memberships, rooms
from storage.database import Database
from storage.memberships import Membership
from storage.rooms import Room

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Rooms written to at the same time when a change concerns all of a user's rooms."""
_TRANSIENT = ("reason", "join_authorised_via_users_server", "third_party_invite", "is_direct")
"""What belongs to one change of membership, not to the member."""


class MemberUpkeep:
    """Writes member events in the name of our users."""

    def __init__(self, database: Database, writer: RoomWriter, remote: RemoteRooms) -> None:
        self._database = database
        self._writer = writer
        self._remote = remote

    async def remove_guests(self, room_id: str) -> None:
        """Have the guests of this server leave a room that is not open to them (any longer)."""
        room = await self._writer.get_room(room_id)
        state = await self._writer.state_for(room, [GUEST_ACCESS])
        if content_of(state.get(GUEST_ACCESS)).get("guest_access") == "can_join":
            return
        async with self._database.read() as tx:
            guests = await memberships.guests_in(tx, room.number)
        for user_id in guests:
            await self._change_in(room, user_id, (Membership.JOIN,), lambda _current: {"membership": "leave"})

    async def update_profile(self, user_id: UserID, profile: JsonObject) -> None:
        """Bring the profile's name and avatar, or that there is none, into the user's member event in every room.

        A room that refuses is left as it is.
        """

        def changed(current: JsonObject) -> JsonObject:
            content = {name: value for name, value in current.items() if name not in _TRANSIENT}
            content.update({name: profile.get(name) for name in ("displayname", "avatar_url")})
            return {name: value for name, value in content.items() if value is not None}

        await self._in_all_rooms(user_id, (Membership.JOIN,), changed)

    async def leave_all_rooms(self, user_id: UserID) -> None:
        """Leave every room, reject every invite, take back every knock: the account has ended."""
        wanted = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)
        await self._in_all_rooms(user_id, wanted, lambda _current: {"membership": "leave"})
        await self._remote.leave_all(user_id)

    async def _in_all_rooms(
        self, user_id: UserID, wanted: Sequence[Membership], changed: Callable[[JsonObject], JsonObject]
    ) -> None:
        async with self._database.read() as tx:
            numbers = await memberships.rooms_of(tx, user_id, wanted)
            found = list((await rooms.get_many(tx, list(numbers))).values())
        slots = asyncio.Semaphore(AT_ONCE)

        async def change_in(room: Room) -> None:
            async with slots:
                await self._change_in(room, user_id, wanted, changed)

        async with asyncio.TaskGroup() as group:
            for room in found:
                group.create_task(change_in(room))

    async def _change_in(
        self, room: Room, user_id: UserID, wanted: Sequence[Membership], changed: Callable[[JsonObject], JsonObject]
    ) -> None:
        """Change a user's own member event, if their membership is one of those wanted; a refusal is logged."""
        key: StateKey = ("m.room.member", user_id)
        current = (await self._writer.state_for(room, [key])).get(key)
        if current is None or Membership.of(current.membership) not in wanted:
            return
        content = changed(current.content)
        if content == current.content:
            return
        draft = Draft(room_id=room.room_id, type="m.room.member", sender=user_id, content=content, state_key=user_id)
        try:
            await self._writer.append([draft])
        except MatrixError as error:
            logger.warning("%s could not be changed in %s: %s", user_id, room.room_id, error.message)
