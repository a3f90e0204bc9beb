"""What an event counts for and belongs to: unread counts, relations, threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from federation.protocol.identifiers import fits, is_event_id
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import JsonObject
from storage.events import Relation
from storage.rooms import Room
from storage.unread import PersonalCount


@dataclass(frozen=True, slots=True)
class Counted:
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


def related_event(content: JsonObject) -> Relation | None:
    """What an event with this content relates to, if its `m.relates_to` has a `rel_type` and can be followed."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, parent, key = relates_to.get("rel_type"), relates_to.get("event_id"), relates_to.get("key")
    if not is_event_id(parent) or not isinstance(rel_type, str) or not fits(rel_type) or "\0" in rel_type:
        return None
    return Relation(rel_type, parent, key if isinstance(key, str) and "\0" not in key else None)


def thread_of(pdu: VerifiedPDU) -> str | None:
    """The root of the thread that the event belongs to ("Threading"); None for the main timeline."""
    relates_to = pdu.content.get("m.relates_to")
    if pdu.state_key is not None or not isinstance(relates_to, dict) or relates_to.get("rel_type") != "m.thread":
        return None
    root = relates_to.get("event_id")
    return root if isinstance(root, str) and 0 < len(root) <= 255 else None
