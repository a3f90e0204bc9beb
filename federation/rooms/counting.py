"""What an event counts for: unread counts."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels
from storage.rooms import Room
from storage.unread import PersonalCount


class Counted(Struct, frozen=True):
    """What an event adds to unread counts: for everybody, and where one user's differs."""

    notifies: bool = False
    highlights: bool = False
    personal: Sequence[PersonalCount] = ()


NOT_COUNTED = Counted()


class Counter(Protocol):
    """Decides what an event counts for, before it is appended (`homeserver/services/event_counts.py`)."""

    async def settle(self) -> None:
        """Return once `count` knows all that the log has told of: soon, and nearly always at once."""

    def count(self, room: Room, pdu: VerifiedPDU, power_levels: PowerLevels | None, member_count: int) -> Counted:
        """What the event adds to the unread counts of the room's local members."""
