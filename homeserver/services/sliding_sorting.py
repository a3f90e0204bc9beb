"""How the rooms of a sliding sync stand to what the client has of them: new, followed, invited to, left."""

from collections.abc import Collection

from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol.types import RoomID
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.required_state import are_lazy, have_all_members
from federation.rooms.room_news import BEGINNING
from homeserver.services.sliding_connections import DIRECT, WHOLE, RoomKey, SentRoom
from homeserver.services.sliding_lists import PRESENT, Arranged, Rule, SlidingMoment
from homeserver.services.user_views import Member
from storage import memberships
from storage.database import Database
from storage.memberships import Membership
from storage.tail import Tail

MAX_OLD_POSITIONS = 4
"""From so many places before the tail's window rooms are continued; others are sent anew, which is as good."""


class Joined(Struct):
    """A room that the user is in, and that may be told of."""

    rule: Rule
    sent: SentRoom | None
    at: int
    """What the client has of the room goes up to here."""
    is_fresh: bool
    """All of it is to be sent, whatever the client has."""

    @property
    def is_expanded(self) -> bool:
        """Whether the timeline is to reach further back than what the client has."""
        return not self.is_fresh and self.sent is not None and self.rule.limit > self.sent.depth

    @property
    def lacks_members(self) -> bool:
        """Whether the client wants the members of a timeline that it got without them."""
        if self.is_fresh or self.sent is None or not are_lazy(self.rule.patterns):
            return False
        return not are_lazy(self.sent.patterns) and not have_all_members(self.sent.patterns)

    @property
    def is_grown(self) -> bool:
        """Whether more of the state is wanted than the client has."""
        return not self.is_fresh and self.sent is not None and not set(self.rule.patterns).issubset(self.sent.patterns)


class Left(Struct):
    """A room that the user left, or was removed from."""

    room: int
    member: Member
    rule: Rule
    sent: SentRoom | None
    at: int

    @property
    def is_fresh(self) -> bool:
        """Whether the client has nothing that it could add to."""
        return self.sent is None or not self.sent.is_whole


class Sorted(Struct):
    """The rooms of an answer."""

    joined: dict[int, Joined] = field(default_factory=dict)
    changed: dict[int, list[int]] = field(default_factory=dict)
    """Of the followed rooms those in which anything came, by where the client is."""
    stripped: list[int] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    outside: list[RoomID] = field(default_factory=list)
    state: dict[RoomKey, SentRoom] = field(default_factory=dict)
    """What the client will have."""


class SlidingSorter:
    """Sorts rooms."""

    def __init__(self, database: Database, tail: Tail, incomplete: IncompleteRooms) -> None:
        self._database = database
        self._tail = tail
        self._incomplete = incomplete

    async def sort(self, moment: SlidingMoment, arranged: Arranged) -> Sorted:
        """Sort the rooms that lists and subscriptions name."""
        found = Sorted()
        self._put_aside(moment, arranged, found)
        renewed: list[int] = []
        for key, rule in arranged.rules.items():
            member, sent = arranged.members[key], moment.sent.get(key)
            at = self.place(moment, sent)
            flags = rule.flags | (DIRECT if key in arranged.direct else 0)
            if not isinstance(key, int):
                if sent is None or member.position > at:
                    found.outside.append(key)
                found.state[key] = SentRoom(None, flags=flags)
            elif member.membership is Membership.JOIN:
                if self._incomplete.has(key) and not are_lazy(rule.patterns):
                    if sent is not None:
                        found.state[key] = replace(sent, upto=at)
                    continue
                joined = found.joined[key] = Joined(rule, sent, at, sent is None or not sent.is_whole)
                if not joined.is_fresh and member.position > at:
                    renewed.append(key)
                found.state[key] = SentRoom(None, rule.patterns, 0 if sent is None else sent.depth, flags)
            elif member.membership in PRESENT:
                if sent is None or sent.left_at or member.position > at:
                    found.stripped.append(key)
                found.state[key] = SentRoom(None, flags=flags)
            else:
                if sent is None or sent.left_at != member.position:
                    found.left.append(Left(key, member, rule, sent, at))
                found.state[key] = SentRoom(None, rule.patterns, WHOLE, flags, member.position)
        await self._find_entered(moment, found, renewed)
        self._find_changed(moment, arranged, found)
        return found

    def place(self, moment: SlidingMoment, sent: SentRoom | None) -> int:
        """Up to where the client has a room."""
        if sent is None or moment.since is None:
            return BEGINNING
        return moment.since.position if sent.upto is None else sent.upto

    def _put_aside(self, moment: SlidingMoment, arranged: Arranged, found: Sorted) -> None:
        """Rooms that are no longer followed stay as they are now."""
        aside: dict[SentRoom, SentRoom] = {}
        for key, sent in moment.sent.items():
            if key in arranged.rules or key not in arranged.members:
                continue
            if sent.upto is None and moment.since is not None:
                kept = aside.get(sent)
                if kept is None:
                    kept = aside[sent] = replace(sent, upto=moment.since.position)
                found.state[key] = kept
            else:
                found.state[key] = sent

    async def _find_entered(self, moment: SlidingMoment, found: Sorted, renewed: Collection[int]) -> None:
        """Into which rooms the user came anew: a member event may be a join, or a new display name."""
        since = 0 if moment.since is None else moment.since.position
        followed = [room for room in renewed if found.joined[room].at == since]
        kept: set[int] = set()
        if followed:
            async with self._database.read() as tx:
                kept = await memberships.joined_throughout(tx, moment.view.user_id, followed, since)
        for room in renewed:
            found.joined[room].is_fresh = room not in kept
        for room, joined in found.joined.items():
            if not joined.is_fresh and self._incomplete.completed_since((room,), joined.at):
                joined.is_fresh = True

    def _find_changed(self, moment: SlidingMoment, arranged: Arranged, found: Sorted) -> None:
        old: dict[int, list[int]] = {}
        for room, joined in found.joined.items():
            if joined.is_fresh:
                continue
            if joined.at >= self._tail.floor:
                if self._tail.last_in_room(room) > joined.at:
                    found.changed.setdefault(joined.at, []).append(room)
            elif arranged.summaries[room].last_event > joined.at:
                old.setdefault(joined.at, []).append(room)
        by_size = sorted(old, key=lambda at: len(old[at]), reverse=True)
        for index, at in enumerate(by_size):
            if index < MAX_OLD_POSITIONS:
                found.changed[at] = old[at]
            else:
                for room in old[at]:
                    found.joined[room].is_fresh = True
