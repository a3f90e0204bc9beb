"""Which state authorises an event (Server-Server API v1.18, "Auth events selection")."""

from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import JsonObject, StateKey

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")
JOIN_RULES: StateKey = ("m.room.join_rules", "")

_RULED_MEMBERSHIPS = frozenset(("join", "invite", "knock"))


def auth_keys_for(
    event_type: str, sender: str, state_key: str | None, content: JsonObject, rules: RoomVersionRules
) -> tuple[StateKey, ...]:
    """The keys of the state that authorises such an event, each once and always in the same order.

    Create (until version 12), power levels, sender, and for a membership: target, join rules, third-party invite,
    authorising user.
    """
    if event_type == "m.room.create":
        return ()
    sender_key = ("m.room.member", sender)
    keys = (CREATE, POWER_LEVELS, sender_key) if rules.create_in_auth_events else (POWER_LEVELS, sender_key)
    if event_type != "m.room.member":
        return keys
    return keys + _membership_keys(sender, state_key, content, rules)


def _membership_keys(
    sender: str, state_key: str | None, content: JsonObject, rules: RoomVersionRules
) -> tuple[StateKey, ...]:
    membership = content.get("membership")
    keys: list[StateKey] = []
    if state_key is not None and state_key != sender:
        keys.append(("m.room.member", state_key))
    if isinstance(membership, str) and membership in _RULED_MEMBERSHIPS:
        keys.append(JOIN_RULES)
    if membership == "invite":
        token = third_party_token(content)
        if token is not None:
            keys.append(("m.room.third_party_invite", token))
    if membership == "join" and rules.restricted_joins:
        authoriser = content.get("join_authorised_via_users_server")
        if isinstance(authoriser, str) and authoriser not in (sender, state_key):
            keys.append(("m.room.member", authoriser))
    return tuple(keys)


def third_party_token(content: JsonObject) -> str | None:
    """The token of the third-party invite that an invite's content claims to answer, if it is a string."""
    third_party_invite = content.get("third_party_invite")
    signed = third_party_invite.get("signed") if isinstance(third_party_invite, dict) else None
    token = signed.get("token") if isinstance(signed, dict) else None
    return token if isinstance(token, str) else None
