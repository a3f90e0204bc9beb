"""The visibility gate: the only way to read events, for clients and for servers ("Room History Visibility").

Whether a reader may see an event needs two small histories, the room's `m.room.history_visibility` and the reader's
own membership; then only versions are compared. Who is joined at every event of a page needs the second alone.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.history_visibility import HistoryVisibility, get_visibility, may_see
from federation.protocol.types import EventID, StateKey, UserID
from federation.rooms import client_events
from storage import events, room_state, rooms
from storage.database import Database, Tx
from storage.events import StoredEvent
from storage.memberships import Membership
from storage.room_state import TRUNK, Point, Span
from storage.rooms import Room

VISIBILITY: StateKey = ("m.room.history_visibility", "")
MAX_SCANNED = 2_000
"""Events looked at for one page; one that finds less ends early, with a token to go on from."""


@dataclass(frozen=True, slots=True)
class Access:
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


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that a reader may see, and their membership at it."""

    event: StoredEvent
    membership: str | None


@dataclass(frozen=True, slots=True)
class _Spans:
    """One entry of the trunk through time: from each version on, a value."""

    versions: Sequence[int]
    values: Sequence[str | None]

    def at(self, version: int) -> str | None:
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
        key: StateKey = ("m.room.member", user_id)
        history = (await room_state.history(tx, room.number, [key]))[key]
        membership = history[-1].membership if history and history[-1].until is None else None
        if membership is Membership.JOIN:
            return Access(room, user_id, membership, None)
        if membership in (Membership.LEAVE, Membership.BAN) and any(
            span.membership is Membership.JOIN for span in history
        ):
            return Access(room, user_id, membership, (TRUNK, history[-1].since))
        if may_peek and await self._is_world_readable(tx, room):
            return Access(room, user_id, membership, None)
        raise Forbidden("You are not in this room")

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
        joined_last = max((span.since for span in history if span.membership is Membership.JOIN), default=-1)
        memberships = {event.position: own.at(event.version) for event in stored if event.line == TRUNK}
        visibilities: _Spans | None = None
        if any(memberships.get(event.position) != "join" for event in stored):
            visibilities = await self._visibilities(tx, room)
        forked = [event for event in stored if event.line != TRUNK]
        branch_visibilities = await self._on_branches(tx, room, key, forked, memberships) if forked else {}
        seen: list[Seen] = []
        for event in stored:
            before = memberships.get(event.position)
            after = before
            is_own = event.state_key == user_id and event.type == "m.room.member"
            if is_own:
                value = event.content.get("membership")
                after = value if isinstance(value, str) else before
            if before == "join" or is_own:  # a rejected invite, too: its sender has to learn of it
                seen.append(Seen(event, after))
                continue
            at_event = branch_visibilities.get(event.position)
            if at_event is None and visibilities is not None:
                at_event = get_visibility({"history_visibility": visibilities.at(event.version)})
            if _may_see(event, at_event or "shared", (before, after), joins_later=joined_last > event.trunk_version):
                seen.append(Seen(event, after or "leave"))
        return seen

    async def _visibilities(self, tx: Tx, room: Room) -> _Spans:
        history = (await room_state.history(tx, room.number, [VISIBILITY]))[VISIBILITY]
        stored = await events.by_position(tx, room.number, [span.event for span in history if span.event is not None])
        values = [get_visibility(None if span.event is None else stored[span.event].content) for span in history]
        return _spans(history, values)

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

    async def event(self, tx: Tx, access: Access, event_id: str) -> Seen:
        """One event of the room; raises NotFound where there is none that the reader may see."""
        stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
        if stored is None or stored.room != access.room.number or stored.flags & events.HIDDEN:
            raise NotFound("There is no such event")
        seen = await self.visible(tx, access.room, access.user_id, [stored])
        if not seen:
            raise NotFound("There is no such event")
        return seen[0]

    async def state(self, tx: Tx, access: Access, keys: Iterable[StateKey] | None = None) -> list[StoredEvent]:
        """The room's state as the reader may see it: now, or when they left; whole, or under these keys."""
        number = access.room.number
        if access.until is not None:
            positions = (await room_state.at(tx, number, [access.until], keys))[access.until]
        elif keys is None:
            positions = await room_state.current_whole(tx, number)
        else:
            positions = await room_state.current(tx, number, keys)
        stored = await events.by_position(tx, number, positions.values())
        return [stored[position] for position in positions.values()]

    async def state_at(
        self, tx: Tx, room: Room, point: Point, keys: Iterable[StateKey] | None = None
    ) -> list[StoredEvent]:
        """The room's state at a point that the reader was shown an event of."""
        positions = (await room_state.at(tx, room.number, [point], keys))[point]
        stored = await events.by_position(tx, room.number, positions.values())
        return [stored[position] for position in positions.values()]

    async def render(self, tx: Tx, seen: Sequence[Seen], device: int | None = None) -> list[bytes]:
        """The client form of events for one reader."""
        await client_events.prepare(tx, [each.event for each in seen])
        return [client_events.finish(each.event, membership=each.membership, device=device) for each in seen]

    async def render_state(self, tx: Tx, stored: Sequence[StoredEvent], device: int | None = None) -> list[bytes]:
        """The client form of state that stands outside a timeline."""
        await client_events.prepare(tx, stored, is_state=True)
        return [client_events.finish(event, membership=None, device=device) for event in stored]


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


def _spans(history: Sequence[Span], values: Sequence[str | None]) -> _Spans:
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
    return _Spans(versions, known)


def _word(membership: Membership | None) -> str | None:
    return None if membership is None else membership.text


def senders(seen: Iterable[Seen]) -> set[UserID]:
    """Who sent these events."""
    return {each.event.sender for each in seen}


def by_key(stored: Iterable[StoredEvent]) -> Mapping[StateKey, StoredEvent]:
    """State events by what they are current for."""
    return {(event.type, event.state_key): event for event in stored if event.state_key is not None}
