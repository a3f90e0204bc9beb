"""What is new in rooms for one reader: the timelines and the state changes that `/sync` is made of.

Within the tail's window that costs no query; before it, a fixed number of queries for all rooms together. Only events
of rooms that the reader is joined to throughout are taken without asking the visibility gate.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from federation.protocol.types import StateKey, UserID
from federation.rooms import client_events
from federation.rooms.reader import RoomReader, Seen
from storage import events, room_state, rooms
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.events import StoredEvent, TrunkChange
from storage.memberships import Membership
from storage.room_state import TRUNK
from storage.rooms import Room
from storage.tail import Tail

BEGINNING = -(1 << 62)
"""Before every position, those of fetched history included."""


class Wanted(Protocol):
    """Which events a reader asked for (`homeserver/services/sync_filter.py`)."""

    @property
    def is_trivial(self) -> bool:
        """Whether every event passes."""

    def allows_event(self, event_type: str, sender: str | None, content: object) -> bool:
        """Whether an event passes."""


@dataclass(frozen=True, slots=True)
class Span:
    """What part of the rooms' history is asked for: events after `since` up to `upto`, the newest `limit` of them."""

    since: int
    upto: int
    limit: int


@dataclass(slots=True, kw_only=True)
class RoomNews:
    """What a reader has to be told of a room."""

    room: Room
    timeline: list[Seen] = field(default_factory=list)
    is_limited: bool = False
    before: int
    """The position just before the timeline."""
    state: list[StoredEvent] = field(default_factory=list)
    """State that changed between `since` and the timeline, and what changed later without standing in the timeline."""
    state_after: list[StoredEvent] = field(default_factory=list)
    """State that changed between `since` and the timeline's end."""
    members: list[tuple[UserID, Membership]] = field(default_factory=list)
    """Whose membership changed, to what."""


@dataclass(slots=True)
class _Delta:
    """What changed in a room's current state: by key, the event's position."""

    before: dict[StateKey, int] = field(default_factory=dict)
    """Up to the timeline's start."""
    whole: dict[StateKey, int] = field(default_factory=dict)


class Timelines:
    """Reads what is new in rooms."""

    def __init__(self, database: Database, tail: Tail, reader: RoomReader) -> None:
        self._database = database
        self._tail = tail
        self._reader = reader

    # --- rooms that the reader was and is joined to

    async def continuing(
        self, wanted_rooms: Collection[int], span: Span, wanted: Wanted, ignored: Collection[UserID]
    ) -> dict[int, RoomNews]:
        """News of rooms that the reader was joined to from `span.since` on without a break."""
        if span.since >= self._tail.floor:
            return await self._from_window(wanted_rooms, span, wanted, ignored)
        async with self._database.read() as tx:
            return await self._from_database(tx, wanted_rooms, span, wanted, ignored)

    async def _from_window(
        self, wanted_rooms: Collection[int], span: Span, wanted: Wanted, ignored: Collection[UserID]
    ) -> dict[int, RoomNews]:
        found: dict[int, RoomNews] = {}
        deltas: dict[int, _Delta] = {}
        held: dict[int, StoredEvent] = {}
        for number in wanted_rooms:
            changes = [
                change
                for position, change in self._tail.in_room(number, span.since)
                if isinstance(change, RoomEvents) and position <= span.upto
            ]
            if not changes:
                continue
            stored = [event for change in changes for event in change.visible if event.position > span.since]
            news = _news(changes[0].room, stored, span, wanted, ignored)
            found[number] = news
            trunk = [entry for change in changes for entry in change.trunk]
            if trunk:
                held.update({event.position: event for change in changes for event in change.stored})
                deltas[number] = _window_delta(trunk, news)
                news.members = [
                    (UserID(entry.state_key), entry.membership)
                    for entry in trunk
                    if entry.membership is not None and entry.type == "m.room.member"
                ]
        if deltas:
            await self._fill_state(found, deltas, held)
        return found

    async def _fill_state(
        self, found: Mapping[int, RoomNews], deltas: Mapping[int, _Delta], held: dict[int, StoredEvent]
    ) -> None:
        missing = {
            position
            for delta in deltas.values()
            for position in (*delta.before.values(), *delta.whole.values())
            if position not in held
        }
        if missing:
            async with self._database.read() as tx:
                held.update(await events.by_positions(tx, missing))
        for number, delta in deltas.items():
            _set_state(found[number], delta, held)

    async def _from_database(
        self, tx: Tx, wanted_rooms: Collection[int], span: Span, wanted: Wanted, ignored: Collection[UserID]
    ) -> dict[int, RoomNews]:
        changed = await events.rooms_changed(tx, wanted_rooms, span.since)
        if not changed:
            return {}
        known = await rooms.get_many(tx, changed)
        fetched = await events.newest_per_room(
            tx, changed, after=span.since, upto=span.upto, limit=_fetch_limit(span.limit, wanted)
        )
        found = {number: _news(known[number], fetched[number], span, wanted, ignored) for number in changed}
        for number, news in found.items():
            news.is_limited = news.is_limited or len(fetched[number]) >= _fetch_limit(span.limit, wanted)
        then = await events.trunk_versions_at(tx, changed, span.since)
        now = await events.trunk_versions_at(tx, changed, span.upto)
        moved = {number for number in changed if now[number] > then[number]}
        if not moved:
            return found
        starts = {number: _version_at_start(found[number], now[number]) for number in moved}
        before = await room_state.changed_between(tx, {room: (then[room], starts[room]) for room in moved})
        whole = await room_state.changed_between(tx, {room: (then[room], now[room]) for room in moved})
        deltas = {
            room: _Delta(
                {key: event for key, event in before[room].items() if event is not None},
                {key: event for key, event in whole[room].items() if event is not None},
            )
            for room in moved
        }
        positions = {event for delta in deltas.values() for event in (*delta.before.values(), *delta.whole.values())}
        held = await events.by_positions(tx, positions)
        for number, delta in deltas.items():
            _set_state(found[number], delta, held)
            found[number].members = [
                (UserID(key[1]), membership)
                for key, event in delta.whole.items()
                if key[0] == "m.room.member" and (membership := Membership.of(held[event].content.get("membership")))
            ]
        return found

    # --- rooms that are new to the reader, or that they left

    async def fresh(
        self,
        tx: Tx,
        user_id: UserID,
        wanted_rooms: Collection[Room],
        span: Span,
        wanted: Wanted,
        *,
        lazy_members: bool,
    ) -> dict[int, RoomNews]:
        """Rooms as for somebody who knows nothing of them: the newest events and the whole state.

        With `lazy_members` the state holds the member events of the timeline's senders and of the reader alone.
        """
        numbers = [room.number for room in wanted_rooms]
        fetched = await events.newest_per_room(
            tx, numbers, after=span.since, upto=span.upto, limit=_fetch_limit(span.limit, wanted)
        )
        seen = await self._reader.visible_in(tx, user_id, {room: fetched[room.number] for room in wanted_rooms})
        now = await events.trunk_versions_at(tx, numbers, span.upto)
        found: dict[int, RoomNews] = {}
        starts: dict[int, int] = {}
        for room in wanted_rooms:
            visible = seen[room.number]
            news = _cut(room, visible, span, wanted)
            news.is_limited = news.is_limited or len(fetched[room.number]) >= _fetch_limit(span.limit, wanted)
            if not visible:
                news.before = span.upto
            found[room.number] = news
            starts[room.number] = _version_at_start(news, now[room.number])
        members = None
        if lazy_members:
            members = {user_id, *(each.event.sender for news in found.values() for each in news.timeline)}
        before = await room_state.at_versions(tx, starts, members=members)
        moved = {room: version for room, version in now.items() if version != starts[room]}
        whole = {**before, **(await room_state.at_versions(tx, moved, members=members) if moved else {})}
        held = await events.by_positions(
            tx, {position for states in (before, whole) for state in states.values() for position in state.values()}
        )
        for number, news in found.items():
            senders = {user_id, *(each.event.sender for each in news.timeline)} if lazy_members else None
            news.state = _select(before[number], held, senders)
            news.state_after = _select(whole[number], held, senders)
        return found

    async def left(self, tx: Tx, user_id: UserID, room: Room, span: Span, wanted: Wanted) -> RoomNews:
        """What somebody who left may still see of a room, up to their leave (`span.upto`)."""
        fetched = (
            await events.newest_per_room(
                tx, [room.number], after=span.since, upto=span.upto, limit=_fetch_limit(span.limit, wanted)
            )
        )[room.number]
        seen = await self._reader.visible(tx, room, user_id, fetched)
        news = _cut(room, seen, span, wanted)
        news.is_limited = news.is_limited or len(fetched) >= _fetch_limit(span.limit, wanted)
        return news

    # --- members

    async def members(self, tx: Tx, room: int, user_ids: Collection[UserID]) -> list[StoredEvent]:
        """The current member events of these users."""
        keys: list[StateKey] = [("m.room.member", user_id) for user_id in user_ids]
        positions = await room_state.current(tx, room, keys)
        stored = await events.by_position(tx, room, positions.values())
        return list(stored.values())

    async def current(self, tx: Tx, room: int, keys: Sequence[StateKey]) -> list[StoredEvent]:
        """Current state that everybody who is invited may see."""
        positions = await room_state.current(tx, room, keys)
        stored = await events.by_position(tx, room, positions.values())
        return [stored[position] for position in positions.values()]

    async def heroes_of_many(self, tx: Tx, numbers: Sequence[int], user_id: UserID) -> dict[int, list[UserID]]:
        """Who names each room that has no name of its own: five members besides the reader, else five who left."""
        named = await room_state.current_of_many(
            tx, numbers, keys=(("m.room.name", ""), ("m.room.canonical_alias", ""))
        )
        nameless = [room for room in numbers if not named[room]]
        if not nameless:
            return {}
        present = (Membership.JOIN, Membership.INVITE)
        heroes = await room_state.first_members(tx, nameless, present, besides=user_id, limit=5)
        alone = [room for room in nameless if not heroes[room]]
        if alone:
            gone = (Membership.LEAVE, Membership.BAN)
            heroes |= await room_state.first_members(tx, alone, gone, besides=user_id, limit=5)
        return heroes

    # --- the client's form

    async def render(self, shown: Sequence[Seen], device: int | None) -> list[bytes]:
        """Events for one reader; asks the database only for what replaced or redacted something."""
        hard = []
        for seen in shown:
            event = seen.event
            if event.client is None:
                room = rooms.known_numbers([event.room]).get(event.room) if client_events.is_plain(event) else None
                if room is not None:
                    client_events.encode_plain(event, room)
                else:
                    hard.append(event)
        if hard:
            async with self._database.read() as tx:
                await client_events.prepare(tx, hard)
        return [
            client_events.finish(seen.event, membership=seen.membership, device=device)
            for seen in shown
            if client_events.is_presentable(seen.event)
        ]

    async def render_state(self, stored: Sequence[StoredEvent], device: int | None) -> list[bytes]:
        """State for one reader."""
        if any(event.client is None for event in stored):
            async with self._database.read() as tx:
                await client_events.prepare(tx, stored, is_state=True)
        return [
            client_events.finish(event, membership=None, device=device)
            for event in stored
            if client_events.is_presentable(event)
        ]


def _fetch_limit(limit: int, wanted: Wanted) -> int:
    """How many events to look at: one more than are shown, and more where a filter drops some."""
    return limit + 1 if wanted.is_trivial else 10 * limit + 50


def _news(
    room: Room, stored: Sequence[StoredEvent], span: Span, wanted: Wanted, ignored: Collection[UserID]
) -> RoomNews:
    """The timeline of a room that the reader was joined to all along."""
    if ignored:
        stored = [event for event in stored if event.state_key is not None or event.sender not in ignored]
    return _cut(room, [Seen(event, "join") for event in stored], span, wanted)


def _cut(room: Room, seen: Sequence[Seen], span: Span, wanted: Wanted) -> RoomNews:
    """Filter, and keep the newest."""
    if not wanted.is_trivial:
        seen = [each for each in seen if wanted.allows_event(each.event.type, each.event.sender, each.event.content)]
    is_limited = len(seen) > span.limit
    timeline = list(seen[-span.limit :]) if span.limit else []
    before = timeline[0].event.position - 1 if timeline else (span.upto if is_limited else span.since)
    return RoomNews(room=room, timeline=timeline, is_limited=is_limited, before=before)


def _window_delta(trunk: Sequence[TrunkChange], news: RoomNews) -> _Delta:
    start = news.timeline[0].event.position if news.timeline else None
    delta = _Delta()
    for entry in trunk:
        if entry.event is None:
            continue
        key = (entry.type, entry.state_key)
        delta.whole[key] = entry.event
        if start is None or entry.event < start:
            delta.before[key] = entry.event
    return delta


def _set_state(news: RoomNews, delta: _Delta, held: Mapping[int, StoredEvent]) -> None:
    shown = {each.event.position for each in news.timeline}
    before = dict(delta.before)
    # What a merge made current, or a filter dropped, does not stand in the timeline.
    before.update({key: event for key, event in delta.whole.items() if event not in shown})
    news.state = [held[event] for event in before.values() if event in held and event not in shown]
    news.state_after = [held[event] for event in delta.whole.values() if event in held]


def _version_at_start(news: RoomNews, now: int) -> int:
    """The room's version at the timeline's start."""
    if not news.timeline:
        return now
    first = news.timeline[0].event
    return first.version if first.line == TRUNK else max(first.trunk_version - 1, 0)


def _select(
    state: Mapping[StateKey, int], held: Mapping[int, StoredEvent], members: Collection[UserID] | None
) -> list[StoredEvent]:
    return [
        held[position]
        for key, position in state.items()
        if position in held and (members is None or key[0] != "m.room.member" or key[1] in members)
    ]
