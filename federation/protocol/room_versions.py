"""What differs between room versions 1 to 12, as data (specification, "Room Versions").

Each version is the one before with its changes. Code asks for a flag, never for a version by name.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.errors import MatrixError

StateResolution = Literal["v1", "v2", "v2.1"]
EventIDFormat = Literal["server", "base64", "urlsafe_base64"]


class RoomVersionRules(Struct, frozen=True, kw_only=True):
    """The rules of one room version; the number behind a flag is the version that changed it."""

    version: str
    state_resolution: StateResolution
    event_id_format: EventIDFormat
    """`server`: given by the sender's server and on the wire. Else the reference hash (3, URL-safe from 4)."""
    references_carry_hashes: bool
    """`prev_events` and `auth_events` are pairs of an ID and its hashes (until 3)."""
    redactions_are_authorised: bool
    """Rule "m.room.redaction" of the authorisation rules (until 3); later applied when both events are there."""
    enforces_key_validity: bool
    """5: a signing key must be valid at the event's `origin_server_ts`."""
    strict_canonical_json: bool
    """6: no floats, integers within 2**53."""
    special_cases_aliases: bool
    """Until 6: `m.room.aliases` has its own authorisation rule and its own redaction rule."""
    checks_notification_levels: bool
    """6: changes of `notifications` in power levels are authorised."""
    knocking: bool
    """7."""
    restricted_joins: bool
    """8; the redaction of `m.room.join_rules` keeps `allow`."""
    redaction_keeps_join_authoriser: bool
    """9."""
    knock_restricted: bool
    """10."""
    integer_power_levels: bool
    """10: levels are integers, not strings that hold one."""
    updated_redaction: bool
    """11: the keep-lists of MSC2174, MSC2176, MSC3821; `redacts` stands in the content."""
    implicit_creator: bool
    """11: the creator is the sender of the create event; `creator` in its content means nothing."""
    room_id_is_create_hash: bool
    """12: the room ID is the hash of the create event, which then has no `room_id`."""
    creators_have_infinite_power: bool
    """12: creators stand above every level and may not be listed in `users`; `additional_creators`."""

    @property
    def create_in_auth_events(self) -> bool:
        """Whether events cite the create event: not from version 12, where the room ID does."""
        return not self.room_id_is_create_hash


_V1 = RoomVersionRules(
    version="1",
    state_resolution="v1",
    event_id_format="server",
    references_carry_hashes=True,
    redactions_are_authorised=True,
    enforces_key_validity=False,
    strict_canonical_json=False,
    special_cases_aliases=True,
    checks_notification_levels=False,
    knocking=False,
    restricted_joins=False,
    redaction_keeps_join_authoriser=False,
    knock_restricted=False,
    integer_power_levels=False,
    updated_redaction=False,
    implicit_creator=False,
    room_id_is_create_hash=False,
    creators_have_infinite_power=False,
)
_V2 = replace(_V1, version="2", state_resolution="v2")
_V3 = replace(
    _V2, version="3", event_id_format="base64", references_carry_hashes=False, redactions_are_authorised=False
)
_V4 = replace(_V3, version="4", event_id_format="urlsafe_base64")
_V5 = replace(_V4, version="5", enforces_key_validity=True)
_V6 = replace(
    _V5, version="6", strict_canonical_json=True, special_cases_aliases=False, checks_notification_levels=True
)
_V7 = replace(_V6, version="7", knocking=True)
_V8 = replace(_V7, version="8", restricted_joins=True)
_V9 = replace(_V8, version="9", redaction_keeps_join_authoriser=True)
_V10 = replace(_V9, version="10", knock_restricted=True, integer_power_levels=True)
_V11 = replace(_V10, version="11", updated_redaction=True, implicit_creator=True)
_V12 = replace(
    _V11,
    version="12",
    state_resolution="v2.1",
    room_id_is_create_hash=True,
    creators_have_infinite_power=True,
)

ROOM_VERSIONS: dict[str, RoomVersionRules] = {
    rules.version: rules for rules in (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9, _V10, _V11, _V12)
}


def get_rules(version: str) -> RoomVersionRules:
    """The rules of a room version; raises M_UNSUPPORTED_ROOM_VERSION for one that we do not know."""
    rules = ROOM_VERSIONS.get(version)
    if rules is None:
        raise MatrixError("M_UNSUPPORTED_ROOM_VERSION", f"Room version {version!r} is not supported")
    return rules
