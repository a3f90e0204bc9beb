"""What waits for the sender, in order: entries of the log, and what is not in the log."""

from msgspec import Struct

from federation.protocol.types import JsonObject, UserID
from storage.log_entries import Change


class Taken(Struct, frozen=True):
    """Shards that this process holds from now on."""

    positions: dict[int, int]


class TypingChanged(Struct, frozen=True):
    """A local user begins to type, or stops."""

    room: int
    user_id: UserID
    is_typing: bool


class PresenceChanged(Struct, frozen=True):
    """What others are told of a local user's presence."""

    user_id: UserID
    content: JsonObject


Item = Change | Taken | TypingChanged | PresenceChanged
"""Each is looked at once, after all that came before it."""
