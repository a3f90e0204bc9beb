"""The rooms of a sync: joined, invited, knocked at and left (Client-Server API, "Syncing", "Lazy-loading")."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol.types import JsonObject, RoomID, StateKey, UserID
from federation.rooms.aggregations import NO_BUNDLES, Bundles, Onlooker
from federation.rooms.client_events import stripped
from federation.rooms.heroes import heroes_of_many
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.room_news import BEGINNING, Reading, RoomNews, Span
from federation.rooms.timelines import Timelines
from homeserver.services.sync_outside import OutsideRooms
from homeserver.services.sync_sections import NOTHING, Besides, add_counts, is_news, section
from homeserver.services.sync_sorting import RoomSorter, RoomsRequest, SortedRooms
from homeserver.services.user_views import Member, UserView, UserViews, joined_since
from homeserver.tokens import StreamToken
from storage import account_data, memberships, receipts, rooms
from storage.account_data import AccountDataChanged
from storage.database import Database
from storage.ephemeral import Typing
from storage.memberships import Membership
from storage.receipts import ReceiptMoved
from storage.tail import Tail

STRIPPED: tuple[StateKey, ...] = (
    ("m.room.create", ""),
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.topic", ""),
    ("m.room.join_rules", ""),
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
)
"""What somebody who is invited or knocks is told of a room."""


class RoomSections(Struct):
    """The parts of an answer that are about rooms, ready to be encoded."""

    join: dict[str, JsonObject] = field(default_factory=dict)
    invite: dict[str, JsonObject] = field(default_factory=dict)
    knock: dict[str, JsonObject] = field(default_factory=dict)
    leave: dict[str, JsonObject] = field(default_factory=dict)
    met: set[UserID] = field(default_factory=set)
    """Who came into a room of the user, or was in one that the user came into."""
    parted_from: set[UserID] = field(default_factory=set)
    """Who left a room of the user, or was in one that the user left."""
    entered: frozenset[int] = frozenset()
    """The rooms that the user came into: what happened there before is not theirs."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.join or self.invite or self.knock or self.leave)

    def put(self, part: str, room_id: str, told: JsonObject) -> None:
        """Tell of a room in one part, and in no other."""
        for name, rooms_told in self._parts().items():
            rooms_told.pop(room_id, None)
            if name == part:
                rooms_told[room_id] = told

    def answer(self) -> JsonObject:
        """The `rooms` object, without empty parts."""
        return {name: part for name, part in self._parts().items() if part}

    def _parts(self) -> dict[str, dict[str, JsonObject]]:
        return {"join": self.join, "invite": self.invite, "knock": self.knock, "leave": self.leave}


class Moment(Struct, frozen=True, kw_only=True):
    """A user's rooms at one place of the log, and what is known of the user there."""

    view: UserView
    upto: StreamToken
    members: Mapping[int, Member]
    outside: Mapping[RoomID, Member]
    ignored: Collection[UserID]
    changed_data: Sequence[AccountDataChanged]
    """Of rooms, and of none."""


class SyncRooms:
    """Puts the rooms of a sync together."""

    def __init__(
        self,
        *,
        database: Database,
        tail: Tail,
        views: UserViews,
        timelines: Timelines,
        typing: Typing,
        incomplete: IncompleteRooms,
    ) -> None:
        self._database = database
        self._tail = tail
        self._views = views
        self._timelines = timelines
        self._typing = typing
        self._incomplete = incomplete
        self._sorter = RoomSorter(database, views, incomplete)
        self._outside = OutsideRooms(database)

    async def collect(self, request: RoomsRequest, moment: Moment) -> RoomSections:
        """The sections of all rooms in which anything happened after the token."""
        found = await self._sorter.sort(request, moment.view, moment.members)
        self._forget_sent(request, moment.view, found)
        reading = Reading(
            moment.view.user_id,
            request.filter.timeline,
            moment.ignored,
            lazy_members=request.lazy_members,
            joined_since=joined_since(moment.members, (*found.entered, *found.whole)),
        )
        since = BEGINNING if request.since is None else request.since.position
        span = Span(since, moment.upto.position, request.limit)
        besides = await self._besides(request, moment, found)
        news = await self._timelines.continuing(reading, found.continuing, span)
        quiet = {room for room in found.continuing if room in besides} - news.keys()
        if quiet:
            known = await self._views.rooms_by_number(list(quiet))
            news |= {room: RoomNews(room=known[room], before=since) for room in quiet}
        summaries = await self._summaries(
            moment.view, [*found.entered, *found.whole, *(room for room in news if _may_change_summary(news[room]))]
        )
        if request.lazy_members:
            heroes = {room: summary["m.heroes"] for room, summary in summaries.items() if "m.heroes" in summary}
            reading = replace(reading, heroes=heroes)
            for room, each in news.items():
                await self._add_members(request, moment, each, heroes.get(room, ()))
        news |= await self._whole(request, moment, reading, span, found)
        sections = RoomSections(entered=frozenset(found.entered))
        await self._join(request, moment, sections, news, besides)
        for room, summary in summaries.items():
            if news[room].room.room_id in sections.join:
                sections.join[news[room].room.room_id]["summary"] = summary
        await self._note_met(moment.view.user_id, request, sections, found.entered, news)
        await self._strip(moment, sections, found)
        await self._leave(request, reading, sections, span, found.left)
        await self._add_outside(request, moment, sections)
        return sections

    # --- what besides events

    async def _besides(self, request: RoomsRequest, moment: Moment, found: SortedRooms) -> dict[int, Besides]:
        besides: dict[int, Besides] = {}
        joined = found.joined
        allowed = await self._allowing(request, joined)
        changed = moment.changed_data
        if found.entered and request.since is not None:  # of which the user may have had data before
            async with self._database.read() as tx:
                earlier = await account_data.all_of(tx, moment.view.user_id)
            changed = [*(change for change in earlier if change.room in found.entered), *changed]
        data_filter, ephemeral_filter = request.filter.room_account_data, request.filter.ephemeral
        for change in changed:
            if (
                change.room is not None
                and change.room in allowed[0]
                and data_filter.allows_event(change.type, None, None)
            ):
                besides.setdefault(change.room, Besides()).account_data[change.type] = change
        if ephemeral_filter.allows_event("m.typing", None, None):
            for room in self._typing_in(request, found):
                if room in allowed[1]:
                    users = [user_id for user_id in self._typing.users_in(room) if user_id not in moment.ignored]
                    besides.setdefault(room, Besides()).typing = users
        tells_receipts = ephemeral_filter.allows_event("m.receipt", None, None)
        for moved in await self._receipts(request, moment, found):
            is_own = moved.user_id == moment.view.user_id
            is_told = tells_receipts and moved.room in allowed[1] and moved.user_id not in moment.ignored
            if is_own or is_told:
                room_besides = besides.setdefault(moved.room, Besides())
                room_besides.is_read |= is_own
                if is_told:
                    room_besides.receipts[moved.key] = moved
        return besides

    async def _allowing(
        self, request: RoomsRequest, joined: Collection[int]
    ) -> tuple[Collection[int], Collection[int]]:
        """The rooms whose account data, and those whose ephemeral events, the filter lets through."""
        parts = (request.filter.room_account_data, request.filter.ephemeral)
        if all(part.rooms is None and not part.not_rooms for part in parts):
            rooms_joined = frozenset(joined)
            return rooms_joined, rooms_joined
        known = await self._views.rooms_by_number(list(joined))
        data, ephemeral = ({room for room in known if part.allows_room(known[room].room_id)} for part in parts)
        return data, ephemeral

    def _typing_in(self, request: RoomsRequest, found: SortedRooms) -> list[int]:
        """The rooms of which to tell who types."""
        new = [room for room in found.entered if self._typing.users_in(room)]
        if request.since is None:
            return new
        changed = self._typing.rooms_changed_since([*found.continuing, *found.whole], request.since.typing)
        return [*new, *changed]

    async def _receipts(self, request: RoomsRequest, moment: Moment, found: SortedRooms) -> list[ReceiptMoved]:
        """Receipts that moved, in the order in which they did."""
        moved: list[ReceiptMoved] = []
        since, user_id = request.since, moment.view.user_id
        known = [*found.continuing, *found.whole]
        if since is not None and since.position >= self._tail.floor:
            for room in known:
                if self._tail.last_in_room(room) > since.position:
                    changes = self._tail.in_room(room, since.position)
                    moved.extend(change for _, change in changes if isinstance(change, ReceiptMoved))
            own = self._tail.for_user(user_id, since.position)
            here = frozenset(known)
            moved.extend(change for _, change in own if isinstance(change, ReceiptMoved) and change.room in here)
        elif since is not None and known:
            async with self._database.read() as tx:
                moved = await receipts.changed_between(tx, known, user_id, since.position, moment.upto.position)
        if found.entered:
            async with self._database.read() as tx:
                moved.extend(await receipts.in_rooms(tx, found.entered, user_id))
        return moved

    # --- joined rooms

    async def _whole(
        self, request: RoomsRequest, moment: Moment, reading: Reading, span: Span, found: SortedRooms
    ) -> dict[int, RoomNews]:
        """Rooms with all their state: those that are new to the user, and those of which it is asked for."""
        answer: dict[int, RoomNews] = {}
        if not found.entered and not found.whole:
            return answer
        async with self._database.read() as tx:
            for numbers, part in (
                (found.entered, Span(BEGINNING, span.upto, span.limit)),
                (found.whole, span),
            ):
                if numbers:
                    known = await rooms.get_many(tx, numbers)
                    answer |= await self._timelines.fresh(tx, reading, list(known.values()), part)
        for room, each in (await self._timelines.continuing(reading, found.whole, span)).items():
            answer[room].members = each.members
        if request.since is not None:
            for room in found.entered:
                answer[room].is_limited = True  # whatever the client has of the room ends before this
        if request.lazy_members and request.device is not None:
            for room, each in answer.items():
                sent = moment.view.sent_members(request.device, room)
                for event in each.state:
                    if event.type == "m.room.member":
                        sent[UserID(event.state_key or "")] = moment.upto.position
        return answer

    async def _join(
        self,
        request: RoomsRequest,
        moment: Moment,
        sections: RoomSections,
        news: Mapping[int, RoomNews],
        besides: Mapping[int, Besides],
    ) -> None:
        unread = await self._views.unread(moment.view, list(news))
        onlooker = Onlooker(moment.view.user_id, moment.ignored, request.device, moment.upto.position)
        bundles = await self._bundle(request, onlooker, news.values())
        for room, each in news.items():
            is_quiet = request.since is not None and not request.full_state and not is_news(request, each)
            if is_quiet and room not in besides:
                continue
            made = await section(self._timelines, request, each, besides.get(room, NOTHING), bundles)
            add_counts(made, unread.get(room), by_thread=request.filter.unread_thread_notifications)
            sections.join[each.room.room_id] = made
            for member, membership in each.members.items():
                if membership in (Membership.LEAVE, Membership.BAN):
                    sections.parted_from.add(member)

    async def _bundle(self, request: RoomsRequest, onlooker: Onlooker, news: Collection[RoomNews]) -> Bundles:
        """What relates to the events of timelines that begin in the middle; servers exchange events without it."""
        if request.filter.federation_format:
            return NO_BUNDLES
        return await self._timelines.bundle(onlooker, news)

    async def _note_met(
        self,
        user_id: UserID,
        request: RoomsRequest,
        sections: RoomSections,
        entered: Sequence[int],
        news: Mapping[int, RoomNews],
    ) -> None:
        """With whom the user came to be in a room, and with whom they were in rooms that they left and came back to."""
        if request.since is None:
            return
        since = request.since.position
        joined = {
            (room, member)
            for room, each in news.items()
            for member, membership in each.members.items()
            if membership is Membership.JOIN
        }
        if not joined and not entered:
            return
        async with self._database.read() as tx:
            # Who has a new name was there before.
            sections.met.update(member for _, member in joined - await memberships.stayed(tx, joined, since))
            if entered:
                members = await memberships.members_of(tx, entered, (Membership.JOIN,))
                sections.met.update(member for _, member in members)
                sections.parted_from |= await self._timelines.company_at(tx, user_id, entered, since)

    # --- members

    def _forget_sent(self, request: RoomsRequest, view: UserView, found: SortedRooms) -> None:
        """A device that begins anew, or anew in a room, has not been sent any members there."""
        if request.device is not None and request.since is None:
            view.forget_sent(request.device)
        elif request.device is not None:
            for room in found.entered:
                view.forget_sent(request.device, room)

    async def _add_members(
        self, request: RoomsRequest, moment: Moment, news: RoomNews, heroes: Collection[UserID]
    ) -> None:
        """Lazy loading: of the member events only those of senders and heroes, and no change in a gap is lost.

        What a device was sent counts only when a token proves that it arrived.
        """
        shown = {*(each.event.sender for each in news.timeline), *heroes}
        since = 0 if request.since is None else request.since.position
        sent = {} if request.device is None else moment.view.sent_members(request.device, news.room.number)
        known = {user_id for user_id in shown if user_id in sent and sent[user_id] <= since}
        wanted = shown if request.filter.state.include_redundant_members else shown - known
        have = {event.state_key for event in news.state if event.type == "m.room.member"}
        have.update(each.event.state_key for each in news.timeline if each.event.type == "m.room.member")
        missing = {user_id for user_id in wanted if user_id not in have}
        if missing:
            async with self._database.read() as tx:
                members = await self._timelines.members(tx, news.room.number, missing)
            news.state.extend(members)
            after = {event.state_key for event in news.state_after if event.type == "m.room.member"}
            news.state_after.extend(event for event in members if event.state_key not in after)
        sent.update(dict.fromkeys(shown - known, moment.upto.position))

    async def _summaries(self, view: UserView, numbers: Sequence[int]) -> dict[int, JsonObject]:
        """Who the room is named after, and how many are in it: not of rooms of which that is not known yet."""
        numbers = [number for number in numbers if not self._incomplete.has(number)]
        if not numbers:
            return {}
        summaries: dict[int, JsonObject] = {}
        async with self._database.read() as tx:
            counts = await rooms.rows(tx, numbers)
            heroes = await heroes_of_many(tx, numbers, view.user_id)
        for room, row in counts.items():
            summaries[room] = {
                "m.joined_member_count": row.joined_members,
                "m.invited_member_count": row.invited_members,
            }
            if room in heroes:
                summaries[room]["m.heroes"] = heroes[room]
        return summaries

    # --- other rooms

    async def _add_outside(self, request: RoomsRequest, moment: Moment, sections: RoomSections) -> None:
        """Rooms without us: what is newer of them than what their state said when we were in."""
        for room_id, member in moment.outside.items():
            if member.membership in (Membership.LEAVE, Membership.BAN):
                sections.invite.pop(room_id, None)
                sections.knock.pop(room_id, None)
        user_id = moment.view.user_id
        for part, room_id, told in await self._outside.collect(request, user_id, moment.outside, moment.ignored):
            sections.put(part, room_id, told)

    async def _strip(self, moment: Moment, sections: RoomSections, found: SortedRooms) -> None:
        """Rooms to which the user is invited, or at which they knock: what they are told of them."""
        numbers = [*found.invited, *found.knocked]
        if not numbers:
            return
        known = await self._views.rooms_by_number(numbers)
        own: StateKey = ("m.room.member", moment.view.user_id)
        async with self._database.read() as tx:
            for room in numbers:
                state = await self._timelines.current(tx, room, [*STRIPPED, own])
                invite = next((event for event in state if event.type == own[0]), None)
                if invite is not None and invite.sender in moment.ignored:
                    continue
                events = {"events": [stripped(event, known[room]) for event in state]}
                if room in found.invited:
                    sections.invite[known[room].room_id] = {"invite_state": events}
                else:
                    sections.knock[known[room].room_id] = {"knock_state": events}

    async def _leave(
        self,
        request: RoomsRequest,
        reading: Reading,
        sections: RoomSections,
        span: Span,
        left: Sequence[tuple[int, Member]],
    ) -> None:
        """Rooms that the user left, with what happened until then."""
        if not left:
            return
        async with self._database.read() as tx:
            known = await rooms.get_many(tx, [room for room, _ in left])
            for room, member in left:
                until = Span(span.since, member.position, span.limit)
                news = await self._timelines.left(tx, reading, known[room], until)
                onlooker = Onlooker(reading.user_id, reading.ignored, request.device, until.upto)
                bundles = await self._bundle(request, onlooker, [news])
                made = await section(self._timelines, request, news, NOTHING, bundles)
                made.pop("ephemeral", None)
                sections.leave[known[room].room_id] = made
                if request.since is not None:
                    sections.parted_from |= news.parted_from


def _may_change_summary(news: RoomNews) -> bool:
    """Whether members changed, or the room's name, and with it the need for heroes."""
    changed: Iterable[Any] = (*news.state, *(each.event for each in news.timeline if each.event.state_key is not None))
    return bool(news.members) or any(event.type in ("m.room.name", "m.room.canonical_alias") for event in changed)
