"""Which servers are in which room, version after version, without asking for each event.

What is known of a room is true at one of its versions and moves along with the log. A member who leaves may have been
the last of their server: that is asked for then, at that very version, so that a question about an old part of the
log is answered from the room as it was.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from federation.protocol.identifiers import server_name_of
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import ServerName, UserID
from storage import outbox
from storage.database import Database
from storage.figures import Figures, Lookups
from storage.memberships import Membership

MAX_ROOMS = 20_000
"""Rooms that are remembered."""

_ACL_TYPE = "m.room.server_acl"


class StateChange(Protocol):
    """An entry of a room's current state that changed."""

    type: str
    state_key: str
    since: int
    membership: Membership | None


class _Known(Struct):
    version: int
    servers: set[ServerName]
    acl: ServerACL | None


class RoomServers:
    """The servers of rooms."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rooms: OrderedDict[int, _Known] = OrderedDict()
        self._lookups = Lookups("servers_of_rooms")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._rooms))

    def forget(self, room: int) -> None:
        """More is known of the room than was."""
        self._rooms.pop(room, None)

    def forget_all(self) -> None:
        """Changes were missed."""
        self._rooms.clear()

    def are_only(self, server: ServerName, room: int, version: int) -> bool:
        """Whether this server is known to be alone in the room at a version that is the newest that was told of it."""
        known = self._rooms.get(room)
        return known is not None and known.version == version and known.servers <= {server}

    async def between(
        self, room: int, low: int, high: int, changes: Sequence[StateChange]
    ) -> tuple[Collection[ServerName], Collection[ServerName]]:
        """The servers in the room at version `low`, and those at any version from there to `high`.

        `changes` are what makes `high` out of `low`. Denied servers are not among the latter.
        """
        known = self._rooms.get(room)
        self._lookups.note(is_hit=known is not None and known.version >= low)
        if known is None or known.version < low:
            known = await self._load(room, low)
        if known.version != low:  # an old part of the log
            spans = [(room, low, low), (room, low, high)]
            async with self._database.read() as tx:
                found = await outbox.servers_between(tx, spans)
                acl = (await outbox.server_acls(tx, [(room, high)]))[room, high]
            await self.advance(room, changes)
            return found[spans[0]], _allowed(found[spans[1]], None if acl is None else ServerACL(acl))
        if not changes:
            return known.servers, _allowed(known.servers, known.acl)
        before = frozenset(known.servers)
        await self.advance(room, changes)
        return before, _allowed(before | known.servers, known.acl)

    async def advance(self, room: int, changes: Iterable[StateChange]) -> None:
        """The room's state changed."""
        known = self._rooms.get(room)
        if known is None:
            return
        changes = [change for change in changes if change.since > known.version]
        if changes and min(change.since for change in changes) > known.version + 1:
            del self._rooms[room]  # not all of its changes were told
            return
        version = known.version
        doubtful: set[ServerName] = set()
        has_new_acl = False
        for change in changes:
            version = max(version, change.since)
            has_new_acl = has_new_acl or change.type == _ACL_TYPE
            if change.type == "m.room.member" and ":" in change.state_key:
                server = server_name_of(UserID(change.state_key))
                if change.membership is Membership.JOIN:
                    known.servers.add(server)
                elif server in known.servers:
                    doubtful.add(server)
        if doubtful or has_new_acl:
            async with self._database.read() as tx:
                for server in doubtful:
                    if not await outbox.has_member(tx, room, server, version):
                        known.servers.discard(server)
                if has_new_acl:
                    acl = (await outbox.server_acls(tx, [(room, version)]))[room, version]
                    known.acl = None if acl is None else ServerACL(acl)
        known.version = version

    async def now(self, rooms: Collection[int], *, denied: bool = True) -> set[ServerName]:
        """The servers that are in one of these rooms at present, or nearly so; with `denied` also those that its access
        control list denies, who share the room's users with us all the same."""
        found = await self._all_now(rooms)
        return {
            server for known in found for server in (known.servers if denied else _allowed(known.servers, known.acl))
        }

    async def _all_now(self, rooms: Collection[int]) -> list[_Known]:
        missing = [room for room in rooms if room not in self._rooms]
        answer = [self._rooms[room] for room in rooms if room in self._rooms]
        if missing:
            async with self._database.read() as tx:
                found = await outbox.servers_now(tx, missing)
                acls = await outbox.server_acls(tx, [(room, version) for room, (version, _) in found.items()])
            for room, (version, in_room) in found.items():
                acl = acls[room, version]
                answer.append(self._keep(room, _Known(version, set(in_room), None if acl is None else ServerACL(acl))))
        return answer

    async def _load(self, room: int, version: int) -> _Known:
        if version == 0:  # before its first event
            return self._keep(room, _Known(0, set(), None))
        span = (room, version, version)
        async with self._database.read() as tx:
            servers = (await outbox.servers_between(tx, [span]))[span]
            acl = (await outbox.server_acls(tx, [(room, version)]))[room, version]
        return self._keep(room, _Known(version, set(servers), None if acl is None else ServerACL(acl)))

    def _keep(self, room: int, known: _Known) -> _Known:
        self._rooms[room] = known
        if len(self._rooms) > MAX_ROOMS:
            self._rooms.popitem(last=False)
        return known


def _allowed(servers: Collection[ServerName], acl: ServerACL | None) -> Collection[ServerName]:
    return servers if acl is None else [server for server in servers if acl.allows(server)]
