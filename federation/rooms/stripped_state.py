"""What somebody who is not in a room is told of it (Client-Server API, "Stripped state"): by other servers, and by us.

Since version 1.16 of the specification servers exchange whole events; older ones send what clients see.
"""

import logging
from collections.abc import Iterable, Sequence

import orjson

from federation.protocol import canonical_json
from federation.protocol.auth_events import CREATE
from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import fits, is_user_id
from federation.protocol.pdu import PDU
from federation.protocol.types import JsonObject, StateKey

logger = logging.getLogger(__name__)

KEYS: tuple[StateKey, ...] = (
    CREATE,
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.topic", ""),
    ("m.room.join_rules", ""),
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
)
"""What is told."""

MAX_ENTRIES = 100
MAX_BYTES = 64 * 1024
"""So much of what is told of a room is kept: the user's syncs show it until they come in, or do not."""


def strip(events: Iterable[JsonObject]) -> list[JsonObject]:
    """These state events, all of which were verified, as clients see them."""
    return [{name: event[name] for name in ("content", "sender", "state_key", "type")} for event in events]


def encode(told: Sequence[JsonObject]) -> bytes:
    """What was told as a JSON array: the last event, the user's own, and of the others what is not too much."""
    encoded = [canonical_json.encode(event) for event in told]
    left = MAX_BYTES - sum(map(len, encoded[-1:]))
    kept: list[bytes] = []
    for event in encoded[:-1]:
        if len(event) <= left:
            kept.append(event)
            left -= len(event)
    return b"[" + b",".join([*kept, *encoded[-1:]]) + b"]"


def strip_leniently(entries: object, member: PDU) -> list[JsonObject]:
    """What is well-formed of what another server tells, whole events or not, and the user's own member event.

    For room versions below 12, of which many servers do not tell whole events yet. What they say is not proven.
    """
    told: dict[StateKey, JsonObject] = {}
    offered = entries[:MAX_ENTRIES] if isinstance(entries, list) else []
    for entry in offered:
        if _is_stripped(entry) and entry.get("room_id", member.room_id) == member.room_id:
            told.setdefault((entry["type"], entry["state_key"]), entry)
    if len(told) < len(offered):
        logger.warning("%s has %d entries that cannot be told", member.event_id, len(offered) - len(told))
    told.pop(member.state_pair, None)
    return strip([*told.values(), member.json])


def _is_stripped(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), dict):
        return False
    texts = [entry.get("type"), entry.get("state_key")]
    if not all(isinstance(text, str) and fits(text) for text in texts) or not is_user_id(entry.get("sender")):
        return False
    try:
        canonical_json.check_depth(entry["content"], orjson.dumps(entry["content"]))
    except (InvalidInput, orjson.JSONEncodeError):
        return False
    return True
