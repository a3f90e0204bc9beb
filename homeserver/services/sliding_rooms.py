"""What a sliding sync tells of rooms: read for all of them together, then put into words for each (MSC4186, "Room
results").
"""

from collections.abc import Iterable, Mapping

import orjson
from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol.types import JsonObject, RoomID, StateKey, UserID
from federation.rooms.aggregations import Onlooker
from federation.rooms.client_events import stripped
from federation.rooms.heroes import hero_events
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.required_state import MEMBER, Wish, are_lazy, matches
from federation.rooms.room_news import BEGINNING, Reading, RoomNews, Span
from federation.rooms.timelines import Timelines
from homeserver.services import sliding_words, unread_counts
from homeserver.services.sliding_connections import ACCOUNT_DATA, RECEIPTS, WHOLE, Held, RoomKey, SentRoom
from homeserver.services.sliding_lists import Arranged, SlidingMoment
from homeserver.services.sliding_receipts import receipts_since
from homeserver.services.sliding_request import Form, SlidingRequest
from homeserver.services.sliding_sorting import Left, SlidingSorter, Sorted
from homeserver.services.sliding_words import AVATAR, NAME, Telling
from homeserver.services.sync_filter import RoomEventFilter
from homeserver.services.sync_outside import client_form
from homeserver.services.sync_rooms import STRIPPED
from homeserver.services.user_views import UserViews, joined_since
from storage import account_data, beside_events, outside_memberships, rooms
from storage.beside_events import Found, Wanted
from storage.database import Database, Tx
from storage.memberships import Membership
from storage.rooms import Room
from storage.tail import Tail

_EVERYTHING = RoomEventFilter()
MAX_ROOMS_OF_MEMBERS = 300
MAX_MEMBERS = 1_000
"""Of one room: whose member events a connection is remembered to have been sent."""


class RoomsPart(Struct):
    """The rooms of an answer."""

    told: dict[RoomID, JsonObject] = field(default_factory=dict)
    state: dict[RoomKey, SentRoom] = field(default_factory=dict)
    """What the client will have."""
    fresh: set[RoomKey] = field(default_factory=set)
    """Rooms that were sent anew."""
    expanded: set[RoomKey] = field(default_factory=set)
    shown: dict[int, list[str]] = field(default_factory=dict)
    """The events of the timelines of such rooms."""
    known: dict[int, Room] = field(default_factory=dict)
    beside: Found | None = None
    """What was read for extensions already."""
    has_left: bool = False
    """Whether rooms were told to be left, which the next answer's lists hold no longer."""


class SlidingRooms:
    """Tells of rooms."""

    def __init__(
        self,
        *,
        database: Database,
        tail: Tail,
        views: UserViews,
        timelines: Timelines,
        incomplete: IncompleteRooms,
    ) -> None:
        self._database = database
        self._tail = tail
        self._views = views
        self._timelines = timelines
        self._incomplete = incomplete
        self.sorter = SlidingSorter(database, tail, incomplete)

    async def collect(
        self, request: SlidingRequest, moment: SlidingMoment, arranged: Arranged, held: Held
    ) -> RoomsPart:
        """What is new of the rooms that lists and subscriptions name."""
        found = await self.sorter.sort(moment, arranged)
        part = RoomsPart(state=found.state, has_left=bool(found.left))
        numbers = [key for key in arranged.rules if isinstance(key, int)]
        part.known = await self._views.rooms_by_number(numbers)
        tellings = await self._joined(request, moment, arranged, found, held, part)
        for room, telling in tellings.items():
            self._note(found, room, telling, part)
            told = sliding_words.tell(request.form, telling, moment.since)
            if told:
                part.told[part.known[room].room_id] = told
        await self._strip(request, moment, found, part)
        await self._leave(request, moment, found, part)
        await self._add_outside(request, moment, found, part)
        if request.form is Form.ACCEPTED:
            self._name_lists(arranged, part)
        return part

    def _name_lists(self, arranged: Arranged, part: RoomsPart) -> None:
        """In which lists each room is, and how the user stands to it."""
        for key, rule in arranged.rules.items():
            told = part.told.get(part.known[key].room_id if isinstance(key, int) else key)
            if told is not None:
                told["membership"] = arranged.members[key].membership.text
                if rule.lists:
                    told["lists"] = rule.lists

    # --- rooms that the user is in

    async def _joined(
        self,
        request: SlidingRequest,
        moment: SlidingMoment,
        arranged: Arranged,
        found: Sorted,
        held: Held,
        part: RoomsPart,
    ) -> dict[int, Telling]:
        reading = _reading(moment, found)
        tellings: dict[int, Telling] = {}
        for room, joined in found.joined.items():
            has_changed_flags = joined.sent is not None and joined.sent.flags != found.state[room].flags
            if joined.is_fresh or joined.is_expanded or joined.is_grown or has_changed_flags:
                tellings[room] = Telling(joined, arranged.summaries[room].last_bump or arranged.members[room].position)
        await self._read_news(reading, moment, found, arranged, tellings)
        if request.form is Form.DEPLOYED:
            for room in await self._read_by_user(moment, found):
                if room not in tellings:
                    tellings[room] = Telling(found.joined[room], 0)
                tellings[room].is_read = True
        if not tellings:
            return tellings
        for room, telling in tellings.items():
            telling.flags = found.state[room].flags
        async with self._database.read() as tx:
            await self._read_timelines(tx, reading, moment, tellings)
            beside = None
            if moment.since is None:
                beside = beside_events.look_for(tx, self._wanted_beside(request, moment, found, tellings, part))
            await self._read_state(tx, moment, tellings, held)
            await self._read_members(tx, moment, tellings)
            if beside is not None:
                part.beside = await beside_events.read(tx, beside)
                self._views.keep_unread(moment.view, unread_counts.by_room(part.beside.unread))
        if request.form is Form.DEPLOYED:
            for room, counts in (await self._views.unread(moment.view, list(tellings))).items():
                tellings[room].unread = counts.total
        await self._render(request, moment, tellings.values())
        return tellings

    async def _read_news(
        self,
        reading: Reading,
        moment: SlidingMoment,
        found: Sorted,
        arranged: Arranged,
        tellings: dict[int, Telling],
    ) -> None:
        """What came in the rooms that the client has."""
        for at, numbers in found.changed.items():
            by_limit: dict[int, list[int]] = {}
            for room in numbers:
                if not found.joined[room].is_fresh:
                    by_limit.setdefault(found.joined[room].rule.limit, []).append(room)
            for limit, of_limit in by_limit.items():
                span = Span(at, moment.upto.position, limit)
                for room, news in (await self._timelines.continuing(reading, of_limit, span)).items():
                    if room not in tellings:
                        bump = arranged.summaries[room].last_bump
                        tellings[room] = Telling(found.joined[room], bump)
                    tellings[room].news = news

    async def _read_timelines(
        self, tx: Tx, reading: Reading, moment: SlidingMoment, tellings: Mapping[int, Telling]
    ) -> None:
        """The newest events of rooms that are sent anew, or of which more is wanted."""
        by_limit: dict[int, list[int]] = {}
        for room, telling in tellings.items():
            if telling.joined.is_fresh or telling.joined.is_expanded or telling.joined.lacks_members:
                by_limit.setdefault(telling.joined.rule.limit, []).append(room)
        for limit, numbers in by_limit.items():
            known = await rooms.get_many(tx, numbers)
            span = Span(BEGINNING, moment.upto.position, limit)
            for room, newest in (await self._timelines.newest(tx, reading, list(known.values()), span)).items():
                telling, news = tellings[room], tellings[room].news
                telling.newest = newest.timeline
                if not telling.joined.is_fresh and not telling.joined.is_expanded:
                    continue
                if news is None or telling.joined.is_fresh:
                    telling.news = newest
                else:
                    news.timeline, news.is_limited, news.before = newest.timeline, newest.is_limited, newest.before

    async def _read_state(self, tx: Tx, moment: SlidingMoment, tellings: Mapping[int, Telling], held: Held) -> None:
        """The state that is wanted, of which the client has not got it."""
        wishes: dict[int, Wish] = {}
        for room, telling in tellings.items():
            joined = telling.joined
            wish = Wish(entries=self._lazy_members(moment, room, telling, held))
            if joined.is_fresh:
                wish.patterns = joined.rule.patterns
                wish.entries |= {NAME, AVATAR}
            elif joined.is_grown and joined.sent is not None:
                wish.patterns, wish.besides = joined.rule.patterns, joined.sent.patterns
            if telling.may_change_names:
                wish.entries |= {NAME, AVATAR}
            if wish.patterns or wish.entries:
                if own := moment.members[room].position:
                    wish.known = {(MEMBER, moment.view.user_id): own}
                wish.is_unfollowed = self._incomplete.has(room)
                wishes[room] = wish
        for room, read in (await self._timelines.wished(tx, moment.upto.position, wishes)).items():
            tellings[room].take(read)

    def _lazy_members(self, moment: SlidingMoment, room: int, telling: Telling, held: Held) -> set[StateKey]:
        """Whose member events are to come with the timeline, where members do.

        What was sent counts only when a position proves that it arrived; behind a gap, or where members were not wanted
        meanwhile, it may be old.
        """
        news = telling.news
        seen = [*telling.newest, *(() if news is None else news.timeline)]
        if not seen or not are_lazy(telling.joined.rule.patterns):
            return set()
        shown = {each.event.sender for each in seen}
        shown.update(UserID(each.event.state_key or "") for each in seen if each.event.type == MEMBER)
        sent = held.members.get(room)
        before = telling.joined.sent
        is_limited = news is not None and news.is_limited
        is_anew = telling.joined.is_fresh or is_limited or before is None or not are_lazy(before.patterns)
        if sent is None or is_anew or len(sent) > MAX_MEMBERS:
            if len(held.members) >= MAX_ROOMS_OF_MEMBERS:
                held.members.clear()
            sent = held.members[room] = {}
        since = 0 if moment.since is None else moment.since.position
        wanted = {user_id for user_id in shown if sent.get(user_id, since + 1) > since}
        sent.update(dict.fromkeys(wanted, moment.upto.position))
        telling.lazy_members = wanted
        return {(MEMBER, user_id) for user_id in wanted}

    async def _read_members(self, tx: Tx, moment: SlidingMoment, tellings: Mapping[int, Telling]) -> None:
        """How many members rooms have, and who names those without a name, where that may have changed."""
        changed = {
            room: telling
            for room, telling in tellings.items()
            if (telling.joined.is_fresh or telling.may_change_names) and not self._incomplete.has(room)
        }
        if not changed:
            return
        for room, counts in (await self._timelines.member_counts(tx, list(changed))).items():
            changed[room].counts = counts
        nameless = [room for room, telling in changed.items() if telling.name is None]
        if nameless:
            for room, heroes in (await hero_events(tx, nameless, moment.view.user_id)).items():
                changed[room].heroes = heroes

    def _wanted_beside(
        self,
        request: SlidingRequest,
        moment: SlidingMoment,
        found: Sorted,
        tellings: Mapping[int, Telling],
        part: RoomsPart,
    ) -> Wanted:
        wanted = Wanted(user_id=moment.view.user_id, upto=moment.upto.position)
        if request.form is Form.DEPLOYED:
            wanted.counted = [room for room in tellings if room not in moment.view.unread]
        if request.wanted.extensions.account_data is not None:
            with_data = [room for room in part.known if room in found.state and found.state[room].flags & ACCOUNT_DATA]
            wanted.with_data = (account_data.GLOBAL, *with_data)
        if request.wanted.extensions.receipts is not None:
            wanted.shown = {
                room: [each.event.event_id for each in telling.news.timeline]
                for room, telling in tellings.items()
                if telling.flags & RECEIPTS and telling.news is not None
            }
        return wanted

    async def _read_by_user(self, moment: SlidingMoment, found: Sorted) -> set[int]:
        """The rooms in which the user has read on, so that what is unread is another number."""
        if moment.since is None:
            return set()
        user_id = moment.view.user_id
        places = {room: joined.at for room, joined in found.joined.items() if not joined.is_fresh}
        return {
            each.room
            for each in await receipts_since(self._database, self._tail, moment, places, own_only=True)
            if each.user_id == user_id
        }

    async def _render(self, request: SlidingRequest, moment: SlidingMoment, tellings: Iterable[Telling]) -> None:
        """The events as clients see them: what has to be read for that is read for all rooms together."""
        tellings = list(tellings)
        await self._timelines.prepare(
            [each.event for telling in tellings if telling.news is not None for each in telling.news.timeline], ()
        )
        for telling in tellings:
            telling.choose_state()
        await self._timelines.prepare((), [event for telling in tellings for event in telling.required])
        device = request.requester.device
        onlooker = Onlooker(moment.view.user_id, moment.ignored, device, moment.upto.position)
        bundles = await self._timelines.bundle(onlooker, [each.news for each in tellings if each.news is not None])
        for telling in tellings:
            if telling.news is not None:
                telling.timeline = await self._timelines.render(telling.news.timeline, device, bundles)
            telling.state = await self._timelines.render_state(telling.required, device)

    def _note(self, found: Sorted, room: int, telling: Telling, part: RoomsPart) -> None:
        """What the client has of the room once it has the answer."""
        joined, news, state = telling.joined, telling.news, found.state[room]
        if joined.is_fresh:
            part.fresh.add(room)
        elif joined.is_expanded:
            part.expanded.add(room)
        if news is None:
            return
        if joined.is_fresh or joined.is_expanded or news.is_limited:
            depth = joined.rule.limit if news.is_limited else WHOLE
            if depth != state.depth:
                found.state[room] = replace(state, depth=depth)
        if joined.is_fresh or joined.is_expanded:
            part.shown[room] = [each.event.event_id for each in news.timeline]

    # --- other rooms

    async def _strip(self, request: SlidingRequest, moment: SlidingMoment, found: Sorted, part: RoomsPart) -> None:
        """Rooms to which the user is invited, or at which they knock."""
        if not found.stripped:
            return
        keys: list[StateKey] = [*STRIPPED, (MEMBER, moment.view.user_id)]
        async with self._database.read() as tx:
            states = await self._timelines.current_of_many(tx, found.stripped, keys)
        for room in found.stripped:
            state = [stripped(event, part.known[room]) for event in states[room]]
            told = self._told_of_invite(request, state, moment.members[room].position, found.state[room])
            part.told[part.known[room].room_id] = told
            part.fresh.add(room)

    def _told_of_invite(self, request: SlidingRequest, state: object, position: int, sent: SentRoom) -> JsonObject:
        told = {"initial": True, request.form.stripped_state_name: state, "bump_stamp": position}
        return told | {"is_dm": True} if sent.is_direct else told

    async def _leave(
        self,
        request: SlidingRequest,
        moment: SlidingMoment,
        found: Sorted,
        part: RoomsPart,
    ) -> None:
        """Rooms that the user left or was removed from, with what happened until then."""
        if not found.left:
            return
        reading = _reading(moment, found)
        async with self._database.read() as tx:
            for each in found.left:
                since = BEGINNING if each.is_fresh else each.at
                span = Span(since, each.member.position, each.rule.limit)
                news = await self._timelines.left(tx, reading, part.known[each.room], span)
                part.told[part.known[each.room].room_id] = await self._told_of_left(request, moment, each, news)
                if each.is_fresh:
                    part.fresh.add(each.room)

    async def _told_of_left(
        self, request: SlidingRequest, moment: SlidingMoment, left: Left, news: RoomNews
    ) -> JsonObject:
        own = (MEMBER, moment.view.user_id)
        state = [
            event
            for event in news.state_after
            if (event.type, event.state_key) == own or matches(left.rule.patterns, event.type, event.state_key or "")
        ]
        device = request.requester.device
        onlooker = Onlooker(moment.view.user_id, moment.ignored, device, moment.upto.position)
        bundles = await self._timelines.bundle(onlooker, [news])
        timeline = await self._timelines.render(news.timeline, device, bundles)
        rendered = await self._timelines.render_state(state, device, is_shared=True)
        since = BEGINNING if moment.since is None else moment.since.position
        told: JsonObject = {
            **sliding_words.timeline(news, timeline, since=since, is_first=moment.since is None),
            "required_state": [orjson.Fragment(event) for event in rendered],
            "bump_stamp": left.member.position,
        }
        if left.is_fresh:
            told["initial"] = True
        never_joined = left.is_fresh and all((event.type, event.state_key) == own for event in news.state_after)
        if request.form is Form.ACCEPTED and never_joined:
            own_events = [each.event for each in news.timeline if (each.event.type, each.event.state_key) == own]
            told[request.form.stripped_state_name] = [stripped(event, news.room) for event in own_events]
        return told

    async def _add_outside(
        self, request: SlidingRequest, moment: SlidingMoment, found: Sorted, part: RoomsPart
    ) -> None:
        """Rooms that this server is not in."""
        if not found.outside:
            return
        async with self._database.read() as tx:
            memberships = await outside_memberships.get_many(tx, moment.view.user_id, found.outside)
        for each in memberships:
            if each.membership in (Membership.INVITE, Membership.KNOCK):
                state = orjson.Fragment(each.stripped_state)
                told = self._told_of_invite(request, state, each.position, found.state[each.room_id])
                part.fresh.add(each.room_id)
            else:  # they did not get in after all: the event that says so is all there is
                event = client_form(each, orjson.loads(each.json))
                told = {"timeline": [event], "required_state": [event], "num_live": 1, "bump_stamp": each.position}
                if request.form is Form.ACCEPTED:
                    kept = ("content", "sender", "state_key", "type")
                    told["stripped_state"] = [{name: event[name] for name in kept}]
            part.told[each.room_id] = told


def _reading(moment: SlidingMoment, found: Sorted) -> Reading:
    """Who reads, and since when they are in the rooms that they are in."""
    return Reading(
        moment.view.user_id, _EVERYTHING, moment.ignored, joined_since=joined_since(moment.members, found.joined)
    )
