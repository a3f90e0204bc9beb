"""What a client asks for in a sliding sync, the same in either form (MSC4186)."""

from collections.abc import Callable
from enum import Enum

from msgspec import Struct, field

from federation.protocol.types import RoomID
from federation.rooms.required_state import StatePattern
from homeserver.services.requester import Requester


class Form(Enum):
    """As deployed before it was accepted, or as accepted: they differ in names, and in a few fields."""

    DEPLOYED = "s"
    ACCEPTED = "4"

    @property
    def stripped_state_name(self) -> str:
        """What the state is called that an invited user is told."""
        return "invite_state" if self is Form.DEPLOYED else "stripped_state"

    @property
    def expanded_timeline_name(self) -> str:
        """What is called that a timeline holds events from before."""
        return "unstable_expanded_timeline" if self is Form.DEPLOYED else "expanded_timeline"


class RoomConfig(Struct, frozen=True):
    """How much of a room is wanted."""

    timeline_limit: int
    required_state: StatePattern


class RoomFilter(Struct, frozen=True, kw_only=True):
    """Which rooms a list holds; None is whichever."""

    is_dm: bool | None = None
    is_encrypted: bool | None = None
    is_invited: bool | None = None
    room_types: frozenset[str | None] | None = None
    not_room_types: frozenset[str | None] = frozenset()
    spaces: frozenset[str] | None = None
    tags: frozenset[str] | None = None
    not_tags: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """How many names it has."""
        named = (self.room_types, self.not_room_types, self.spaces, self.tags, self.not_tags)
        return sum(map(len, filter(None, named)))

    @property
    def needs_types(self) -> bool:
        """Whether rooms' types matter."""
        return self.room_types is not None or bool(self.not_room_types)

    @property
    def needs_tags(self) -> bool:
        """Whether the user's tags matter."""
        return self.tags is not None or bool(self.not_tags)


class RoomList(Struct, frozen=True):
    """One list: which of the user's rooms, and what of each."""

    name: str
    config: RoomConfig
    filter: RoomFilter
    ranges: tuple[tuple[int, int], ...] | None = None
    """First and last index of each part that is wanted; None: all."""


class Scope(Struct, frozen=True):
    """The rooms for which an extension is wanted: those of lists and of subscriptions; None: of all."""

    lists: frozenset[str] | None = None
    rooms: frozenset[str] | None = None


class Extensions(Struct, frozen=True, kw_only=True):
    """What is wanted besides rooms."""

    to_device: int | None = None
    """At most so many messages at a time; None: not wanted."""
    e2ee: bool = False
    account_data: Scope | None = None
    receipts: Scope | None = None
    typing: Scope | None = None
    threads: int | None = None
    """Changes of the user's subscriptions to threads, at most so many; None: not wanted."""


class Wanted(Struct, frozen=True):
    """All that decides what an answer holds, apart from the place where the client is."""

    lists: tuple[RoomList, ...] = ()
    subscriptions: tuple[tuple[RoomID, RoomConfig], ...] = ()
    extensions: Extensions = field(default_factory=Extensions)


class SlidingRequest(Struct, frozen=True, kw_only=True):
    """One request."""

    requester: Requester
    form: Form
    wanted: Wanted
    conn_id: str = ""
    pos: str | None = None
    timeout_ms: int = 0
    to_device_since: str | None = None
    txn_id: str | None = None
    is_abandoned: Callable[[], bool] = lambda: False
    """Whether the client no longer waits for the answer."""
