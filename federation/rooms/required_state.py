"""Which state of a room a client wants, and reading it for many rooms at once (MSC4186, "required_state")."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct, field

from federation.protocol.types import EventID, StateKey
from federation.rooms.current_rooms import CurrentRooms
from storage import events
from storage.append_events import RoomEvents
from storage.database import Tx
from storage.events import StoredEvent as StoredEvent
from storage.log_entries import Change
from storage.state_matching import StatePart

MAX_KEPT = 10_000
MAX_KEPT_BYTES = 2048
"""State events that are remembered, and how large one of them may be."""

MEMBER = "m.room.member"
Element = tuple[str | None, str | None]
"""Type and state key; None is any."""


class StatePattern(Struct, frozen=True):
    """What one rule asks for. Where members are lazy, an element that matches everything does not mean them."""

    include: frozenset[Element] = frozenset()
    exclude: frozenset[Element] = frozenset()
    lazy_members: bool = False

    def matches(self, event_type: str, state_key: str) -> bool:
        """Whether an entry is asked for, apart from members who come with what they sent."""
        if not _any_matches(self.include, event_type, state_key, named_only=self.lazy_members and event_type == MEMBER):
            return False
        return not _any_matches(self.exclude, event_type, state_key, named_only=False)

    @property
    def has_all_members(self) -> bool:
        """Whether every member event is asked for."""
        everyone = (MEMBER, None) in self.include or (not self.lazy_members and (None, None) in self.include)
        return everyone and not self.exclude & {(MEMBER, None), (None, None)}


Patterns = tuple[StatePattern, ...]
"""Whatever one of them asks for."""


def _any_matches(elements: Collection[Element], event_type: str, state_key: str, *, named_only: bool) -> bool:
    if (event_type, state_key) in elements or (event_type, None) in elements:
        return True
    return (None, state_key) in elements or (not named_only and (None, None) in elements)


def matches(patterns: Patterns, event_type: str, state_key: str) -> bool:
    """Whether one of the patterns asks for an entry."""
    return any(pattern.matches(event_type, state_key) for pattern in patterns)


@lru_cache(256)
def are_lazy(patterns: Patterns) -> bool:
    """Whether members come with what they sent: some pattern says so, and none asks for all of them."""
    return any(each.lazy_members for each in patterns) and not any(each.has_all_members for each in patterns)


def have_all_members(patterns: Patterns) -> bool:
    """Whether some pattern asks for every member."""
    return any(each.has_all_members for each in patterns)


class Wish(Struct):
    """What is wanted of one room."""

    patterns: Patterns = ()
    besides: Patterns = ()
    """What the reader has already."""
    entries: set[StateKey] = field(default_factory=set)
    """What is needed whatever the patterns say."""
    known: Mapping[StateKey, int] = field(default_factory=dict)
    """Entries that need not be looked for, as positions of events."""
    is_unfollowed: bool = False
    """The state changes in ways that the log does not tell: the room lacks members."""


class Granted(Struct, frozen=True):
    """What was read for a wish."""

    entries: Mapping[StateKey, StoredEvent]
    wanted: Sequence[StoredEvent]
    """Those of them that the patterns ask for."""


class StateEvents:
    """State events that were read lately, with their client form, since many readers want the same ones.

    A view of the tail: an event is another one once it is redacted.
    """

    def __init__(self) -> None:
        self._events: OrderedDict[int, StoredEvent] = OrderedDict()
        self._positions: dict[EventID, int] = {}
        self._redactions = 0

    def apply(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if isinstance(change, RoomEvents) and change.redacted:
            self._redactions += 1
            for event_id in change.redacted:
                position = self._positions.pop(event_id, None)
                if position is not None:
                    del self._events[position]

    async def get(self, tx: Tx, positions: Collection[int]) -> dict[int, StoredEvent]:
        """Events by position."""
        found = {position: self._events[position] for position in positions if position in self._events}
        for position in found:
            self._events.move_to_end(position)
        if len(found) < len(positions):
            redactions = self._redactions
            loaded = await events.by_positions(tx, [position for position in positions if position not in found])
            found.update(loaded)
            if redactions == self._redactions:  # else what was read may be older than what the tail has told
                self._keep(loaded)
        return found

    def _keep(self, loaded: Mapping[int, StoredEvent]) -> None:
        for position, event in loaded.items():
            if len(event.canonical) <= MAX_KEPT_BYTES:
                self._events[position] = event
                self._positions[event.event_id] = position
        while len(self._events) > MAX_KEPT:
            _, oldest = self._events.popitem(last=False)
            del self._positions[oldest.event_id]


async def read(
    tx: Tx, wishes: Mapping[int, Wish], upto: int, current: CurrentRooms, kept: StateEvents
) -> dict[int, Granted]:
    """The current state events of each room that are wanted, up to a place in the log: a fixed number of statements
    for all."""
    if not wishes:
        return {}
    unfollowed = {room for room, wish in wishes.items() if wish.is_unfollowed}
    states = await current.state(tx, _parts(wishes), upto, unfollowed=unfollowed)
    verdicts: dict[tuple[int, int], dict[StateKey, bool]] = {}
    chosen: dict[int, dict[StateKey, tuple[int, bool]]] = {}
    for room, state in states.items():
        wish = wishes[room]
        known = verdicts.setdefault((id(wish.patterns), id(wish.besides)), {})  # as a rule the same for all rooms
        of_room = chosen[room] = {}
        for key, event in (*state.items(), *wish.known.items()):
            is_wanted = known.get(key)
            if is_wanted is None:
                is_wanted = known[key] = matches(wish.patterns, *key) and not matches(wish.besides, *key)
            if is_wanted or key in wish.entries:
                of_room[key] = (event, is_wanted)
    held = await kept.get(tx, {event for of_room in chosen.values() for event, _ in of_room.values()})
    return {
        room: Granted(
            {key: held[event] for key, (event, _) in of_room.items() if event in held},
            [held[event] for event, is_wanted in of_room.values() if is_wanted and event in held],
        )
        for room, of_room in chosen.items()
    }


def _parts(wishes: Mapping[int, Wish]) -> dict[int, StatePart]:
    of_patterns: dict[Patterns, StatePart] = {}  # as a rule the same for all rooms
    parts: dict[int, StatePart] = {}
    for room, wish in wishes.items():
        part = of_patterns.get(wish.patterns)
        if part is None:
            part = of_patterns[wish.patterns] = _part(wish.patterns)
        entries = (part.entries | wish.entries) - wish.known.keys()
        parts[room] = StatePart(entries, part.types, part.state_keys, part.has_rest)
    return parts


def _part(patterns: Patterns) -> StatePart:
    part = StatePart()
    for pattern in patterns:
        for event_type, state_key in pattern.include:
            if event_type is not None and state_key is not None:
                part.entries.add((event_type, state_key))
            elif event_type is not None:
                part.types.add(event_type)
            elif state_key is not None:
                part.state_keys.add(state_key)
            else:
                part.has_rest = True
                if not pattern.lazy_members:
                    part.types.add(MEMBER)
    return part
