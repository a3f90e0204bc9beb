"""The redaction algorithm of every room version (room versions, "Redactions"): what is left of a redacted event."""

from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import JsonObject

_KEPT_SINCE_11 = frozenset(
    {
        "event_id",
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "hashes",
        "signatures",
        "depth",
        "prev_events",
        "auth_events",
        "origin_server_ts",
    }
)
_KEPT_BEFORE_11 = _KEPT_SINCE_11 | {"prev_state", "origin", "membership"}

_POWER_LEVELS = ("ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default")


def redact(json: JsonObject, rules: RoomVersionRules) -> JsonObject:
    """A copy of the event with only what redaction keeps: `unsigned` is gone, signatures and hashes stay."""
    top_level = _KEPT_SINCE_11 if rules.updated_redaction else _KEPT_BEFORE_11
    redacted = {key: value for key, value in json.items() if key in top_level}
    if "content" in redacted:
        redacted["content"] = _redact_content(json.get("type"), json["content"], rules)
    return redacted


def _redact_content(event_type: object, content: object, rules: RoomVersionRules) -> JsonObject:
    if not isinstance(content, dict):
        return {}
    if event_type == "m.room.create" and rules.updated_redaction:
        return content
    kept = {key: content[key] for key in _kept_content_keys(event_type, rules) if key in content}
    if event_type == "m.room.member" and rules.updated_redaction:
        third_party_invite = content.get("third_party_invite")
        if isinstance(third_party_invite, dict):
            kept["third_party_invite"] = {key: third_party_invite[key] for key in third_party_invite if key == "signed"}
    return kept


def _kept_content_keys(event_type: object, rules: RoomVersionRules) -> tuple[str, ...]:
    match event_type:
        case "m.room.member":
            authoriser = ("join_authorised_via_users_server",) if rules.redaction_keeps_join_authoriser else ()
            return ("membership", *authoriser)
        case "m.room.create":
            return ("creator",)
        case "m.room.join_rules":
            return ("join_rule", "allow") if rules.restricted_joins else ("join_rule",)
        case "m.room.power_levels":
            return ("invite", *_POWER_LEVELS) if rules.updated_redaction else _POWER_LEVELS
        case "m.room.aliases" if rules.special_cases_aliases:
            return ("aliases",)
        case "m.room.history_visibility":
            return ("history_visibility",)
        case "m.room.redaction" if rules.updated_redaction:
            return ("redacts",)
        case _:
            return ()
