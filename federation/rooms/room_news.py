"""What a reader is told of a room, and how it follows from the events and the state that were read. Pure:
`timelines.py` reads them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from federation.protocol.types import StateKey, UserID
from federation.rooms.reader import Seen
from storage.events import StoredEvent as StoredEvent
from storage.events import TrunkChange
from storage.memberships import Membership
from storage.room_state import TRUNK
from storage.room_state import Span as StateSpan
from storage.rooms import Room

BEGINNING = -(1 << 62)
"""Before every position, those of fetched history included."""


class Wanted(Protocol):
    """Which events a reader asked for (`homeserver/services/sync_filter.py`)."""

    @property
    def is_trivial(self) -> bool:
        """Whether every event passes."""

    @property
    def related_by_senders(self) -> Collection[str] | None:
        """Only events that one of these users relates to."""

    @property
    def related_by_rel_types(self) -> Collection[str] | None:
        """Only events that others relate to in one of these ways."""

    @property
    def needs_relations(self) -> bool:
        """Whether only what relates to an event tells if it passes."""

    def allows_room(self, room_id: str) -> bool:
        """Whether events of this room may pass."""

    def allows_event(self, event_type: str, sender: str | None, content: object) -> bool:
        """Whether an event passes, as far as it tells by itself."""


class Span(Struct, frozen=True):
    """What part of the rooms' history is asked for: events after `since` up to `upto`, the newest `limit` of them."""

    since: int
    upto: int
    limit: int


class Reading(Struct, frozen=True):
    """Who reads, and what of a timeline they want."""

    user_id: UserID
    wanted: Wanted
    ignored: Collection[UserID] = ()
    """Whose messages they do not want to see; state is shown whoever set it."""
    lazy_members: bool = False
    """The state holds the member events of the timeline's senders, of the reader, and of `heroes` alone."""
    heroes: Mapping[int, Collection[UserID]] = field(default_factory=dict)
    """By room: who gives it its name."""
    joined_since: Mapping[int, int] = field(default_factory=dict)
    """By room: the version from which on the reader has been joined by one and the same member event, up to now."""

    @property
    def drops_some(self) -> bool:
        """Whether events that the reader may see are left out."""
        return bool(self.ignored) or not self.wanted.is_trivial or self.wanted.needs_relations

    def fetch_limit(self, limit: int) -> int:
        """How many events to look at: one more than are shown, and more where some are dropped."""
        return 10 * limit + 50 if self.drops_some else limit + 1


class RoomNews(Struct, kw_only=True):
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
    removed: list[StateKey] = field(default_factory=list)
    """Entries that the state held at `since` and no longer holds."""
    members: dict[UserID, Membership] = field(default_factory=dict)
    """Whose membership changed, to what."""
    parted_from: set[UserID] = field(default_factory=set)
    """Of a room that the reader left: with whom they were in it."""
    is_shared: bool = False
    """The events are those of the tail's window, which other readers are shown, too."""


class Delta(Struct):
    """What changed in a room's current state: by key, the event's position."""

    before: dict[StateKey, int] = field(default_factory=dict)
    """Up to the timeline's start."""
    whole: dict[StateKey, int] = field(default_factory=dict)
    removed: set[StateKey] = field(default_factory=set)
    """What is no longer there."""


def shown_members(reading: Reading, news: RoomNews) -> Collection[UserID] | None:
    """Whose member events the state holds; None: everybody's."""
    if not reading.lazy_members:
        return None
    heroes = reading.heroes.get(news.room.number, ())
    return {reading.user_id, *heroes, *(each.event.sender for each in news.timeline)}


def drop_members(reading: Reading, news: RoomNews) -> None:
    """Leave out of the state the members whom the reader does not need."""
    if (kept := shown_members(reading, news)) is not None:
        shown = {*kept, *news.members}  # nobody's change in a gap is lost
        news.state = [event for event in news.state if event.type != "m.room.member" or event.state_key in shown]
        news.state_after = [
            event for event in news.state_after if event.type != "m.room.member" or event.state_key in shown
        ]


def add_own_membership(reading: Reading, news: RoomNews, seen: Sequence[Seen]) -> None:
    """After a stay, or without one, the reader's membership may go on changing: the state afterwards has the last."""
    key: StateKey = ("m.room.member", reading.user_id)
    own = [each.event for each in seen if (each.event.type, each.event.state_key) == key]
    if own:
        others = [event for event in news.state_after if (event.type, event.state_key) != key]
        news.state_after = [*others, own[-1]]


def last_stay(history: Sequence[StateSpan], left_at: int) -> tuple[int, int] | None:
    """The versions at which the user last came into the room, and left it; None for who never was in it.

    They may have come back since: what they are told is how it was when they left.
    """
    history = [each for each in history if each.since <= left_at]
    last = next((i for i in range(len(history) - 1, -1, -1) if history[i].membership is Membership.JOIN), None)
    if last is None:
        return None
    first = last
    while first > 0 and history[first - 1].membership is Membership.JOIN:
        first -= 1
    until = history[last].until
    return history[first].since, left_at if until is None else min(until, left_at)


def after_hidden_state(looked_at: Sequence[StoredEvent], seen: Sequence[Seen]) -> Sequence[Seen]:
    """What follows the last change of state that the reader may not see: before it, the timeline would mislead."""
    if len(seen) == len(looked_at):
        return seen
    shown = {each.event.position for each in seen}
    hidden = [event.position for event in looked_at if event.position not in shown and event.state_key is not None]
    return [each for each in seen if each.event.position > max(hidden)] if hidden else seen


def cut(reading: Reading, room: Room, seen: Sequence[Seen], span: Span) -> RoomNews:
    """Leave out what the reader does not want, and keep the newest."""
    wanted, ignored = reading.wanted, reading.ignored
    if ignored:
        seen = [each for each in seen if each.event.state_key is not None or each.event.sender not in ignored]
    if not wanted.is_trivial:
        seen = [each for each in seen if wanted.allows_event(each.event.type, each.event.sender, each.event.content)]
    if not wanted.allows_room(room.room_id):
        seen = []
    is_limited = len(seen) > span.limit
    timeline = list(seen[-span.limit :]) if span.limit else []
    before = timeline[0].event.position - 1 if timeline else (span.upto if is_limited else span.since)
    return RoomNews(room=room, timeline=timeline, is_limited=is_limited, before=before)


def set_limited(found: Mapping[int, RoomNews], cut: Collection[int], span: Span) -> None:
    """Tell that the timelines of these rooms begin behind a gap."""
    for number in cut:
        news = found[number]
        news.is_limited = True
        if not news.timeline:
            news.before = span.upto


def window_delta(trunk: Sequence[TrunkChange], news: RoomNews) -> Delta:
    """What these changes did, in their order."""
    start = news.timeline[0].event.position if news.timeline else None
    delta = Delta()
    for entry in trunk:
        key = (entry.type, entry.state_key)
        if entry.event is None:
            delta.removed.add(key)
            continue
        delta.removed.discard(key)
        delta.whole[key] = entry.event
        if start is None or entry.event < start:
            delta.before[key] = entry.event
    return delta


def set_state(news: RoomNews, delta: Delta, held: Mapping[int, StoredEvent]) -> None:
    """Tell of the state that changed."""
    shown = {each.event.position for each in news.timeline}
    before = dict(delta.before)
    # What a merge made current, or a filter dropped, does not stand in the timeline.
    before.update({key: event for key, event in delta.whole.items() if event not in shown})
    news.state = [held[event] for event in before.values() if event in held and event not in shown]
    news.state_after = [held[event] for event in delta.whole.values() if event in held]
    news.removed = sorted(delta.removed)


def version_at_start(news: RoomNews, now: int) -> int:
    """The room's version at the timeline's start."""
    if not news.timeline:
        return now
    first = news.timeline[0].event
    return first.version if first.line == TRUNK else max(first.trunk_version - 1, 0)


def select(
    state: Mapping[StateKey, int], held: Mapping[int, StoredEvent], members: Collection[UserID] | None
) -> list[StoredEvent]:
    """The events of a whole state; of members only these, if any are named."""
    return [
        held[position]
        for key, position in state.items()
        if position in held and (members is None or key[0] != "m.room.member" or key[1] in members)
    ]
