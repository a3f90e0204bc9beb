"""Which of a user's rooms a sliding sync is about: its lists, sorted by activity, and its subscriptions (MSC4186)."""

import asyncio
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct, field

from federation.protocol.types import RoomID, UserID
from federation.rooms.required_state import Patterns
from homeserver.services.list_facts import ListFacts, UserFacts
from homeserver.services.outside_summaries import OutsideSummaries
from homeserver.services.room_recency import RoomSummaries, RoomSummary
from homeserver.services.sliding_connections import ACCOUNT_DATA, RECEIPTS, TYPING, RoomKey, Rooms
from homeserver.services.sliding_request import Extensions, RoomConfig, RoomFilter, Scope, Wanted
from homeserver.services.user_views import Member, UserView, UserViews, without_invites
from homeserver.tokens import StreamToken
from storage import memberships, rooms
from storage.database import Database
from storage.memberships import Membership

PRESENT = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)


class SlidingMoment(Struct):
    """A user's rooms at one place of the log, and what of them the client has."""

    view: UserView
    since: StreamToken | None
    """Where the client is; None at the beginning of a connection."""
    upto: StreamToken
    members: dict[int, Member]
    outside: dict[RoomID, Member]
    sent: Rooms
    ignored: Collection[UserID]
    hides_invites: bool
    """Whether the user blocks them."""


class Rule(Struct):
    """What of a room is wanted, by all lists and subscriptions that it is in."""

    patterns: Patterns
    limit: int
    flags: int
    """The extensions that are wanted for it."""
    lists: tuple[str, ...]


class Arranged(Struct):
    """The rooms that an answer may be about."""

    counts: dict[str, int] = field(default_factory=dict)
    rules: dict[RoomKey, Rule] = field(default_factory=dict)
    members: dict[RoomKey, Member] = field(default_factory=dict)
    """How the user stands to every room that they may be told of."""
    direct: frozenset[RoomKey] = frozenset()
    summaries: dict[int, RoomSummary] = field(default_factory=dict)
    """Of the rooms that the user is joined to."""


class RoomLists:
    """Arranges users' rooms."""

    def __init__(
        self,
        database: Database,
        views: UserViews,
        summaries: RoomSummaries,
        facts: ListFacts,
        outside: OutsideSummaries,
    ) -> None:
        self._database = database
        self._views = views
        self._summaries = summaries
        self._facts = facts
        self._outside = outside
        self.read_rooms = facts.with_rooms
        """For the view of who begins here: what lists need to know of them comes along."""

    async def facts(self, user_id: UserID, wanted: Wanted) -> UserFacts:
        """What lists need to know of the user, as of where the tail is."""
        return await self._facts.get(user_id, with_tags=any(each.filter.needs_tags for each in wanted.lists))

    async def arrange(self, wanted: Wanted, moment: SlidingMoment) -> Arranged:
        """The rooms of each list, and what of each room is wanted."""
        facts = await self.facts(moment.view.user_id, wanted)
        found = Arranged(members=await self._members(moment, facts), direct=facts.direct or frozenset())
        joined = [room for room, member in moment.members.items() if member.membership is Membership.JOIN]
        found.summaries = await self._summaries.load(joined)
        entries = _by_activity(found, _gone(found, moment) - facts.removed.keys())
        matched: dict[RoomKey, list[int]] = {}
        for index, each in enumerate(wanted.lists):
            if index:
                await asyncio.sleep(0)  # others have their turn between the lists of who has many rooms
            passing = entries
            if each.filter != _EVERYTHING:
                passes = await self._filter(each.filter, moment, facts, found)
                passing = [key for key in entries if passes(key)]
            found.counts[each.name] = len(passing)
            for key in _in_ranges(passing, each.ranges):
                matched.setdefault(key, []).append(index)
        await self._subscribe(wanted, moment, found, matched)
        merged: dict[tuple[int, ...], Rule] = {}
        for key, indices in matched.items():
            rule = merged.get(tuple(indices))
            if rule is None:
                rule = merged[tuple(indices)] = _merge(wanted, indices)
            found.rules[key] = rule
        return found

    async def _members(self, moment: SlidingMoment, facts: UserFacts) -> dict[RoomKey, Member]:
        """The rooms that the user may be told of: those that they left only if the client knows them."""
        removed = facts.removed
        found: dict[RoomKey, Member] = {
            **removed,
            **{
                room: member
                for room, member in moment.members.items()
                if member.membership in PRESENT or room in removed or room in moment.sent
            },
            **{
                room_id: member
                for room_id, member in moment.outside.items()
                if member.membership in PRESENT or room_id in moment.sent
            },
        }
        gone = [key for key in moment.sent if isinstance(key, int) and key > 0 and key not in found]
        unknown = [room for room in gone if not moment.sent[room].left_at]
        left = await self._left(moment.view.user_id) if unknown else {}
        for room in gone:
            found[room] = left.get(room) or Member(Membership.LEAVE, moment.sent[room].left_at)
        if moment.ignored:
            for key in await self._outside.invited_by(moment.view.user_id, found, moment.ignored):
                del found[key]
        return without_invites(found) if moment.hides_invites else found

    async def _left(self, user_id: UserID) -> dict[int, Member]:
        """All rooms that the user left, for what they left before this process followed them."""
        async with self._database.read() as tx:
            left = await memberships.rooms_of(tx, user_id, (Membership.LEAVE, Membership.BAN))
        return {room: Member(*found) for room, found in left.items()}

    async def _subscribe(
        self, wanted: Wanted, moment: SlidingMoment, found: Arranged, matched: dict[RoomKey, list[int]]
    ) -> None:
        """Subscriptions count after the lists; to rooms that never were the user's they are as if they were not."""
        if not wanted.subscriptions:
            return
        room_ids = [room_id for room_id, _ in wanted.subscriptions]
        keys = {room_id: number for number, room_id in (await self._ids(found)).items()}
        missing = [room_id for room_id in room_ids if room_id not in keys and room_id not in found.members]
        if missing:
            async with self._database.read() as tx:
                numbers = await rooms.find_many(tx, missing)
                left = await self._left(moment.view.user_id) if numbers else {}
                forgotten = await memberships.forgotten(tx, moment.view.user_id) if numbers else set()
            for room_id, number in numbers.items():
                if number in left and number not in forgotten:
                    keys[room_id], found.members[number] = number, left[number]
        for index, room_id in enumerate(room_ids, len(wanted.lists)):
            key = keys.get(room_id, room_id)
            if key in found.members:
                matched.setdefault(key, []).append(index)

    async def _ids(self, found: Arranged) -> dict[int, RoomID]:
        known = await self._views.rooms_by_number([key for key in found.members if isinstance(key, int)])
        return {number: room.room_id for number, room in known.items()}

    # --- filters

    async def _filter(
        self, wanted: RoomFilter, moment: SlidingMoment, facts: UserFacts, found: Arranged
    ) -> Callable[[RoomKey], bool]:
        """What says whether a room passes; all that it needs is loaded."""
        tests: list[Callable[[RoomKey], bool]] = []
        members, direct = found.members, found.direct
        numbers = [key for key in members if isinstance(key, int)]
        if wanted.is_invited is not None:
            tests.append(lambda key: (members[key].membership is Membership.INVITE) is wanted.is_invited)
        if wanted.is_dm is not None:
            tests.append(lambda key: (key in direct) is wanted.is_dm)
        if wanted.needs_tags:
            tests.append(_tag_test(wanted, facts.tags or {}))
        if wanted.is_encrypted is not None:
            summaries = await self._summaries.load(numbers)
            encrypted: Mapping[RoomKey, bool] = {
                **(await self._summaries.load_encryption(summaries)),
                **(await self._outside.encrypted(moment.view.user_id, moment.outside)),
            }
            tests.append(lambda key: encrypted.get(key) is wanted.is_encrypted)
        if wanted.needs_types:
            tests.append(await self._type_test(wanted, moment, numbers))
        if wanted.spaces is not None:
            tests.append(await self._space_test(wanted.spaces, moment, found))
        return lambda key: all(test(key) for test in tests)

    async def _type_test(
        self, wanted: RoomFilter, moment: SlidingMoment, numbers: Collection[int]
    ) -> Callable[[RoomKey], bool]:
        types: Mapping[RoomKey, str | None] = {
            **(await self._summaries.load_types(await self._summaries.load(numbers))),
            **(await self._outside.types(moment.view.user_id, moment.outside)),
        }

        def passes(key: RoomKey) -> bool:
            if key not in types or types[key] in wanted.not_room_types:
                return False
            return wanted.room_types is None or types[key] in wanted.room_types

        return passes

    async def _space_test(
        self, spaces: Collection[str], moment: SlidingMoment, found: Arranged
    ) -> Callable[[RoomKey], bool]:
        ids = await self._ids(found)
        joined = [
            room
            for room, room_id in ids.items()
            if room_id in spaces and found.members[room].membership is Membership.JOIN
        ]
        children = await self._summaries.load_children(joined)
        return lambda key: (ids.get(key, "") if isinstance(key, int) else key) in children


_EVERYTHING = RoomFilter()


def _by_activity(found: Arranged, gone: Collection[RoomKey]) -> list[RoomKey]:
    """All rooms but these, those first whose newest event is the newest; of rooms that the user is not in their own
    membership counts."""
    places: dict[RoomKey, int] = {key: member.position for key, member in found.members.items()}
    for room, summary in found.summaries.items():
        if summary.last_event > places.get(room, summary.last_event):
            places[room] = summary.last_event
    for key in gone:
        del places[key]
    return sorted(places, key=places.__getitem__, reverse=True)


def _gone(found: Arranged, moment: SlidingMoment) -> set[RoomKey]:
    """Of which rooms the client was told that the user has left them: lists no longer hold these."""
    return {
        key
        for key, sent in moment.sent.items()
        if sent.left_at and key in found.members and found.members[key].position == sent.left_at
    }


def _tag_test(wanted: RoomFilter, tags: Mapping[int, frozenset[str]]) -> Callable[[RoomKey], bool]:
    def passes(key: RoomKey) -> bool:
        own = tags.get(key, frozenset()) if isinstance(key, int) else frozenset()
        return own.isdisjoint(wanted.not_tags) and (wanted.tags is None or not own.isdisjoint(wanted.tags))

    return passes


def _in_ranges(entries: list[RoomKey], ranges: tuple[tuple[int, int], ...] | None) -> Collection[RoomKey]:
    if ranges is None:
        return entries
    if len(ranges) == 1:
        return entries[ranges[0][0] : ranges[0][1] + 1]
    return dict.fromkeys(key for first, last in ranges for key in entries[first : last + 1])


# --- putting together what is wanted of one room


def _merge(wanted: Wanted, indices: list[int]) -> Rule:
    lists = [wanted.lists[index] for index in indices if index < len(wanted.lists)]
    subscribed = [wanted.subscriptions[index - len(wanted.lists)] for index in indices[len(lists) :]]
    configs: list[RoomConfig] = [*(each.config for each in lists), *(config for _, config in subscribed)]
    patterns = tuple(dict.fromkeys(config.required_state for config in configs))
    names = tuple(each.name for each in lists)
    room_ids = [room_id for room_id, _ in subscribed]
    return Rule(
        patterns, max(config.timeline_limit for config in configs), _flags(wanted.extensions, names, room_ids), names
    )


def _flags(extensions: Extensions, lists: Collection[str], room_ids: Collection[str]) -> int:
    """The extensions that are wanted for a room in these lists, or with these subscriptions."""

    def has(scope: Scope | None) -> bool:
        return scope is not None and (
            any(scope.lists is None or name in scope.lists for name in lists)
            or any(scope.rooms is None or room_id in scope.rooms for room_id in room_ids)
        )

    flags = ACCOUNT_DATA if has(extensions.account_data) else 0
    flags |= RECEIPTS if has(extensions.receipts) else 0
    return flags | (TYPING if has(extensions.typing) else 0)
