"""What waits for the sender, in order: entries of the log, and what is not in the log."""

from dataclasses import dataclass

from federation.protocol.types import JsonObject, UserID
from storage.log_entries import Change


@dataclass(frozen=True, slots=True)
class Taken:
    """Shards that this process holds from now on."""

    positions: dict[int, int]


@dataclass(frozen=True, slots=True)
class TypingChanged:
    """A local user begins to type, or stops."""

    room: int
    user_id: UserID
    is_typing: bool


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """What others are told of a local user's presence."""

    user_id: UserID
    content: JsonObject


Item = Change | Taken | TypingChanged | PresenceChanged
"""Each is looked at once, after all that came before it."""
