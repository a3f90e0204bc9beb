"""What the default push rules count, without evaluating them for every member (`docs/how-it-works.md`). Pure.

Of two members who keep the default rules, both are counted the same event unless it names one of them. So a room
keeps one running count, and only those whom an event names, and those with rules of their own, need a row. A property
test holds this to what full evaluation gives.
"""

from typing import NamedTuple

from federation.protocol.types import JsonObject, UserID


class Counts(NamedTuple):
    """How one event counts for one member."""

    notify: bool
    highlight: bool


NOT_COUNTED = Counts(False, False)
_NOTIFIES = Counts(True, False)
_HIGHLIGHTS = Counts(True, True)


def default_outcome(event: JsonObject, *, may_notify_room: bool) -> Counts:
    """What an event counts for every member who has the default rules and whom it does not name.

    `may_notify_room` says whether the sender's level suffices for `notifications.room`. How many members the room has
    does not matter: it only changes the sound.
    """
    content = _content(event)
    event_type = _lower(event.get("type"))
    if _lower(content.get("msgtype")) == "m.notice" or event_type == "m.room.member":
        return NOT_COUNTED
    if may_notify_room and _mentions(content).get("room") is True:
        return _HIGHLIGHTS
    if event_type == "m.room.tombstone" and event.get("state_key") == "":
        return _HIGHLIGHTS
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and relation.get("rel_type") == "m.replace":
        return NOT_COUNTED
    return _NOTIFIES if event_type in _NOTIFYING else NOT_COUNTED


_NOTIFYING = frozenset(("m.call.invite", "m.room.message", "m.room.encrypted"))
"""What notifies when nothing else is said of it; rules that silence other types (reactions) change no count."""


def mentioned_users(event: JsonObject) -> frozenset[UserID]:
    """The users for whom an event is a highlight because it names them in `m.mentions`, under the default rules."""
    content = _content(event)
    user_ids = _mentions(content).get("user_ids")
    if not isinstance(user_ids, list) or _lower(content.get("msgtype")) == "m.notice":
        return frozenset()
    if _lower(event.get("type")) == "m.room.member":
        return frozenset()
    return frozenset(UserID(user_id) for user_id in user_ids if isinstance(user_id, str))


def invited_user(event: JsonObject) -> UserID | None:
    """The user whom an event notifies, without a highlight, because it invites them, under the default rules."""
    content, state_key = _content(event), event.get("state_key")
    if _lower(event.get("type")) != "m.room.member" or _lower(content.get("membership")) != "invite":
        return None
    if not isinstance(state_key, str) or _lower(content.get("msgtype")) == "m.notice":
        return None
    return UserID(state_key)


def outcome_for(event: JsonObject, user_id: UserID, *, may_notify_room: bool) -> Counts:
    """What an event counts for one member who has the default rules."""
    if event.get("sender") == user_id:
        return NOT_COUNTED
    if user_id in mentioned_users(event):
        return _HIGHLIGHTS
    if invited_user(event) == user_id:
        return _NOTIFIES
    return default_outcome(event, may_notify_room=may_notify_room)


def _content(event: JsonObject) -> JsonObject:
    content = event.get("content")
    return content if isinstance(content, dict) else {}


def _mentions(content: JsonObject) -> JsonObject:
    mentions = content.get("m.mentions")
    return mentions if isinstance(mentions, dict) else {}


def _lower(value: object) -> str | None:
    return value.lower() if isinstance(value, str) else None
