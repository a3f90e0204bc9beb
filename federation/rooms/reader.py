"""The visibility gate: the only way to read events, for clients and for servers ("Room History Visibility").

Whether a reader may see an event needs two small histories, the room's `m.room.history_visibility` and the reader's
own membership; then only versions are compared. Who is joined at every event of a page needs the second alone.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.history_visibility import HistoryVisibility, get_visibility, may_see
from federation.protocol.types import EventID, StateKey, UserID
from federation.rooms import client_events
from storage import events, room_state, rooms
from storage.database import Database, Tx
from storage.events import StoredEvent as StoredEvent
from storage.memberships import Membership, is_forgotten
from storage.room_state import TRUNK, Span
from storage.room_state import Point as Point
from storage.rooms import Room

VISIBILITY: StateKey = ("m.room.history_visibility", "")
BEGINNING, END = -(1 << 62), 1 << 62
"""Before and after every position."""
NOTHING: Mapping[int, bytes] = {}


class Access(Struct, frozen=True):
    """How a user stands to a room."""

    room: Room
    user_id: UserID
    membership: Membership | None
    until: Point | None
    """For who left or was banned: the version of the room that they saw last. None: the present."""

    @property
    def is_joined(self) -> bool:
        """Whether the user is in the room now."""
        return self.membership is Membership.JOIN


class Seen(Struct, frozen=True):
    """An event that a reader may see, and their membership at it."""

    event: StoredEvent
    membership: str | None
    shows_state: bool = True
    """Whether the room's state at the event is theirs to see, too: not where they see it as their own affair alone."""


class Spans(Struct, frozen=True):
    """One entry of the trunk through time: from each version on, a value."""

    versions: Sequence[int]
    values: Sequence[str | None]

    def at(self, version: int) -> str | None:
        """The value at a version."""
        index = bisect_right(self.versions, version) - 1
        return self.values[index] if index >= 0 else None


class RoomReader:
    """Reads rooms on behalf of users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def access(self, tx: Tx, room_id: str, user_id: UserID, *, may_peek: bool = True) -> Access:
        """How the user stands to the room; raises Forbidden where they may read nothing of it at all.

        A room that does not exist is answered the same way: nobody learns which rooms there are.
        """
        room = await rooms.find(tx, room_id)
        if room is None:
            raise Forbidden("You are not in this room")
        history = (await room_state.histories(tx, [room.number], ("m.room.member", user_id))).get(room.number, [])
        membership = history[-1].membership if history and history[-1].until is None else None
        if membership is Membership.JOIN:
            return Access(room, user_id, membership, None)
        leave = _last_leave(history)
        if leave is not None and not await is_forgotten(tx, user_id, room.number, leave.event or 0):
            return Access(room, user_id, membership, (TRUNK, leave.since))
        if may_peek and await self._is_world_readable(tx, room):
            return Access(room, user_id, membership, None)
        raise Forbidden("You are not in this room")

    async def joined(self, tx: Tx, room_id: str, user_id: UserID) -> Access:
        """As `access`, for who is in the room now; raises Forbidden for everybody else."""
        access = await self.access(tx, room_id, user_id, may_peek=False)
        if not access.is_joined:
            raise Forbidden("You are not in this room")
        return access

    async def _is_world_readable(self, tx: Tx, room: Room) -> bool:
        position = (await room_state.current(tx, room.number, [VISIBILITY])).get(VISIBILITY)
        if position is None:
            return False
        stored = (await events.by_position(tx, room.number, [position]))[position]
        return get_visibility(stored.content) == "world_readable"

    async def visible(self, tx: Tx, room: Room, user_id: UserID, stored: Sequence[StoredEvent]) -> list[Seen]:
        """Those of these events of one room that the user may see, with their membership at each."""
        return (await self.visible_in(tx, user_id, {room: stored}))[room.number]

    async def visible_in(
        self, tx: Tx, user_id: UserID, stored: Mapping[Room, Sequence[StoredEvent]]
    ) -> dict[int, list[Seen]]:
        """As `visible`, for several rooms at once: a query for all, and one more for each that hides something."""
        key: StateKey = ("m.room.member", user_id)
        histories = await room_state.histories(tx, [room.number for room in stored], key)
        return {
            room.number: await self._visible(tx, room, key, histories.get(room.number, []), of_room)
            for room, of_room in stored.items()
        }

    async def _visible(
        self, tx: Tx, room: Room, key: StateKey, history: Sequence[Span], stored: Sequence[StoredEvent]
    ) -> list[Seen]:
        user_id = key[1]
        own = _spans(history, [_word(span.membership) for span in history])
        leave = _last_leave(history)
        gone_since = END if leave is None else leave.since
        # Joined when the event came, although not by the state before it, counts as joining later.
        joined_until = max((span.until or END for span in history if span.membership is Membership.JOIN), default=-1)
        stored = [event for event in stored if event.is_readable]
        memberships = {event.position: own.at(event.version) for event in stored if event.line == TRUNK}
        visibilities: Spans | None = None
        if any(memberships.get(event.position) != "join" for event in stored):
            visibilities = (await visibility_spans(tx, room))[1]
        forked = [event for event in stored if event.line != TRUNK]
        branch_visibilities = await self._on_branches(tx, room, key, forked, memberships) if forked else {}
        seen: list[Seen] = []
        for event in stored:
            before = memberships.get(event.position)
            if before == "join" and event.trunk_version >= gone_since:
                before = "leave"  # sent by who did not know of the leave yet
            after = before
            is_own = event.state_key == user_id and event.type == "m.room.member"
            if is_own:
                value = event.content.get("membership")
                after = value if isinstance(value, str) else before
            if before == "join":
                seen.append(Seen(event, after))
                continue
            at_event = branch_visibilities.get(event.position)
            if at_event is None and visibilities is not None:
                at_event = get_visibility({"history_visibility": visibilities.at(event.version)})
            joins_later = joined_until > event.trunk_version
            if _may_see(event, at_event or "shared", (before, after), joins_later=joins_later):
                is_invite_alone = "invite" in (before, after) and after != "join" and not joins_later
                shows_state = at_event == "world_readable" or not is_invite_alone
                seen.append(Seen(event, after or "leave", shows_state=shows_state))
            elif is_own:  # a rejected invite, say: its sender has to learn of it
                seen.append(Seen(event, after or "leave", shows_state=False))
        return seen

    async def _on_branches(
        self, tx: Tx, room: Room, key: StateKey, forked: Sequence[StoredEvent], memberships: dict[int, str | None]
    ) -> dict[int, HistoryVisibility]:
        """The visibility at events off the trunk; adds the reader's membership at them to `memberships`."""
        points = {(event.line, event.version) for event in forked}
        states = await room_state.at(tx, room.number, points, [VISIBILITY, key])
        stored = await events.by_position(
            tx, room.number, {position for state in states.values() for position in state.values()}
        )
        answer: dict[int, HistoryVisibility] = {}
        for event in forked:
            state = states[event.line, event.version]
            member, visibility = state.get(key), state.get(VISIBILITY)
            value = stored[member].content.get("membership") if member is not None else None
            memberships[event.position] = value if isinstance(value, str) else None
            answer[event.position] = get_visibility(stored[visibility].content if visibility is not None else None)
        return answer

    async def told_members(self, tx: Tx, room: Room, event: StoredEvent, user_ids: Collection[UserID]) -> set[UserID]:
        """Those of these users, who are joined to the room now, who were joined when the event came and may see it."""
        keys: list[StateKey] = [("m.room.member", user_id) for user_id in user_ids]
        histories = await room_state.history(tx, room.number, keys)
        spans = {
            key[1]: _spans(history, [_word(span.membership) for span in history]) for key, history in histories.items()
        }
        were_joined = {key[1] for key in keys if spans[key[1]].at(event.trunk_version) == "join"}
        if event.line == TRUNK:
            before = {user_id: spans[user_id].at(event.version) for user_id in were_joined}
            visibility = get_visibility({"history_visibility": (await visibility_spans(tx, room))[1].at(event.version)})
        else:
            point = (event.line, event.version)
            state = (await room_state.at(tx, room.number, {point}, [VISIBILITY, *keys]))[point]
            stored = await events.by_position(tx, room.number, state.values())
            held = {key: stored[position].content for key, position in state.items() if position in stored}
            before = {user_id: held.get(("m.room.member", user_id), {}).get("membership") for user_id in were_joined}
            visibility = get_visibility(held.get(VISIBILITY))
        return {
            UserID(user_id)
            for user_id in were_joined
            if _may_see(event, visibility, (before[user_id],), joins_later=True)
        }

    async def event(self, tx: Tx, access: Access, event_id: str) -> Seen:
        """One event of the room; raises NotFound where there is none that the reader may see."""
        stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
        if stored is None or stored.room != access.room.number or stored.flags & events.UNSEEN:
            raise NotFound("There is no such event")
        seen = await self.visible(tx, access.room, access.user_id, [stored])
        if not seen:
            raise NotFound("There is no such event")
        return seen[0]

    async def event_anywhere(self, tx: Tx, event_id: str, user_id: UserID) -> Seen:
        """One event of any room; raises NotFound where there is none that the reader may see."""
        stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
        if stored is None or stored.flags & events.UNSEEN:
            raise NotFound("There is no such event")
        room = (await rooms.get_many(tx, [stored.room]))[stored.room]
        try:
            access = await self.access(tx, room.room_id, user_id)
        except Forbidden as error:
            raise NotFound("There is no such event") from error
        return await self.event(tx, access, event_id)

    async def state(self, tx: Tx, access: Access, keys: Iterable[StateKey] | None = None) -> list[StoredEvent]:
        """The room's state as the reader may see it: now, or when they left; whole, or under these keys."""
        number = access.room.number
        if access.until is not None:
            positions = (await room_state.at(tx, number, [access.until], keys))[access.until]
        elif keys is None:
            positions = await room_state.current_whole(tx, number)
        else:
            positions = await room_state.current(tx, number, keys)
        return await self._load(tx, access.room, positions)

    async def state_at(
        self, tx: Tx, room: Room, point: Point, keys: Iterable[StateKey] | None = None
    ) -> list[StoredEvent]:
        """The room's state at a point that the reader was shown an event of."""
        return await self._load(tx, room, (await room_state.at(tx, room.number, [point], keys))[point])

    async def lazy_state_at(self, tx: Tx, room: Room, point: Point, members: Collection[UserID]) -> list[StoredEvent]:
        """As `state_at` the whole state, but with the member events of these users alone."""
        line, version = point
        if line == TRUNK:
            positions = (await room_state.at_versions(tx, {room.number: version}, members=members))[room.number]
        else:
            whole = (await room_state.at(tx, room.number, [point]))[point]
            positions = {key: event for key, event in whole.items() if key[0] != "m.room.member" or key[1] in members}
        return await self._load(tx, room, positions)

    async def _load(self, tx: Tx, room: Room, positions: Mapping[StateKey, int]) -> list[StoredEvent]:
        """The events that a state holds, without those that cannot be read or stand at a wrong place."""
        stored = await events.by_position(tx, room.number, positions.values())
        return [
            stored[position]
            for key, position in positions.items()
            if position in stored and (stored[position].type, stored[position].state_key) == key
        ]

    async def members(
        self, tx: Tx, access: Access, wanted: Collection[Membership], at: int | None = None
    ) -> list[StoredEvent]:
        """The member events with one of these memberships: now, at the reader's leave, or at a place in the log.

        Of a place whose state the reader may not see they get what they may see first after it.
        """
        version = None if access.until is None else access.until[1]
        if at is not None:
            given = (await events.trunk_versions_at(tx, [access.room.number], at))[access.room.number]
            given = await self._first_visible(tx, access, given)
            version = given if version is None else min(given, version)
        found = await room_state.members_at(tx, access.room.number, version, wanted)
        keys: dict[StateKey, int] = {("m.room.member", user_id): position for user_id, _, position in found}
        return await self._load(tx, access.room, keys)

    async def _first_visible(self, tx: Tx, access: Access, version: int) -> int:
        """The version, or the one of the reader's next join where they may not see the room at the version."""
        key: StateKey = ("m.room.member", access.user_id)
        history = (await room_state.histories(tx, [access.room.number], key)).get(access.room.number, [])
        own = _spans(history, [_word(span.membership) for span in history])
        joins = [span.since for span in history if span.membership is Membership.JOIN and span.since > version]
        visibility = (await visibility_spans(tx, access.room))[1].at(version)
        if may_see(get_visibility({"history_visibility": visibility}), own.at(version), joins_later=bool(joins)):
            return version
        return joins[0] if joins else version

    async def ranges(self, tx: Tx, access: Access) -> list[tuple[int, int]]:
        """Where in the log events stand that the user may see: positions, each range without its first one.

        What stands elsewhere they may not see; what stands there, `visible` decides. For rooms whose graph forked
        this is a guess from the trunk: an event of a branch may be left out.
        """
        return (await self.ranges_in(tx, access.user_id, [access.room.number]))[access.room.number]

    async def ranges_in(self, tx: Tx, user_id: UserID, rooms: Collection[int]) -> dict[int, list[tuple[int, int]]]:
        """As `ranges`, for several rooms at once."""
        histories = await room_state.histories(tx, rooms, ("m.room.member", user_id))
        visibilities = await visibility_spans_of(tx, rooms)
        spans = {room: (*histories.get(room, ()), *visibilities[room][0]) for room in rooms}
        changes = {span.event for of_room in spans.values() for span in of_room if span.event is not None}
        known = await events.trunk_versions_of(tx, rooms, changes)
        return {room: _ranges(histories.get(room, ()), visibilities[room], known) for room in rooms}

    async def invites_at(self, tx: Tx, positions: Collection[int]) -> dict[int, tuple[UserID, bytes]]:
        """Who sent these events, and their client form; meant for the reader's own invites."""
        stored = await events.by_positions(tx, positions) if positions else {}
        await client_events.prepare(tx, list(stored.values()), is_state=True)
        return {
            position: (event.sender, client_events.finish(event, membership=None, device=None))
            for position, event in stored.items()
            if client_events.is_presentable(event)
        }

    async def render(
        self,
        tx: Tx,
        seen: Sequence[Seen],
        device: int | None = None,
        bundles: Mapping[int, bytes] = NOTHING,
    ) -> list[bytes]:
        """The client form of events for one reader, with what is bundled with them (`aggregations.py`)."""
        await client_events.prepare(tx, [each.event for each in seen])
        return [
            client_events.finish(
                each.event, membership=each.membership, device=device, relations=bundles.get(each.event.position)
            )
            for each in seen
            if client_events.is_presentable(each.event)
        ]

    async def render_state(self, tx: Tx, stored: Sequence[StoredEvent], device: int | None = None) -> list[bytes]:
        """The client form of state that stands outside a timeline."""
        await client_events.prepare(tx, stored, is_state=True)
        return client_events.finish_state(stored, device=device)


async def visibility_spans(tx: Tx, room: Room) -> tuple[Sequence[Span], Spans]:
    """The history of the room's `m.room.history_visibility`: as stored, and what it says."""
    return (await visibility_spans_of(tx, [room.number]))[room.number]


async def visibility_spans_of(tx: Tx, rooms: Collection[int]) -> dict[int, tuple[Sequence[Span], Spans]]:
    """As `visibility_spans`, for several rooms at once."""
    histories = await room_state.histories(tx, rooms, VISIBILITY)
    wanted = {span.event for history in histories.values() for span in history if span.event is not None}
    stored = await events.by_positions(tx, wanted) if wanted else {}
    found: dict[int, tuple[Sequence[Span], Spans]] = {}
    for room in rooms:
        history = histories.get(room, [])
        contents = [None if span.event not in stored else stored[span.event].content for span in history]
        found[room] = history, _spans(history, [get_visibility(content) for content in contents])
    return found


def _ranges(
    history: Sequence[Span], visibilities: tuple[Sequence[Span], Spans], known: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Given a user's memberships, what the room's visibility was, and the versions after the events of both."""
    own = _spans(history, [_word(span.membership) for span in history])
    joined_last = max((span.since for span in history if span.membership is Membership.JOIN), default=-1)
    positions = {
        span.since: span.event for span in (*history, *visibilities[0]) if span.event is not None and span.since > 0
    }
    found: list[tuple[int, int]] = []
    low, is_open = BEGINNING, True  # before the first change: history that was fetched, and the room's beginning
    for version in sorted(positions):
        sees = may_see(
            get_visibility({"history_visibility": visibilities[1].at(version)}),
            own.at(version),
            joins_later=joined_last > version,
        )
        position = positions[version]
        if is_open and not sees and known.get(position) == version:
            found.append((low, position))
            is_open = False
        elif sees and not is_open:
            low, is_open = position - 1, True
    if is_open:
        found.append((low, END))
    alone = [
        (span.event - 1, span.event)
        for span in history
        if span.event is not None and not any(low < span.event <= high for low, high in found)
    ]
    return sorted({*found, *alone})


def _may_see(
    event: StoredEvent,
    visibility: HistoryVisibility,
    memberships: Collection[str | None],
    *,
    joins_later: bool,
) -> bool:
    visibilities = {visibility}
    if event.type == "m.room.history_visibility" and event.state_key == "":
        visibilities.add(get_visibility(event.content))
    return any(
        may_see(each, membership, joins_later=joins_later) for each in visibilities for membership in set(memberships)
    )


def _spans(history: Sequence[Span], values: Sequence[str | None]) -> Spans:
    """The values through time, with None where nothing followed an entry that was taken away."""
    versions: list[int] = []
    known: list[str | None] = []
    for index, (span, value) in enumerate(zip(history, values, strict=True)):
        versions.append(span.since)
        known.append(value)
        follows = index + 1 < len(history) and history[index + 1].since == span.until
        if span.until is not None and not follows:
            versions.append(span.until)
            known.append(None)
    return Spans(versions, known)


def _last_leave(history: Sequence[Span]) -> Span | None:
    """What ended the user's last time in the room; None for who is in it or never was."""
    for index in range(len(history) - 1, -1, -1):
        if history[index].membership is Membership.JOIN:
            return history[index + 1] if index + 1 < len(history) else None
    return None


def _word(membership: Membership | None) -> str | None:
    return None if membership is None else membership.text


def senders(seen: Iterable[Seen]) -> set[UserID]:
    """Who sent these events."""
    return {each.event.sender for each in seen}


def by_key(stored: Iterable[StoredEvent]) -> Mapping[StateKey, StoredEvent]:
    """State events by what they are current for."""
    return {(event.type, event.state_key): event for event in stored if event.state_key is not None}
