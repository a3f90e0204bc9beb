"""Room events as servers exchange them, typed by how far they were checked (Server-Server API, "PDUs").

`JsonObject` -> `PDU` (well formed: `event_format.parse`) -> `VerifiedPDU` (hash and signatures hold:
`signatures.verify`, or built by us: `event_builder.build`). Storage takes only the last.
"""

from msgspec import Struct

from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID


class PDU(Struct, frozen=True, kw_only=True, eq=False):
    """A well-formed event of its room version. Two are equal when their IDs are."""

    event_id: EventID
    room_id: RoomID
    """Also for a create event of version 12, whose JSON has none."""
    type: str
    sender: UserID
    state_key: str | None
    """None for an event that is not state; the empty string is a state key."""
    content: JsonObject
    prev_event_ids: tuple[EventID, ...]
    auth_event_ids: tuple[EventID, ...]
    depth: int
    origin_server_ts: int
    redacts: EventID | None
    """What a redaction redacts, from wherever the room version puts it."""
    rules: RoomVersionRules
    json: JsonObject
    """The whole event as on the wire, without `unsigned`. Nobody may change it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PDU) and other.event_id == self.event_id

    def __hash__(self) -> int:
        return hash(self.event_id)

    @property
    def state_pair(self) -> StateKey:
        """The type and state key that this state event is current for; ValueError when it is not state."""
        if self.state_key is None:
            raise ValueError(f"{self.event_id} is not a state event")
        return (self.type, self.state_key)

    @property
    def membership(self) -> object:
        """`content.membership`, unchecked."""
        return self.content.get("membership")


class VerifiedPDU(PDU, frozen=True, kw_only=True, eq=False):
    """An event whose content hash and signatures hold, as every stored event is."""

    canonical: bytes
    """The event's canonical JSON, as stored and sent on."""


class Draft(Struct, frozen=True, kw_only=True):
    """An event that one of our users wants to send: all that the sender decides, and nothing else."""

    room_id: RoomID
    """The empty string for the create event of a version whose room ID is that event's hash."""
    type: str
    sender: UserID
    content: JsonObject
    state_key: str | None = None
    redacts: EventID | None = None
    origin_server_ts: int | None = None
    """Given by application services; else the time of building."""
    names_origin: bool = False
    """Whether the event names our server in `origin`, as one has to that another server gets to sign or to pass on."""
