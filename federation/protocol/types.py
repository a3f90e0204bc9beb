"""Names for the strings and JSON shapes that the protocol speaks of (appendices, "Common Identifier Format")."""

from collections.abc import Mapping
from typing import Any, NewType

EventID = NewType("EventID", str)
RoomID = NewType("RoomID", str)
RoomAlias = NewType("RoomAlias", str)
UserID = NewType("UserID", str)
ServerName = NewType("ServerName", str)
DeviceID = NewType("DeviceID", str)
KeyID = NewType("KeyID", str)
"""An algorithm and a version, such as `ed25519:auto`."""

JsonObject = dict[str, Any]
"""A parsed JSON object. What it holds has not been checked."""

StateKey = tuple[str, str]
"""An event type and a state key: what a state event is current for."""

StateIDs = Mapping[StateKey, EventID]
"""The state of a room as event IDs."""
