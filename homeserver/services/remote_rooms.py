"""Rooms that nobody of this server is in, and users of other servers: whom to ask (Client-Server API, "Room
membership"; Server-Server API, "Joining rooms").
"""

import asyncio
import logging
from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import is_room_id, is_server_name
from federation.protocol.member_template import Wish
from federation.protocol.pdu import Draft
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, UserID
from federation.rooms.doors import RoomDoors
from federation.rooms.joining import RemoteJoins
from federation.rooms.remote_memberships import RemoteMemberships
from storage import memberships, outside_memberships, rooms
from storage.database import Database, Tx
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Rooms that are left at the same time when an account ends."""
LEAVE_SECONDS = 20.0
MAX_ROUNDS = 4
"""How often a user waits for somebody else's join before their own has to have its turn."""


class _Outside(Struct, frozen=True):
    """What we know of a room without being in it."""

    before: OutsideMembership | None
    """The user's invite or knock."""
    servers: list[str]
    """Whom to ask, in order."""


class RemoteRooms:
    """Changes memberships of our users where other servers have to help."""

    def __init__(
        self,
        database: Database,
        joins: RemoteJoins,
        outside: RemoteMemberships,
        doors: RoomDoors,
        *,
        server_name: ServerName,
        enabled: bool,
    ) -> None:
        self._database = database
        self._joins = joins
        self._outside = outside
        self._doors = doors
        self.server_name = server_name
        self._enabled = enabled

    async def is_outside(self, room_id: str) -> bool:
        """Whether others are in the room, or may be, and nobody of ours is."""
        room = rooms.known(self._database.memory, room_id)
        if room is None:
            async with self._database.read() as tx:
                room = await rooms.find(tx, room_id)
            if room is None:
                return True
        if await self._doors.is_ours(room):
            return False
        async with self._database.read() as tx:
            return await memberships.is_left_to_others(tx, room.number, self.server_name)

    async def join(self, room_id: str, user_id: UserID, content: JsonObject, via: Sequence[str]) -> bool:
        """Join a room that nobody of ours is in, or that needs another server's user to let ours in.

        False where somebody else of ours came in meanwhile: then no other server is needed, most likely.
        """
        found = await self._look(room_id, user_id, via)
        wish = Wish(room_id=RoomID(room_id), user_id=user_id, membership="join", content=content)
        for _ in range(MAX_ROUNDS):
            if await self._joins.join(wish, found.servers):
                return True
            if not await self.is_outside(room_id):
                return False
        raise MatrixError("M_UNKNOWN", "Others are joining this room, try again", 503, {"retry_after_ms": 2000})

    async def knock(self, room_id: str, user_id: UserID, content: JsonObject, via: Sequence[str]) -> EventID:
        """Knock at a room that nobody of ours is in."""
        found = await self._look(room_id, user_id, via)
        if found.before is not None and found.before.membership is Membership.KNOCK:
            return found.before.event_id
        if found.before is not None and found.before.membership is Membership.INVITE:
            raise Forbidden("You are invited to this room")
        wish = Wish(room_id=RoomID(room_id), user_id=user_id, membership="knock", content=content)
        return await self._outside.knock(wish, found.servers)

    async def leave(self, room_id: str, user_id: UserID, content: JsonObject) -> EventID:
        """Reject an invite or take back a knock; raises NotFound for who has neither."""
        found = await self._look(room_id, user_id, ())
        if found.before is None:
            raise NotFound("There is no such room")
        if found.before.membership not in (Membership.INVITE, Membership.KNOCK):
            return found.before.event_id
        wish = Wish(room_id=RoomID(room_id), user_id=user_id, membership="leave", content=content)
        return await self._outside.leave(wish, found.servers, found.before)

    async def leave_all(self, user_id: UserID) -> None:
        """Reject every invite and take back every knock from outside, as far as the servers answer in time."""
        async with self._database.read() as tx:
            found = await outside_memberships.of_user(tx, user_id)
        wanted = (Membership.INVITE, Membership.KNOCK)
        slots = asyncio.Semaphore(AT_ONCE)

        async def leave(room_id: RoomID) -> None:
            async with slots:
                try:
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await self.leave(room_id, user_id, {"membership": "leave"})
                except (MatrixError, TimeoutError) as error:
                    logger.warning("%s could not leave %s: %s", user_id, room_id, error)

        async with asyncio.TaskGroup() as group:
            for room_id, (membership, _) in found.items():
                if membership in wanted:
                    group.create_task(leave(room_id))

    async def invite(self, draft: Draft) -> EventID:
        """Invite a user of another server."""
        self._check_enabled()
        return await self._outside.invite(draft)

    async def accept_third_party(
        self, room_id: str, sender: UserID, target: UserID, third_party_invite: JsonObject
    ) -> None:
        """Have the server of who made a third-party invite turn it into an invite."""
        self._check_enabled()
        await self._outside.exchange_third_party_invite(RoomID(room_id), sender, target, third_party_invite)

    async def other_servers(self, room_id: str) -> list[ServerName]:
        """The other servers in a room that we know."""
        async with self._database.read() as tx:
            room = await rooms.find(tx, room_id)
            found = [] if room is None else await memberships.servers_of(tx, room.number)
        return [name for name in found if name != self.server_name]

    async def whom_to_ask(
        self, room_id: str, user_id: UserID, via: Sequence[str]
    ) -> tuple[Membership | None, list[ServerName]]:
        """The user's invite or knock, and other servers that may know of a room that nobody of ours is in."""
        found = await self._look(room_id, user_id, via)
        servers = dict.fromkeys(name for name in found.servers if is_server_name(name) and name != self.server_name)
        return (None if found.before is None else found.before.membership), list(servers)

    async def _look(self, room_id: str, user_id: UserID, via: Sequence[str]) -> _Outside:
        """Whom to ask: whom the client names, who invited the user, who was in the room when we last knew, whose room
        it was at first."""
        if not is_room_id(room_id):
            raise InvalidInput("Not a valid room ID")
        async with self._database.read() as tx:
            before = await outside_memberships.find(tx, user_id, room_id)
            before = before or await _when_we_were_in(tx, user_id, room_id)
        servers: list[str] = list(via)
        if before is not None:
            servers += before.via
        servers += await self.other_servers(room_id)
        _, colon, domain = room_id.partition(":")
        if colon:
            servers.append(domain)
        return _Outside(before, servers if self._enabled else [])

    def _check_enabled(self) -> None:
        if not self._enabled:
            raise Forbidden("This server does not speak to other servers")


async def _when_we_were_in(tx: Tx, user_id: UserID, room_id: str) -> OutsideMembership | None:
    """The user's invite or knock by the state of a room that all others of ours have left since."""
    room = await rooms.find(tx, room_id)
    membership = None if room is None else await memberships.membership_of(tx, room.number, user_id)
    if room is None or membership not in (Membership.INVITE, Membership.KNOCK):
        return None
    return OutsideMembership(
        user_id=user_id,
        room_id=room.room_id,
        membership=membership,
        room_version=room.rules.version,
        event_id=EventID(""),
        json=b"",
    )
