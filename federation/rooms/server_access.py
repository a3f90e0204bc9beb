"""The visibility gate's second face: what another server may read of a room.

A server takes part in a room while one of its users is joined and the room's `m.room.server_acl` allows it. It may see
an event that any of its users may see ("Room History Visibility"). Who takes part gets the other events redacted, so
that it can follow the graph; nobody else gets them at all.

Redacted for every server is what was redacted, and what a user of ours wrote whose account was erased. Rejected
events are given to nobody, soft-failed ones as if they had passed, and outliers, whose place in the history nobody
here knows, only to servers in the room.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import orjson
from msgspec import Struct, field

from federation.protocol import history_visibility
from federation.protocol.errors import Forbidden, InvalidEvent
from federation.protocol.history_visibility import HistoryVisibility, get_visibility
from federation.protocol.redaction import redact
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import ServerName, StateKey
from federation.rooms.heads import to_pdu
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.reader import END, VISIBILITY, visibility_spans
from storage import erasure, events, memberships, room_state, rooms
from storage.append_events import RoomEvents
from storage.database import Tx
from storage.events import Flag, StoredEvent
from storage.figures import Figures, Lookups
from storage.log_entries import Change
from storage.memberships import Membership
from storage.room_completeness import RoomCompleteness
from storage.room_state import TRUNK, Span
from storage.rooms import Room

MAX_REMEMBERED = 50_000
"""Servers and rooms of which it is known whether they are in them."""
SERVER_ACL: StateKey = ("m.room.server_acl", "")


class _Stays(Struct, frozen=True):
    """Versions of the trunk between which some user of a server had a membership, joined where they overlap."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, spans: Collection[Span], membership: Membership) -> "_Stays":
        stays = cls()
        for span in sorted((each for each in spans if each.membership is membership), key=lambda each: each.since):
            until = END if span.until is None else span.until
            if stays.ends and span.since <= stays.ends[-1]:
                stays.ends[-1] = max(stays.ends[-1], until)
            else:
                stays.starts.append(span.since)
                stays.ends.append(until)
        return stays

    def at(self, version: int) -> bool:
        index = bisect_right(self.starts, version) - 1
        return index >= 0 and version < self.ends[index]

    @property
    def last(self) -> int:
        return self.ends[-1] if self.ends else -1


class _Server(Struct, frozen=True):
    """How a server stands to a room through time."""

    name: ServerName
    is_in_room: bool
    joins: _Stays
    """Left out, as the invites, where all that matters is that the server is in the room now."""
    invites: _Stays

    def joined_after(self, version: int) -> bool:
        return self.is_in_room or self.joins.last > version

    def memberships_at(self, version: int) -> set[object]:
        found: set[object] = set()
        if self.joins.at(version):
            found.add("join")
        if self.invites.at(version):
            found.add("invite")
        return found


class ServerAccess:
    """Decides what other servers may read. It remembers who is in which room: a view of the log."""

    def __init__(self, incomplete: IncompleteRooms) -> None:
        self._incomplete = incomplete
        self._present: OrderedDict[tuple[int, str], bool] = OrderedDict()
        self._changes = 0
        self._lookups = Lookups("servers_in_rooms")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._present))

    def apply(self, _position: int, change: Change) -> None:
        """A view of the log: forget of a server what changes with its members."""
        if isinstance(change, RoomCompleteness):
            self._changes += 1
            for key in [key for key in self._present if key[0] == change.room]:
                del self._present[key]
        if not isinstance(change, RoomEvents):
            return
        for each in change.trunk:
            if each.type == "m.room.member":
                self._changes += 1
                self._present.pop((change.room.number, each.state_key.partition(":")[2]), None)

    async def check_in_room(self, tx: Tx, room_id: str, origin: ServerName) -> Room:
        """The room, if the server takes part in it; raises Forbidden otherwise.

        A room that does not exist is answered the same way: nobody learns which rooms there are. Raises BeingJoined
        where it may be by a member who is still to come.
        """
        room = await rooms.find(tx, room_id)
        if room is None:
            raise Forbidden("Your server is not in this room")
        await self.check_acl(tx, room, origin)
        if not await self.is_in_room(tx, room, origin):
            raise Forbidden("Your server is not in this room")
        return room

    async def is_in_room(self, tx: Tx, room: Room, server_name: ServerName) -> bool:
        """Whether a user of the server is joined now."""
        key = (room.number, server_name)
        known = self._present.get(key)
        self._lookups.note(is_hit=known is not None)
        if known is None:
            changes = self._changes
            known = bool(await memberships.local_members(tx, room.number, server_name, limit=1))
            if changes == self._changes:  # else what was read may be older than what was forgotten
                self._present[key] = known
                while len(self._present) > MAX_REMEMBERED:
                    self._present.popitem(last=False)
        return known

    async def check_acl(self, tx: Tx, room: Room, origin: ServerName) -> None:
        """Raise Forbidden where the room's access control list shuts the server out, BeingJoined where nothing can be
        said of who is in the room."""
        self._incomplete.check(room.number)
        if not await self.is_allowed(tx, room, origin):
            raise Forbidden("Your server is not allowed to take part in this room")

    async def is_allowed(self, tx: Tx, room: Room, server_name: ServerName) -> bool:
        """Whether the room's access control list lets the server take part."""
        stored = (await room_state.current_events(tx, room.number, [SERVER_ACL])).get(SERVER_ACL)
        return stored is None or ServerACL(stored.content).allows(server_name)

    async def visible_to_server(
        self, tx: Tx, room: Room, origin: ServerName, stored: Sequence[StoredEvent]
    ) -> list[bytes]:
        """These events of the room as PDUs, for a server that takes part in it: redacted where it may not see them.

        Rejected events are left out, and rows that hold no event.
        """
        given = [event for event in stored if is_given(event)]
        seen = await self._seen(tx, room, origin, given)
        return await render(tx, room, given, hidden=[event.position for event in given if event.position not in seen])

    async def seen_by(self, tx: Tx, room: Room, origin: ServerName, stored: Sequence[StoredEvent]) -> list[StoredEvent]:
        """Those of these events of the room that the server may see in full, whether it takes part in it or not."""
        given = [event for event in stored if is_given(event)]
        seen = await self._seen(tx, room, origin, given)
        return [event for event in given if event.position in seen]

    async def _seen(self, tx: Tx, room: Room, origin: ServerName, stored: Sequence[StoredEvent]) -> set[int]:
        """Where those events stand that some user of the server may see."""
        is_in_room = await self.is_in_room(tx, room, origin)
        seen = {event.position for event in stored if is_in_room and event.flags & Flag.OUTLIER}
        placed = [event for event in stored if not event.flags & Flag.OUTLIER]
        visibilities = await _visibilities_at(tx, room, placed)
        needs_stays = not is_in_room or not {"shared", "world_readable"}.issuperset(visibilities.values())
        server = _Server(origin, is_in_room, _Stays(), _Stays())
        on_branches: Mapping[int, Collection[object]] = {}
        if needs_stays:
            spans = await room_state.spans_of_server(tx, room.number, origin)
            server = _Server(origin, is_in_room, _Stays.of(spans, Membership.JOIN), _Stays.of(spans, Membership.INVITE))
            on_branches = await _memberships_on_branches(tx, room, origin, placed)
        for event in placed:
            there = on_branches.get(event.position) if event.line != TRUNK else None
            if _may_see(event, room, server, visibilities[event.position], there):
                seen.add(event.position)
        return seen


def is_given(event: StoredEvent) -> bool:
    """Whether other servers are given the event at all, whole or redacted."""
    return not event.flags & Flag.REJECTED and event.is_readable


async def render(
    tx: Tx, room: Room, stored: Sequence[StoredEvent], *, hidden: Collection[int] = (), erases: bool = True
) -> list[bytes]:
    """Events of the room as PDUs: the bytes that were signed, or what redaction leaves of them.

    Those at the `hidden` positions are redacted and, with `erases`, those of users whose accounts were erased: not so
    in a room's state, which keeps its name.
    """
    erased = await erasure.erased_among(tx, {event.sender for event in stored}) if erases else set()
    concealed = frozenset(hidden)
    return [
        orjson.dumps(redact(event.json, room.rules))
        if event.redacted_by is not None or event.sender in erased or event.position in concealed
        else event.canonical
        for event in stored
    ]


def _may_see(
    event: StoredEvent,
    room: Room,
    server: _Server,
    visibility: HistoryVisibility,
    on_branch: Collection[object] | None,
) -> bool:
    try:
        pdu = to_pdu(event, room)
    except InvalidEvent:
        return False
    before = server.memberships_at(event.version) if on_branch is None else on_branch
    return history_visibility.may_server_see(
        pdu, server.name, visibility, before, joins_later=server.joined_after(event.trunk_version)
    )


async def _visibilities_at(tx: Tx, room: Room, stored: Sequence[StoredEvent]) -> dict[int, HistoryVisibility]:
    """The room's visibility before each event."""
    found: dict[int, HistoryVisibility] = {}
    if any(event.line == TRUNK for event in stored):
        spans = (await visibility_spans(tx, room))[1]
        for event in stored:
            if event.line == TRUNK:
                found[event.position] = get_visibility({"history_visibility": spans.at(event.version)})
    forked = [event for event in stored if event.line != TRUNK]
    if forked:
        points = {(event.line, event.version) for event in forked}
        states = await room_state.at(tx, room.number, points, [VISIBILITY])
        positions = {position for state in states.values() for position in state.values()}
        held = await events.by_position(tx, room.number, positions) if positions else {}
        for event in forked:
            entry = held.get(states[event.line, event.version].get(VISIBILITY, 0))
            found[event.position] = get_visibility(None if entry is None else entry.content)
    return found


async def _memberships_on_branches(
    tx: Tx, room: Room, origin: ServerName, stored: Sequence[StoredEvent]
) -> dict[int, set[object]]:
    """The memberships of the server's users before those of the events that stand off the trunk."""
    forked = [event for event in stored if event.line != TRUNK]
    if not forked:
        return {}
    users = await room_state.users_of_server(tx, room.number, origin)
    keys: list[StateKey] = [("m.room.member", user_id) for user_id in users]
    points = {(event.line, event.version) for event in forked}
    states = await room_state.at(tx, room.number, points, keys) if keys else {}
    held = await events.by_position(
        tx, room.number, {position for state in states.values() for position in state.values()}
    )
    at_points: dict[tuple[int, int], set[object]] = {
        point: {_hashable(held[position].content.get("membership")) for position in state.values() if position in held}
        for point, state in states.items()
    }
    return {event.position: at_points.get((event.line, event.version), set()) for event in forked}


def _hashable(value: object) -> object:
    return value if isinstance(value, str) else None
