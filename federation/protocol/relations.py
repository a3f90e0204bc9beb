"""What an event's `m.relates_to` says (Client-Server API v1.19, "Forming relationships between events"). Pure."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from federation.protocol.identifiers import fits, is_event_id
from federation.protocol.types import EventID, JsonObject

ANNOTATION = "m.annotation"
REFERENCE = "m.reference"
REPLACE = "m.replace"
THREAD = "m.thread"


class Relation(Struct, frozen=True):
    """How an event relates to another, its parent."""

    type: str
    parent: EventID
    key: str | None
    """Of an annotation."""


def related_event(content: JsonObject) -> Relation | None:
    """What an event with this content relates to, if its `m.relates_to` has a `rel_type` and can be followed."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, parent, key = relates_to.get("rel_type"), relates_to.get("event_id"), relates_to.get("key")
    if not is_event_id(parent) or not isinstance(rel_type, str) or not fits(rel_type) or "\0" in rel_type:
        return None
    has_key = rel_type == ANNOTATION and isinstance(key, str) and "\0" not in key
    return Relation(rel_type, EventID(parent), key if has_key else None)


def thread_of(event: Mapping[str, Any]) -> EventID | None:
    """The root of the thread that an event belongs to ("Threading"); None for the main timeline."""
    relation = related_event(event["content"])
    return relation.parent if relation is not None and relation.type == THREAD and "state_key" not in event else None


def holds_replacement(event: Mapping[str, Any]) -> bool:
    """Whether an edit may replace anything, as far as it tells by itself ("Validity of replacement events").

    What is encrypted may: only who can read it knows.
    """
    if "state_key" in event:
        return False
    return event["type"] == "m.room.encrypted" or isinstance(event["content"].get("m.new_content"), dict)
