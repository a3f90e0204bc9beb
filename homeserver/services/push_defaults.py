"""The server-default push rules (Client-Server API v1.19, "Predefined Rules"). Pure."""

from typing import Any

from federation.protocol.types import JsonObject, UserID

_SOUND: JsonObject = {"set_tweak": "sound", "value": "default"}
_RING: JsonObject = {"set_tweak": "sound", "value": "ring"}
_HIGHLIGHT: JsonObject = {"set_tweak": "highlight"}

MASTER = ".m.rule.master"
INVITE_FOR_ME = ".m.rule.invite_for_me"


def _match(key: str, pattern: str) -> JsonObject:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _rule(rule_id: str, conditions: list[JsonObject], actions: list[Any], *, enabled: bool = True) -> JsonObject:
    return {"rule_id": rule_id, "default": True, "enabled": enabled, "conditions": conditions, "actions": actions}


def override_rules(user_id: UserID) -> list[JsonObject]:
    """The default `override` rules of a user, in order; the first one outranks the user's own."""
    return [
        _rule(MASTER, [], [], enabled=False),
        _rule(".m.rule.suppress_notices", [_match("content.msgtype", "m.notice")], []),
        _rule(
            INVITE_FOR_ME,
            [
                _match("type", "m.room.member"),
                _match("content.membership", "invite"),
                _match("state_key", user_id),
            ],
            ["notify", _SOUND],
        ),
        _rule(".m.rule.member_event", [_match("type", "m.room.member")], []),
        _rule(
            ".m.rule.is_user_mention",
            [{"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": user_id}],
            ["notify", _SOUND, _HIGHLIGHT],
        ),
        _rule(
            ".m.rule.is_room_mention",
            [
                {"kind": "event_property_is", "key": "content.m\\.mentions.room", "value": True},
                {"kind": "sender_notification_permission", "key": "room"},
            ],
            ["notify", _HIGHLIGHT],
        ),
        _rule(
            ".m.rule.tombstone", [_match("type", "m.room.tombstone"), _match("state_key", "")], ["notify", _HIGHLIGHT]
        ),
        _rule(".m.rule.reaction", [_match("type", "m.reaction")], []),
        _rule(".m.rule.room.server_acl", [_match("type", "m.room.server_acl"), _match("state_key", "")], []),
        _rule(
            ".m.rule.suppress_edits",
            [{"kind": "event_property_is", "key": "content.m\\.relates_to.rel_type", "value": "m.replace"}],
            [],
        ),
    ]


def underride_rules() -> list[JsonObject]:
    """The default `underride` rules, in order; they are everybody's."""
    pair: JsonObject = {"kind": "room_member_count", "is": "2"}
    message, encrypted = _match("type", "m.room.message"), _match("type", "m.room.encrypted")
    return [
        _rule(".m.rule.call", [_match("type", "m.call.invite")], ["notify", _RING]),
        _rule(".m.rule.encrypted_room_one_to_one", [pair, encrypted], ["notify", _SOUND]),
        _rule(".m.rule.room_one_to_one", [pair, message], ["notify", _SOUND]),
        _rule(".m.rule.message", [message], ["notify"]),
        _rule(".m.rule.encrypted", [encrypted], ["notify"]),
    ]
