"""Room aliases and published rooms (Client-Server API v1.19, "Room aliases", "Published room directory")."""

import time
from collections.abc import Awaitable, Callable

from federation.protocol.auth_events import CREATE
from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import check_room_alias, fits, server_of_alias
from federation.protocol.pdu import Draft
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, StateKey
from federation.rooms.append import RoomWriter
from federation.rooms.reader import RoomReader
from homeserver.services.application_services import ApplicationServices
from homeserver.services.requester import Requester
from storage import memberships, room_directory, rooms
from storage.database import Database, Tx
from storage.rooms import Room

CANONICAL_ALIAS: StateKey = ("m.room.canonical_alias", "")
MAX_ALIASES = 1000
"""Of one room."""
MAX_SERVERS = 20
"""Of those in a room, so many are told with its alias."""
MAX_MEMBERS = 1000
"""Of so many members of a room, the servers are looked at."""

ResolveRemote = Callable[[RoomAlias], Awaitable[tuple[RoomID, list[ServerName]]]]
"""Asks an alias's server; raises NotFound."""


class RoomDirectory:
    """Which alias stands for which room, and which rooms are published."""

    def __init__(
        self,
        database: Database,
        writer: RoomWriter,
        reader: RoomReader,
        application_services: ApplicationServices,
        *,
        server_name: ServerName,
        resolve_remote: ResolveRemote,
    ) -> None:
        self._database = database
        self._writer = writer
        self._reader = reader
        self._application_services = application_services
        self._server_name = server_name
        self._resolve_remote = resolve_remote

    # --- aliases

    async def find(self, alias: RoomAlias) -> RoomID | None:
        """The room that an alias of any server stands for, None for none; raises PeerFailed where nobody tells."""
        if server_of_alias(alias) != self._server_name:
            try:
                return (await self._resolve_remote(alias))[0]
            except (NotFound, Forbidden, InvalidInput):  # so its server says
                return None
        async with self._database.read() as tx:
            found = await room_directory.find_alias(tx, alias)
        return None if found is None else found.room_id

    async def resolve(self, alias: str) -> tuple[RoomID, list[ServerName]]:
        """The room that an alias stands for, and servers that are in it; raises M_INVALID_PARAM or M_NOT_FOUND.

        An alias of ours comes with this server first if it is in the room, and with others by how many users they have.
        """
        checked = check_room_alias(alias)
        if server_of_alias(checked) != self._server_name:
            return await self._resolve_remote(checked)
        async with self._database.read() as tx:
            found = await room_directory.find_alias(tx, checked)
            if found is None:
                raise NotFound(f"Room alias {alias} not found")
            room = await rooms.find(tx, found.room_id)
            servers = [] if room is None else await self._servers_in(tx, room)
        return found.room_id, servers[:MAX_SERVERS] or [self._server_name]

    async def _servers_in(self, tx: Tx, room: Room) -> list[ServerName]:
        others = await memberships.some_servers(tx, room.number, sample=MAX_MEMBERS)
        if not await memberships.local_members(tx, room.number, self._server_name, limit=1):
            return others
        return [self._server_name, *(server for server in others if server != self._server_name)]

    async def create(self, who: Requester, alias: str, room_id: str) -> None:
        """Give a room that the user is in an alias; 409 where it stands for a room already."""
        who.check_not_suspended()
        checked = self._own(alias)
        self._application_services.check_alias_not_exclusive(checked, who.application_service)
        room = await self._writer.get_room(room_id)
        if who.application_service is None and not who.is_admin and not await self._is_joined(who, room):
            raise Forbidden("You are not in this room")
        async with self._database.transaction() as tx:
            if len(await room_directory.list_aliases(tx, room.room_id)) >= MAX_ALIASES:
                raise InvalidInput(f"A room has at most {MAX_ALIASES} aliases")
            if not await room_directory.insert_alias(tx, checked, room.room_id, who.user_id, _now_ms()):
                raise MatrixError("M_UNKNOWN", f"Room alias {alias} already exists", 409)

    async def delete(self, who: Requester, alias: str) -> None:
        """Take an alias away: whoever made it, an administrator, or who may set the room's canonical alias."""
        who.check_not_suspended()
        checked = self._own(alias)
        self._application_services.check_alias_not_exclusive(checked, who.application_service)
        async with self._database.read() as tx:
            found = await room_directory.find_alias(tx, checked)
        if found is None:
            raise NotFound(f"Room alias {alias} not found")
        if found.creator != who.user_id and not who.is_admin and not await self._may_direct(who, found.room_id):
            raise Forbidden("You may not delete this alias")
        async with self._database.transaction() as tx:
            await room_directory.delete_alias(tx, checked)
        await self._take_from_canonical(who, found.room_id, checked)

    async def list_aliases(self, who: Requester, room_id: str) -> list[RoomAlias]:
        """The room's aliases on this server, for its members; for everybody where its history is world-readable."""
        async with self._database.read() as tx:
            if not who.is_admin:
                access = await self._reader.access(tx, room_id, who.user_id)
                if access.until is not None:
                    raise Forbidden("You are not in this room")
            return await room_directory.list_aliases(tx, room_id)

    def _own(self, alias: str) -> RoomAlias:
        checked = check_room_alias(alias)
        if server_of_alias(checked) != self._server_name:
            raise InvalidInput("Only aliases of this server can be changed here")
        return checked

    async def _may_direct(self, who: Requester, room_id: str) -> bool:
        """Whether the user is in the room and may set its canonical alias."""
        try:
            room = await self._writer.get_room(room_id)
        except NotFound:
            return False
        if not await self._is_joined(who, room):
            return False
        levels = await self._writer.power_levels(room)
        return levels.of_user(who.user_id) >= levels.to_send(CANONICAL_ALIAS[0], is_state=True)

    async def _is_joined(self, who: Requester, room: Room) -> bool:
        own: StateKey = ("m.room.member", who.user_id)
        member = (await self._writer.state_for(room, [own])).get(own)
        return member is not None and member.membership == "join"

    async def _take_from_canonical(self, who: Requester, room_id: RoomID, alias: RoomAlias) -> None:
        """Remove a deleted alias from the room's canonical alias event, where the user may."""
        if not await self._may_direct(who, room_id):
            return
        room = await self._writer.get_room(room_id)
        current = (await self._writer.state_for(room, [CANONICAL_ALIAS])).get(CANONICAL_ALIAS)
        if current is None:
            return
        content: JsonObject = dict(current.content)
        if content.get("alias") == alias:
            del content["alias"]
        others = content.get("alt_aliases")
        if isinstance(others, list) and alias in others:
            content["alt_aliases"] = [other for other in others if other != alias]
        if content != current.content:
            await self._writer.append(
                [
                    Draft(
                        room_id=room.room_id,
                        type=CANONICAL_ALIAS[0],
                        state_key="",
                        sender=who.user_id,
                        content=content,
                    )
                ]
            )

    # --- published rooms

    async def is_published(self, room_id: str) -> bool:
        """Whether the room is in the directory; raises M_NOT_FOUND for one that this server does not know."""
        room = await self._known(room_id)
        async with self._database.read() as tx:
            return await room_directory.is_published(tx, room.number)

    async def set_published(self, who: Requester, room_id: str, *, is_published: bool) -> None:
        """Put a room into the directory or take it off: an administrator, or who may set its canonical alias."""
        who.check_not_suspended()
        room = await self._known(room_id)
        if not who.is_admin and not await self._may_direct(who, room_id):
            raise Forbidden("You may not change the room's visibility in the directory")
        async with self._database.transaction() as tx:
            if is_published:
                await room_directory.publish(tx, room.number)
            else:
                await room_directory.unpublish(tx, room.number)

    async def set_on_network(self, who: Requester, network_id: str, room_id: str, *, is_published: bool) -> None:
        """Put a room into, or take it off, the directory of one network of an application service."""
        if who.application_service is None:
            raise Forbidden("Only application services have networks")
        if not fits(network_id) or "|" in network_id or "\0" in network_id:
            raise InvalidInput("Not a valid network ID")
        room = await self._known(room_id)
        network = f"{who.application_service}|{network_id}"
        async with self._database.transaction() as tx:
            if is_published:
                await room_directory.publish(tx, room.number, network)
            else:
                await room_directory.unpublish(tx, room.number, network)

    async def _known(self, room_id: str) -> Room:
        room = await self._writer.get_room(room_id)
        await self._writer.state_for(room, [CREATE])  # NotFound for a room that never got an event
        return room


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
