"""What is new in rooms for one reader: the timelines and the state changes that `/sync` is made of.

Within the tail's window that costs no query; before it, a fixed number of queries for all rooms together. Only events
of rooms that the reader is joined to throughout are taken without asking the visibility gate.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from federation.protocol.types import StateKey, UserID
from federation.rooms import client_events, required_state, room_news
from federation.rooms.aggregations import NO_BUNDLES, Aggregations, Bundles, Onlooker
from federation.rooms.current_rooms import CurrentRooms
from federation.rooms.reader import RoomReader, Seen
from federation.rooms.required_state import Granted, StateEvents, Wish
from federation.rooms.room_news import BEGINNING, Delta, Reading, RoomNews, Span
from storage import event_pages, events, room_state, rooms
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.events import StoredEvent
from storage.memberships import Membership
from storage.rooms import Room
from storage.tail import Tail

_MAX_OF_TYPE = 5_000
_MAX_BYTES_OF_TYPE = 8 * 1024


class Timelines:
    """Reads what is new in rooms."""

    def __init__(self, database: Database, tail: Tail, reader: RoomReader) -> None:
        self._database = database
        self._tail = tail
        self._reader = reader
        self.state_events = StateEvents()
        self.current_rooms = CurrentRooms(tail)
        self._aggregations = Aggregations(reader, self.current_rooms)

    # --- rooms that the reader was and is joined to

    async def continuing(self, reading: Reading, wanted_rooms: Collection[int], span: Span) -> dict[int, RoomNews]:
        """News of rooms that the reader was joined to from `span.since` on without a break."""
        if span.since >= self._tail.floor and not reading.wanted.needs_relations:
            return await self._from_window(reading, wanted_rooms, span)
        async with self._database.read() as tx:
            return await self._from_database(tx, reading, wanted_rooms, span)

    async def _from_window(self, reading: Reading, wanted_rooms: Collection[int], span: Span) -> dict[int, RoomNews]:
        found: dict[int, RoomNews] = {}
        deltas: dict[int, Delta] = {}
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
            gap = max((change.stored[0].position for change in changes if change.follows_gap), default=0)
            stored = [event for event in stored if event.position >= gap]
            news = room_news.cut(reading, changes[0].room, [Seen(event, "join") for event in stored], span)
            news.is_shared = True
            found[number] = news
            if gap:
                room_news.set_limited(found, [number], span)
            trunk = [entry for change in changes for entry in change.trunk]
            if trunk:
                held.update({event.position: event for change in changes for event in change.stored})
                deltas[number] = room_news.window_delta(trunk, news)
                news.members = {
                    UserID(entry.state_key): entry.membership
                    for entry in trunk
                    if entry.membership is not None and entry.type == "m.room.member"
                }
        if deltas:
            await self._fill_state(found, deltas, held)
        return found

    async def _fill_state(
        self, found: Mapping[int, RoomNews], deltas: Mapping[int, Delta], held: dict[int, StoredEvent]
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
            room_news.set_state(found[number], delta, held)

    async def _fetch(
        self, tx: Tx, reading: Reading, numbers: Collection[int], span: Span
    ) -> tuple[dict[int, list[StoredEvent]], set[int]]:
        """The newest events of each room, enough of them to fill its timeline as a rule; and where a gap ended it."""
        limit = reading.fetch_limit(span.limit)
        return await event_pages.newest_per_room(tx, numbers, after=span.since, upto=span.upto, limit=limit)

    async def _cut_all(
        self,
        tx: Tx,
        reading: Reading,
        fetched: Mapping[Room, Sequence[StoredEvent]],
        seen: Mapping[int, Sequence[Seen]],
        span: Span,
    ) -> dict[int, RoomNews]:
        """The timelines, from the events that were looked at and those of them that the reader may see."""
        related: Collection[str] | None = None
        if reading.wanted.needs_relations:
            stored = [each.event for of_room in seen.values() for each in of_room]
            by_senders, by_types = reading.wanted.related_by_senders, reading.wanted.related_by_rel_types
            related = await event_pages.related_among(tx, stored, by_senders, by_types)
        found: dict[int, RoomNews] = {}
        for room, looked_at in fetched.items():
            whole = room_news.after_hidden_state(looked_at, seen[room.number])
            passing = [each for each in whole if related is None or each.event.event_id in related]
            news = found[room.number] = room_news.cut(reading, room, passing, span)
            if len(looked_at) >= reading.fetch_limit(span.limit) or len(whole) < len(seen[room.number]):
                news.is_limited = True
            if not news.timeline and (news.is_limited or span.since == BEGINNING):
                news.before = span.upto
        return found

    async def _from_database(
        self, tx: Tx, reading: Reading, wanted_rooms: Collection[int], span: Span
    ) -> dict[int, RoomNews]:
        changed = await event_pages.rooms_changed(tx, wanted_rooms, span.since)
        if not changed:
            return {}
        known = await rooms.get_many(tx, changed)
        fetched, cut = await self._fetch(tx, reading, changed, span)
        seen = {number: [Seen(event, "join") for event in stored] for number, stored in fetched.items()}
        found = await self._cut_all(tx, reading, {known[number]: fetched[number] for number in changed}, seen, span)
        room_news.set_limited(found, cut, span)
        then = await events.trunk_versions_at(tx, changed, span.since)
        now = await events.trunk_versions_at(tx, changed, span.upto)
        moved = {number: now[number] for number in changed if now[number] > then[number]}
        starts = {number: room_news.version_at_start(found[number], version) for number, version in moved.items()}
        if moved:
            await self._set_changed_state(tx, found, then, starts, moved)
        return found

    async def _set_changed_state(
        self,
        tx: Tx,
        found: Mapping[int, RoomNews],
        then: Mapping[int, int],
        starts: Mapping[int, int],
        ends: Mapping[int, int],
    ) -> None:
        """What changed in rooms between a version and the starts, and the ends, of their timelines."""
        before = await room_state.changed_between(tx, {room: (then[room], starts[room]) for room in ends})
        whole = await room_state.changed_between(tx, {room: (then[room], ends[room]) for room in ends})
        deltas = {
            room: Delta(
                {key: event for key, event in before[room].items() if event is not None},
                {key: event for key, event in whole[room].items() if event is not None},
                {key for key, event in whole[room].items() if event is None},
            )
            for room in ends
        }
        positions = {event for delta in deltas.values() for event in (*delta.before.values(), *delta.whole.values())}
        held = await events.by_positions(tx, positions)
        for number, delta in deltas.items():
            room_news.set_state(found[number], delta, held)
            found[number].members = {
                UserID(key[1]): membership
                for key, event in delta.whole.items()
                if key[0] == "m.room.member"
                and event in held
                and (membership := Membership.of(held[event].content.get("membership")))
            }

    # --- rooms that are new to the reader, or that they left

    async def fresh(self, tx: Tx, reading: Reading, wanted_rooms: Collection[Room], span: Span) -> dict[int, RoomNews]:
        """Rooms as for somebody who knows nothing of them: the newest events, up to a gap, and the whole state."""
        numbers = [room.number for room in wanted_rooms]
        found = await self.newest(tx, reading, wanted_rooms, span)
        now = await events.trunk_versions_at(tx, numbers, span.upto)
        starts = {number: room_news.version_at_start(news, now[number]) for number, news in found.items()}
        await self._set_whole_state(tx, reading, found, starts, now)
        return found

    async def newest(self, tx: Tx, reading: Reading, wanted_rooms: Collection[Room], span: Span) -> dict[int, RoomNews]:
        """As `fresh`, without any state."""
        numbers = [room.number for room in wanted_rooms]
        if span.since == BEGINNING:
            limit = reading.fetch_limit(span.limit)
            fetched, cut = await self.current_rooms.newest(tx, numbers, upto=span.upto, limit=limit)
        else:
            fetched, cut = await self._fetch(tx, reading, numbers, span)
        looked_at = {room: fetched[room.number] for room in wanted_rooms}
        seen = await self._visible_in(tx, reading, looked_at)
        found = await self._cut_all(tx, reading, looked_at, seen, span)
        room_news.set_limited(found, cut, span)
        return found

    async def _visible_in(
        self, tx: Tx, reading: Reading, looked_at: Mapping[Room, Sequence[StoredEvent]]
    ) -> dict[int, Sequence[Seen]]:
        """Those of these events that the reader may see; asks only where they were not joined at every one of them."""
        seen: dict[int, Sequence[Seen]] = {}
        others: dict[Room, Sequence[StoredEvent]] = {}
        for room, stored in looked_at.items():
            since = reading.joined_since.get(room.number)
            if since is not None and all(_is_within(event, since, reading.user_id) for event in stored):
                seen[room.number] = [Seen(event, "join") for event in stored]
            else:
                others[room] = stored
        if others:
            seen.update(await self._reader.visible_in(tx, reading.user_id, others))
        return seen

    async def _set_whole_state(
        self,
        tx: Tx,
        reading: Reading,
        found: Mapping[int, RoomNews],
        starts: Mapping[int, int],
        ends: Mapping[int, int],
    ) -> None:
        """The state of rooms at the starts and at the ends of their timelines."""
        members = None
        if reading.lazy_members:
            members = set().union(*(room_news.shown_members(reading, news) or () for news in found.values()))
        before = await room_state.at_versions(tx, starts, members=members)
        moved = {room: version for room, version in ends.items() if version != starts[room]}
        whole = {**before, **(await room_state.at_versions(tx, moved, members=members) if moved else {})}
        held = await events.by_positions(
            tx, {position for states in (before, whole) for state in states.values() for position in state.values()}
        )
        for number, news in found.items():
            news.state = room_news.select(before[number], held, room_news.shown_members(reading, news))
            news.state_after = room_news.select(whole[number], held, room_news.shown_members(reading, news))

    async def left(self, tx: Tx, reading: Reading, room: Room, span: Span) -> RoomNews:
        """What somebody who left may still see of a room, up to their leave (`span.upto`).

        Who never was in it, and declined an invite, say, is shown nothing but what was done to them.
        """
        number = room.number
        by_room, cut = await self._fetch(tx, reading, [number], span)
        fetched = by_room[number]
        seen = {number: await self._reader.visible(tx, room, reading.user_id, fetched)}
        found = await self._cut_all(tx, reading, {room: fetched}, seen, span)
        room_news.set_limited(found, cut, span)
        news = found[number]
        key: StateKey = ("m.room.member", reading.user_id)
        left_at = (await events.trunk_versions_at(tx, [number], span.upto))[number]
        stay = room_news.last_stay((await room_state.histories(tx, [number], key)).get(number, []), left_at)
        then = (await events.trunk_versions_at(tx, [number], span.since))[number]
        if stay is None or stay[1] <= then:
            room_news.add_own_membership(reading, news, seen[number])
            return news
        came, went = stay
        start = min(room_news.version_at_start(news, went), went)
        if came > then:
            await self._set_whole_state(tx, reading, {number: news}, {number: start}, {number: went})
        else:
            await self._set_changed_state(tx, {number: news}, {number: then}, {number: start}, {number: went})
            room_news.drop_members(reading, news)
        room_news.add_own_membership(reading, news, seen[number])
        for version in {max(then, came), went}:
            members = await room_state.members_at(tx, number, version, (Membership.JOIN,))
            news.parted_from.update(user_id for user_id, _, _ in members)
        return news

    # --- members

    async def company_at(self, tx: Tx, user_id: UserID, numbers: Collection[int], position: int) -> set[UserID]:
        """With whom the user was in these rooms at a place in the log."""
        company: set[UserID] = set()
        for number, version in (await events.trunk_versions_at(tx, numbers, position)).items():
            members = await room_state.members_at(tx, number, version, (Membership.JOIN,))
            there = {member for member, _, _ in members}
            if user_id in there:
                company |= there
        return company

    async def members(self, tx: Tx, room: int, user_ids: Collection[UserID]) -> list[StoredEvent]:
        """The current member events of these users."""
        keys: list[StateKey] = [("m.room.member", user_id) for user_id in user_ids]
        positions = await room_state.current(tx, room, keys)
        stored = await events.by_position(tx, room, positions.values())
        return list(stored.values())

    async def wished(self, tx: Tx, upto: int, wishes: Mapping[int, Wish]) -> dict[int, Granted]:
        """Parts of the states of rooms that the reader was joined to at a place in the log; none that is newer."""
        return await required_state.read(tx, wishes, upto, self.current_rooms, self.state_events)

    async def member_counts(self, tx: Tx, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
        """How many are joined to each of these rooms, and invited."""
        return await self.current_rooms.member_counts(tx, numbers)

    async def current_of_many(
        self, tx: Tx, numbers: Collection[int], keys: Sequence[StateKey]
    ) -> dict[int, list[StoredEvent]]:
        """As `current`, for several rooms."""
        positions = await room_state.current_of_many(tx, numbers, keys)
        held = await events.by_positions(tx, [event for of_room in positions.values() for event in of_room.values()])
        return {
            room: [held[event] for event in of_room.values() if event in held] for room, of_room in positions.items()
        }

    async def current_of_type(self, tx: Tx, numbers: Collection[int], event_type: str) -> dict[int, list[StoredEvent]]:
        """As `current`, of several rooms and for all state keys of one type, up to a bound."""
        return await room_state.current_of_type(
            tx, numbers, event_type, limit=_MAX_OF_TYPE, max_bytes=_MAX_BYTES_OF_TYPE
        )

    async def which_have(self, tx: Tx, numbers: Collection[int], key: StateKey) -> set[int]:
        """Those of these rooms whose current state has an entry."""
        return {room for room, state in (await room_state.current_of_many(tx, numbers, [key])).items() if state}

    async def current(self, tx: Tx, room: int, keys: Sequence[StateKey]) -> list[StoredEvent]:
        """Current state that everybody who is invited may see."""
        positions = await room_state.current(tx, room, keys)
        stored = await events.by_position(tx, room, positions.values())
        return [stored[position] for position in positions.values()]

    # --- the client's form

    def _encode(self, event: StoredEvent, *, is_state: bool = False) -> bool:
        """Give an event its client form, if that needs no query; whether it has one."""
        if client_events.is_plain(event, is_state=is_state):
            room = rooms.known_numbers(self._database.memory, [event.room]).get(event.room)
            if room is not None:
                client_events.encode_plain(event, room)
        return event.client is not None

    async def bundle(self, onlooker: Onlooker, news: Collection[RoomNews]) -> Bundles:
        """What relates to the timelines of these rooms that are cut off ("Aggregations of child events").

        In one that is whole since the reader's token they see all of it come.
        """
        known = self.current_rooms
        limited = [each for of_room in news if of_room.is_limited for each in of_room.timeline]
        shown = [each for each in limited if not known.is_childless(each.event)]
        if not shown:
            return NO_BUNDLES
        async with self._database.read() as tx:
            return await self._aggregations.bundle(tx, onlooker, shown)

    async def render(self, shown: Sequence[Seen], device: int | None, bundles: Bundles = NO_BUNDLES) -> list[bytes]:
        """Events for one reader; asks the database only for what replaced or redacted something."""
        # Again after waiting: a redaction may have come meanwhile, and taken the form of an event away.
        while hard := [event for seen in shown if (event := seen.event).client is None and not self._encode(event)]:
            async with self._database.read() as tx:
                await client_events.prepare(tx, hard)
        return [
            client_events.finish(
                seen.event, membership=seen.membership, device=device, relations=bundles.get(seen.event.position)
            )
            for seen in shown
            if client_events.is_presentable(seen.event)
        ]

    async def prepare(self, shown: Sequence[StoredEvent], state: Sequence[StoredEvent]) -> None:
        """Make what `render` and `render_state` need for many rooms at once."""
        fresh = [event for event in state if event.client is None and not self._encode(event, is_state=True)]
        hard = [event for event in shown if event.client is None and not self._encode(event)]
        if fresh or hard:
            async with self._database.read() as tx:
                await client_events.prepare(tx, hard)
                await client_events.prepare(tx, fresh, is_state=True)

    async def render_state(
        self, stored: Sequence[StoredEvent], device: int | None, *, is_shared: bool = False
    ) -> list[bytes]:
        """State for one reader. What is shared with other readers keeps the form that timelines need."""
        if is_shared:
            stored = [event if event.client else replace(event) for event in stored]
        fresh = [event for event in stored if event.client is None and not self._encode(event, is_state=True)]
        if fresh:
            async with self._database.read() as tx:
                await client_events.prepare(tx, fresh, is_state=True)
        return client_events.finish_state(stored, device=device)


def _is_within(event: StoredEvent, since: int, user_id: UserID) -> bool:
    """Whether who is joined from a version of the room on was so before and after an event."""
    # Their own member events tell of themselves.
    return (
        event.line == room_state.TRUNK and event.version >= since and event.is_readable and event.state_key != user_id
    )
