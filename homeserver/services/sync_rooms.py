"""The rooms of a sync: joined, invited, knocked at and left (Client-Server API, "Syncing", "Lazy-loading")."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from federation.protocol.types import JsonObject, StateKey, UserID
from federation.rooms.client_events import stripped
from federation.rooms.timelines import BEGINNING, RoomNews, Span, Timelines
from homeserver.services.account_data import client_event
from homeserver.services.sync_filter import SyncFilter
from homeserver.services.unread_counts import Unread
from homeserver.services.user_views import Member, UserView, UserViews
from homeserver.tokens import StreamToken, page_token
from storage import account_data, memberships, receipts, rooms
from storage.account_data import AccountDataChanged
from storage.database import Database
from storage.ephemeral import Typing
from storage.memberships import Membership
from storage.receipts import ReceiptMoved
from storage.tail import Tail

DEFAULT_LIMIT = 10
MAX_LIMIT = 100

_STRIPPED: tuple[StateKey, ...] = (
    ("m.room.create", ""),
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.topic", ""),
    ("m.room.join_rules", ""),
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
)
"""What somebody who is invited or knocks is told of a room."""


@dataclass(slots=True)
class RoomSections:
    """The parts of an answer that are about rooms, ready to be encoded."""

    join: dict[str, JsonObject] = field(default_factory=dict)
    invite: dict[str, JsonObject] = field(default_factory=dict)
    knock: dict[str, JsonObject] = field(default_factory=dict)
    leave: dict[str, JsonObject] = field(default_factory=dict)
    members: list[tuple[UserID, Membership]] = field(default_factory=list)
    """Whose membership changed in a room that the user is joined to."""
    left_rooms: list[int] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.join or self.invite or self.knock or self.leave)

    def answer(self) -> JsonObject:
        """The `rooms` object, without empty parts."""
        parts = {"join": self.join, "invite": self.invite, "knock": self.knock, "leave": self.leave}
        return {name: part for name, part in parts.items() if part}


def joined_and_left(sections: RoomSections, user_id: UserID) -> tuple[set[UserID], set[UserID]]:
    """Who joined rooms of the user and who left them, besides the user."""
    last = dict(sections.members)
    joined = {member for member, membership in last.items() if membership is Membership.JOIN}
    left = {member for member, membership in last.items() if membership in (Membership.LEAVE, Membership.BAN)}
    return joined - {user_id}, left - {user_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomsRequest:
    """What of a sync request matters to its rooms."""

    since: StreamToken | None
    filter: SyncFilter
    device: int | None
    full_state: bool
    use_state_after: bool
    is_msc4222: bool

    @property
    def lazy_members(self) -> bool:
        """Whether member events come only with what their users sent."""
        return self.filter.state.lazy_load_members

    @property
    def limit(self) -> int:
        """How many events of each timeline."""
        wanted = self.filter.timeline.limit
        return DEFAULT_LIMIT if wanted is None else min(wanted, MAX_LIMIT)


@dataclass(slots=True)
class _Sorted:
    """The user's rooms, by how they stand to the token."""

    continuing: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    invited: list[int] = field(default_factory=list)
    knocked: list[int] = field(default_factory=list)
    left: list[tuple[int, Member]] = field(default_factory=list)


@dataclass(slots=True)
class _Extras:
    """What rooms hold besides events."""

    receipts: dict[int, list[ReceiptMoved]] = field(default_factory=dict)
    account_data: dict[int, list[AccountDataChanged]] = field(default_factory=dict)
    typing: list[int] = field(default_factory=list)
    private: set[int] = field(default_factory=set)
    """Rooms where only the user's own reading moved."""

    def rooms(self) -> set[int]:
        """Where there is anything."""
        return {*self.receipts, *self.account_data, *self.typing, *self.private}


class SyncRooms:
    """Puts the rooms of a sync together."""

    def __init__(
        self, *, database: Database, tail: Tail, views: UserViews, timelines: Timelines, typing: Typing
    ) -> None:
        self._database = database
        self._tail = tail
        self._views = views
        self._timelines = timelines
        self._typing = typing

    async def collect(
        self,
        request: RoomsRequest,
        view: UserView,
        upto: StreamToken,
        ignored: Collection[UserID],
        changed_data: Sequence[AccountDataChanged],
    ) -> RoomSections:
        """The sections of all rooms in which anything happened after the token."""
        sorted_rooms = await self._sort(request, view)
        sections = RoomSections(left_rooms=[room for room, _ in sorted_rooms.left])
        extras = await self._extras(request, view, upto, sorted_rooms, ignored, changed_data)
        since = BEGINNING if request.since is None else request.since.position
        span = Span(since, upto.position, request.limit)
        news = await self._timelines.continuing(sorted_rooms.continuing, span, request.filter.timeline, ignored)
        quiet = extras.rooms().intersection(sorted_rooms.continuing) - news.keys()
        if quiet:
            known = await self._views.rooms_by_number(list(quiet))
            news |= {room: RoomNews(room=known[room], before=since) for room in quiet}
        fresh = await self._fresh(request, view, span, sorted_rooms.fresh)
        await self._join(request, view, sections, news, fresh, extras)
        await self._strip(request, view, sections, sorted_rooms, ignored)
        await self._leave(request, view, sections, span, sorted_rooms.left)
        return sections

    # --- which rooms

    async def _sort(self, request: RoomsRequest, view: UserView) -> _Sorted:
        found = _Sorted()
        since = None if request.since is None else request.since.position
        unsure: list[int] = []
        for room, member in (await self._allowed(request, view)).items():
            is_new = since is None or member.position > since
            if member.membership is Membership.JOIN:
                whole = since is None or request.full_state
                (found.fresh if whole else unsure if is_new else found.continuing).append(room)
            elif is_new and member.membership is Membership.INVITE:
                found.invited.append(room)
            elif is_new and member.membership is Membership.KNOCK:
                found.knocked.append(room)
            elif is_new and since is not None:
                found.left.append((room, member))
        if since is None and request.filter.include_leave:
            await self._add_left_before(view, BEGINNING, found)
        elif since is not None and since < view.listener.known_from:
            await self._add_left_before(view, since, found)
        if unsure and since is not None:
            await self._sort_unsure(request, view, unsure, found)
        if since is None and request.device is not None:
            view.forget_sent(request.device)
        return found

    async def _allowed(self, request: RoomsRequest, view: UserView) -> dict[int, Member]:
        """The user's rooms that the filter lets through."""
        if request.filter.rooms is None and not request.filter.not_rooms:
            return view.rooms
        known = await self._views.rooms_by_number(list(view.rooms))
        return {
            room: member
            for room, member in view.rooms.items()
            if room in known and request.filter.allows_room(known[room].room_id)
        }

    async def _sort_unsure(self, request: RoomsRequest, view: UserView, unsure: Sequence[int], found: _Sorted) -> None:
        """A member event after the token may be a join, or a new display name."""
        since = 0 if request.since is None else request.since.position
        async with self._database.read() as tx:
            kept = await memberships.joined_throughout(tx, view.user_id, unsure, since)
        for room in unsure:
            (found.continuing if room in kept else found.fresh).append(room)
            if room not in kept and request.device is not None:
                view.forget_sent(request.device, room)

    async def _add_left_before(self, view: UserView, since: int, found: _Sorted) -> None:
        """Rooms that were left before this process began to follow the user."""
        async with self._database.read() as tx:
            left = await memberships.rooms_of(tx, view.user_id, (Membership.LEAVE, Membership.BAN))
            forgotten = await memberships.forgotten(tx, view.user_id)
        known = {room for room, _ in found.left}
        found.left.extend(
            (room, Member(membership, position))
            for room, (membership, position) in left.items()
            if position > since and room not in known and room not in forgotten
        )

    # --- what besides events

    async def _extras(  # one part of `collect`
        self,
        request: RoomsRequest,
        view: UserView,
        upto: StreamToken,
        sorted_rooms: _Sorted,
        ignored: Collection[UserID],
        changed_data: Sequence[AccountDataChanged],
    ) -> _Extras:
        extras = _Extras()
        since = request.since
        for change in changed_data:
            if change.room is not None and request.filter.room_account_data.allows_event(change.type, None, None):
                extras.account_data.setdefault(change.room, []).append(change)
        joined = {*sorted_rooms.continuing, *sorted_rooms.fresh}
        if request.filter.ephemeral.allows_event("m.typing", None, None):
            if since is not None:
                extras.typing = self._typing.rooms_changed_since(list(joined), since.typing)
            else:
                extras.typing = [room for room in joined if self._typing.users_in(room)]
        if not request.filter.ephemeral.allows_event("m.receipt", None, None):
            return extras
        for moved in await self._receipts(view, since, upto, sorted_rooms):
            if moved.is_private:
                extras.private.add(moved.room)
            if moved.user_id not in ignored:
                extras.receipts.setdefault(moved.room, []).append(moved)
        return extras

    async def _receipts(
        self, view: UserView, since: StreamToken | None, upto: StreamToken, sorted_rooms: _Sorted
    ) -> list[ReceiptMoved]:
        found: list[ReceiptMoved] = []
        if since is not None and since.position >= self._tail.floor:
            for room in sorted_rooms.continuing:
                if self._tail.last_in_room(room) > since.position:
                    changes = self._tail.in_room(room, since.position)
                    found.extend(change for _, change in changes if isinstance(change, ReceiptMoved))
            own = self._tail.for_user(view.user_id, since.position)
            found.extend(change for _, change in own if isinstance(change, ReceiptMoved))
        elif since is not None and sorted_rooms.continuing:
            async with self._database.read() as tx:
                found = await receipts.changed_between(
                    tx, sorted_rooms.continuing, view.user_id, since.position, upto.position
                )
        if sorted_rooms.fresh:
            async with self._database.read() as tx:
                found.extend(await receipts.in_rooms(tx, sorted_rooms.fresh, view.user_id))
        return found

    # --- joined rooms

    async def _fresh(
        self, request: RoomsRequest, view: UserView, span: Span, numbers: Sequence[int]
    ) -> dict[int, RoomNews]:
        if not numbers:
            return {}
        whole = Span(BEGINNING, span.upto, span.limit)
        if request.full_state and request.since is not None:
            whole = span
        async with self._database.read() as tx:
            known = await rooms.get_many(tx, numbers)
            return await self._timelines.fresh(
                tx,
                view.user_id,
                list(known.values()),
                whole,
                request.filter.timeline,
                lazy_members=request.lazy_members,
            )

    async def _join(  # one part of `collect`
        self,
        request: RoomsRequest,
        view: UserView,
        sections: RoomSections,
        news: dict[int, RoomNews],
        fresh: dict[int, RoomNews],
        extras: _Extras,
    ) -> None:
        if fresh and request.since is not None:
            await self._add_own_data(request, view, fresh, extras)
        summaries = await self._summaries(
            view, [*fresh, *(room for room, each in news.items() if each.members or _names(each))]
        )
        unread = await self._views.unread(view, [*news, *fresh])
        for room, each in (*news.items(), *fresh.items()):
            if room in news and request.lazy_members:
                await self._add_senders(request, view, each)
            elif room in fresh and request.lazy_members and request.device is not None:
                senders = view.sent_members(request.device, room)
                senders.update(UserID(event.state_key or "") for event in each.state if event.type == "m.room.member")
            section = await self._section(request, each, extras, room)
            if not section and room in news and room not in extras.private:
                continue
            if room in summaries:
                section["summary"] = summaries[room]
            _add_counts(section, unread.get(room), by_thread=request.filter.unread_thread_notifications)
            sections.join[each.room.room_id] = section
            sections.members.extend(each.members)
        if fresh and request.since is not None:
            async with self._database.read() as tx:
                members = await memberships.members_of(tx, list(fresh), (Membership.JOIN,))
            sections.members.extend((user_id, Membership.JOIN) for _, user_id in members)

    async def _add_own_data(
        self, request: RoomsRequest, view: UserView, fresh: dict[int, RoomNews], extras: _Extras
    ) -> None:
        """A room that is new to the user may have had data of theirs before."""
        async with self._database.read() as tx:
            for change in await account_data.all_of(tx, view.user_id):
                if change.room in fresh and request.filter.room_account_data.allows_event(change.type, None, None):
                    known = extras.account_data.setdefault(change.room, [])
                    if not any(each.type == change.type for each in known):
                        known.append(change)

    async def _section(self, request: RoomsRequest, news: RoomNews, extras: _Extras, room: int) -> JsonObject:
        """One joined room; empty when there is nothing to tell."""
        section: JsonObject = {}
        shown = news.state_after if request.use_state_after else news.state
        wanted = request.filter.state
        if not wanted.is_trivial:
            shown = [event for event in shown if wanted.allows_event(event.type, event.sender, event.content)]
        if news.timeline or news.is_limited or shown:
            section["timeline"] = {
                "events": _fragments(request.filter, await self._timelines.render(news.timeline, request.device)),
                "limited": news.is_limited,
                "prev_batch": page_token(news.before),
            }
        if shown or section:
            name = "state"
            if request.use_state_after:
                name = "org.matrix.msc4222.state_after" if request.is_msc4222 else "state_after"
            state = await self._timelines.render_state(shown, request.device)
            section[name] = {"events": _fragments(request.filter, state)}
        ephemeral: list[JsonObject] = []
        if room in extras.typing:
            ephemeral.append({"type": "m.typing", "content": {"user_ids": self._typing.users_in(room)}})
        if room in extras.receipts:
            ephemeral.append({"type": "m.receipt", "content": _receipt_content(extras.receipts[room])})
        if ephemeral:
            section["ephemeral"] = {"events": ephemeral}
        if room in extras.account_data:
            own = [orjson.Fragment(client_event(change)) for change in extras.account_data[room]]
            section["account_data"] = {"events": own}
        return section

    async def _add_senders(self, request: RoomsRequest, view: UserView, news: RoomNews) -> None:
        """Lazy loading: of the member events only those of the timeline's senders, each once for the device."""
        senders = {each.event.sender for each in news.timeline}
        known = set() if request.device is None else view.sent_members(request.device, news.room.number)
        wanted = senders if request.filter.state.include_redundant_members else senders - known
        changed = {*(user_id for user_id, _ in news.members), *senders, view.user_id}
        for name in ("state", "state_after"):
            kept = [
                event for event in getattr(news, name) if event.type != "m.room.member" or event.state_key in changed
            ]
            setattr(news, name, kept)
        have = {event.state_key for event in news.state if event.type == "m.room.member"}
        have.update(each.event.state_key for each in news.timeline if each.event.type == "m.room.member")
        missing = wanted - {UserID(key) for key in have if key is not None}
        if missing:
            async with self._database.read() as tx:
                members = await self._timelines.members(tx, news.room.number, missing)
            news.state.extend(members)
            after = {event.state_key for event in news.state_after}
            news.state_after.extend(event for event in members if event.state_key not in after)
        known |= senders

    async def _summaries(self, view: UserView, numbers: Sequence[int]) -> dict[int, JsonObject]:
        if not numbers:
            return {}
        summaries: dict[int, JsonObject] = {}
        async with self._database.read() as tx:
            counts = await rooms.rows(tx, numbers)
            heroes = await self._timelines.heroes_of_many(tx, numbers, view.user_id)
        for room, row in counts.items():
            summaries[room] = {
                "m.joined_member_count": row.joined_members,
                "m.invited_member_count": row.invited_members,
            }
            if room in heroes:
                summaries[room]["m.heroes"] = heroes[room]
        return summaries

    # --- other rooms

    async def _strip(
        self,
        request: RoomsRequest,
        view: UserView,
        sections: RoomSections,
        sorted_rooms: _Sorted,
        ignored: Collection[UserID],
    ) -> None:
        """Rooms to which the user is invited, or at which they knock: what they are told of them."""
        numbers = [*sorted_rooms.invited, *sorted_rooms.knocked]
        if not numbers:
            return
        known = await self._views.rooms_by_number(numbers)
        async with self._database.read() as tx:
            for room in numbers:
                own: StateKey = ("m.room.member", view.user_id)
                state = await self._timelines.current(tx, room, [*_STRIPPED, own])
                invite = next((event for event in state if event.type == own[0]), None)
                if invite is not None and invite.sender in ignored:
                    continue
                events = {"events": [stripped(event) for event in state]}
                if room in sorted_rooms.invited:
                    sections.invite[known[room].room_id] = {"invite_state": events}
                else:
                    sections.knock[known[room].room_id] = {"knock_state": events}

    async def _leave(
        self,
        request: RoomsRequest,
        view: UserView,
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
                if not request.filter.allows_room(known[room].room_id):
                    continue
                until = Span(span.since, member.position, span.limit)
                news = await self._timelines.left(tx, view.user_id, known[room], until, request.filter.timeline)
                sections.leave[known[room].room_id] = await self._section(request, news, _Extras(), room)


def _names(news: RoomNews) -> bool:
    """Whether the room's name may have changed, and with it the need for heroes."""
    changed: Iterable[Any] = (*news.state, *(each.event for each in news.timeline if each.event.state_key is not None))
    return any(event.type in ("m.room.name", "m.room.canonical_alias") for event in changed)


def _fragments(wanted: SyncFilter, events: Sequence[bytes]) -> list[Any]:
    if wanted.event_fields is None:
        return [orjson.Fragment(event) for event in events]
    return [wanted.shape(orjson.loads(event)) for event in events]


def _receipt_content(moved: Sequence[ReceiptMoved]) -> JsonObject:
    content: JsonObject = {}
    for receipt in moved:
        data: JsonObject = {"ts": receipt.ts}
        if receipt.thread:
            data["thread_id"] = receipt.thread
        content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})[receipt.user_id] = data
    return content


def _add_counts(section: JsonObject, unread: Unread | None, *, by_thread: bool) -> None:
    if unread is None:
        return
    if not by_thread:
        section["unread_notifications"] = _counts(unread.total)
        return
    section["unread_notifications"] = _counts(unread.main.count)
    threads = {root: _counts(counts.count) for root, counts in unread.threads.items() if any(counts.count)}
    if threads:
        section["unread_thread_notifications"] = threads


def _counts(pair: tuple[int, int]) -> JsonObject:
    return {"notification_count": pair[0], "highlight_count": pair[1]}
