"""Which state of a room a client wants, and reading it for many rooms at once (MSC4186, "required_state")."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from federation.protocol.types import StateKey
from storage import events, state_matching
from storage.database import Tx
from storage.events import StoredEvent as StoredEvent
from storage.state_matching import StatePart

MEMBER = "m.room.member"
Element = tuple[str | None, str | None]
"""Type and state key; None is any."""


@dataclass(frozen=True, slots=True)
class StatePattern:
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


def are_lazy(patterns: Patterns) -> bool:
    """Whether members come with what they sent: some pattern says so, and none asks for all of them."""
    return any(each.lazy_members for each in patterns) and not any(each.has_all_members for each in patterns)


def have_all_members(patterns: Patterns) -> bool:
    """Whether some pattern asks for every member."""
    return any(each.has_all_members for each in patterns)


@dataclass(slots=True)
class Wish:
    """What is wanted of one room."""

    patterns: Patterns = ()
    besides: Patterns = ()
    """What the reader has already."""
    entries: set[StateKey] = field(default_factory=set)
    """What is needed whatever the patterns say."""
    version: int = 0
    """Of the room's trunk."""


async def read(tx: Tx, wishes: Mapping[int, Wish]) -> dict[int, list[StoredEvent]]:
    """The state events of each room that are wanted: a fixed number of statements for all."""
    if not wishes:
        return {}
    states = await state_matching.read(tx, {room: _part(wish) for room, wish in wishes.items()})
    positions: dict[int, list[int]] = {}
    for room, state in states.items():
        wish = wishes[room]
        positions[room] = [event for key, event in state.items() if key in wish.entries or _is_wanted(wish, key)]
    held = await events.by_positions(tx, [event for of_room in positions.values() for event in of_room])
    return {room: [held[event] for event in of_room if event in held] for room, of_room in positions.items()}


def _is_wanted(wish: Wish, key: StateKey) -> bool:
    return matches(wish.patterns, *key) and not matches(wish.besides, *key)


def _part(wish: Wish) -> StatePart:
    part = StatePart(wish.version, entries=set(wish.entries))
    for pattern in wish.patterns:
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


def changed(patterns: Patterns, stored: Sequence[StoredEvent]) -> list[StoredEvent]:
    """Those of the state events that the patterns ask for."""
    return [event for event in stored if matches(patterns, event.type, event.state_key or "")]
