"""A user's push rules: their order, and what they say of an event (Client-Server API v1.19, "Push Rules"). Pure.

What is stored of a user is only what differs from the server's defaults: own rules by kind, most important first, and
changed defaults by ID. `push_edits.py` changes that; `push_counting.py` says what the defaults give everybody.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

from federation.protocol.types import JsonObject, UserID
from homeserver.services.property_paths import Path
from homeserver.services.push_conditions import (
    Condition,
    Situation,
    compile_condition,
    is_property,
    match_property,
)
from homeserver.services.push_defaults import INVITE_FOR_ME, override_rules, underride_rules
from homeserver.services.push_patterns import words

KINDS: Final = ("override", "content", "room", "sender", "underride")
"""In the order in which they are checked."""
HISTORICAL_ACTIONS: Final = frozenset(("dont_notify", "coalesce"))

_BODY: Final[Path] = ("content", "body")


class Outcome(Struct, frozen=True):
    """What the first matching rule does."""

    actions: Sequence[Any] = ()
    notify: bool = False
    highlight: bool = False
    sound: str | None = None

    @property
    def counts(self) -> tuple[bool, bool]:
        """Whether the event counts as a notification, and as a highlight."""
        return self.notify, self.notify and self.highlight


NOTHING: Final = Outcome()


def outcome_of(actions: Sequence[object]) -> Outcome:
    """What a list of actions comes to; what is unknown or historical is ignored."""
    kept: list[Any] = []
    notify = highlight = False
    sound: str | None = None
    for action in actions:
        if action == "notify":
            notify = True
            kept.append(action)
        elif isinstance(action, dict) and isinstance(action.get("set_tweak"), str):
            kept.append(action)
            if action["set_tweak"] == "highlight":
                highlight = action.get("value", True) is not False
            elif action["set_tweak"] == "sound" and isinstance(action.get("value"), str):
                sound = action["value"]
    return Outcome(kept, notify, highlight, sound) if notify else NOTHING


class _Compiled(Struct, frozen=True):
    conditions: tuple[Condition, ...]
    outcome: Outcome

    def matches(self, situation: Situation, display_name: str | None) -> bool:
        return all(condition(situation, display_name) for condition in self.conditions)


class Ruleset:
    """The rules of one user."""

    __slots__ = ("_compiled", "_scope", "_stored", "user_id")

    def __init__(self, user_id: UserID, stored: JsonObject | None = None) -> None:
        self.user_id = user_id
        self._stored: JsonObject = stored or {}
        self._compiled: list[_Compiled] | None = None
        self._scope = _scope(self)

    def differs_in(self, room_id: str) -> bool:
        """Whether events of this room may count differently for the user than under the defaults.

        Clients mute rooms with a rule for that room: such users are ordinary members of every other room.
        """
        return self._scope is None or room_id.lower() in self._scope

    @property
    def is_default(self) -> bool:
        """Whether the user changed nothing of the defaults, so that the same holds for them as for everybody."""
        return not self.changed_defaults and not any(self._stored.get(kind) for kind in KINDS)

    def own_rules(self, kind: str) -> list[JsonObject]:
        """The user's own rules of a kind, most important first, in the form of the API."""
        return [{**rule, "default": False} for rule in self._stored.get(kind, ())]

    def rules(self, kind: str) -> list[JsonObject]:
        """All rules of a kind, most important first, in the form of the API."""
        own = self.own_rules(kind)
        if kind == "override":
            defaults = [self._changed(rule) for rule in override_rules(self.user_id)]
            return [defaults[0], *own, *defaults[1:]]
        if kind == "underride":
            return [*own, *(self._changed(rule) for rule in underride_rules())]
        return own

    def as_json(self) -> JsonObject:
        """The content of `m.push_rules`, and the answer to `GET /pushrules/`."""
        return {"global": {kind: self.rules(kind) for kind in KINDS}}

    def find(self, kind: str, rule_id: str) -> JsonObject | None:
        """One rule."""
        return next((rule for rule in self.rules(kind) if rule["rule_id"] == rule_id), None)

    @property
    def changed_defaults(self) -> JsonObject:
        """What the user changed of the defaults, by rule ID: `enabled`, `actions` or both."""
        changed: JsonObject = self._stored.get("defaults", {})
        return changed

    def evaluate(self, situation: Situation, display_name: str | None = None) -> Outcome:
        """What these rules do with an event; nothing for one that the user sent."""
        if situation.event.get("sender") == self.user_id:
            return NOTHING
        if self._compiled is None:
            self._compiled = list(self._compile())
        situation.turn_to_next_member()
        for rule in self._compiled:
            if rule.matches(situation, display_name):
                return rule.outcome
        return NOTHING

    def _changed(self, rule: JsonObject) -> JsonObject:
        change = self.changed_defaults.get(rule["rule_id"])
        return {**rule, **change} if change else rule

    def _compile(self) -> Iterator[_Compiled]:
        for kind in KINDS:
            for rule in self.rules(kind):
                if rule["enabled"]:
                    yield _Compiled(self._conditions(kind, rule), outcome_of(rule["actions"]))

    def _conditions(self, kind: str, rule: JsonObject) -> tuple[Condition, ...]:
        rule_id: str = rule["rule_id"]
        if kind == "room":
            return (is_property(("room_id",), rule_id),)
        if kind == "sender":
            return (is_property(("sender",), rule_id),)
        if kind == "content":
            return (match_property(_BODY, words(rule["pattern"])),)
        conditions = tuple(compile_condition(condition) for condition in rule["conditions"])
        if rule_id == INVITE_FOR_ME:
            # Clients see a glob, but the user's own ID is no pattern, and other capitals are another user.
            return (*conditions[:2], is_property(("state_key",), self.user_id))
        return conditions


def _scope(ruleset: Ruleset) -> frozenset[str] | None:
    """The rooms in which the user's counts may differ, in lower case since patterns ignore case; None for all."""
    defaults = {rule["rule_id"]: rule for rule in (*override_rules(ruleset.user_id), *underride_rules())}
    for rule_id, change in ruleset.changed_defaults.items():
        default = defaults.get(rule_id)
        if default is not None and _counts({**default, **change}) != _counts(default):
            return None
    rooms: set[str] = set()
    for kind in KINDS:
        for rule in ruleset.own_rules(kind):
            if rule["enabled"]:
                room_id = rule["rule_id"] if kind == "room" else _only_room(rule.get("conditions", ()))
                if room_id is None:
                    return None
                rooms.add(room_id.lower())
    return frozenset(rooms)


def _counts(rule: JsonObject) -> tuple[bool, bool, bool]:
    # A changed sound is no change of counts; an enabled master rule silences everything.
    return (bool(rule["enabled"]), *outcome_of(rule["actions"]).counts)


def _only_room(conditions: Sequence[object]) -> str | None:
    """The one room to which conditions bind a rule."""
    for condition in conditions:
        if isinstance(condition, dict) and condition.get("key") == "room_id":
            kind = condition.get("kind")
            value = condition.get("pattern" if kind == "event_match" else "value")
            if kind == "event_property_is" and isinstance(value, str):
                return value
            if kind == "event_match" and isinstance(value, str) and "*" not in value and "?" not in value:
                return value
    return None
