"""Changing a user's push rules (Client-Server API, "Push Rules: API"). Pure: stored rules go in and come out.

Raises the errors that the endpoints answer with.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct

from federation.protocol.errors import InvalidInput, MatrixError, NotFound, TooLarge
from federation.protocol.types import JsonObject, UserID
from homeserver.services.push_rules import HISTORICAL_ACTIONS, KINDS, Ruleset

MAX_STORED_BYTES = 256 * 1024
MAX_TRIED_RULES = 1_000
"""Of one user, of the kinds that are tried one after the other on every event of their rooms."""
MAX_ID_BYTES = 1024
MAX_PATTERN_LENGTH = 4096
MAX_CONDITIONS = 100


class NewRule(Struct, frozen=True):
    """A rule as a client puts it, checked."""

    kind: str
    body: JsonObject

    @property
    def rule_id(self) -> str:
        """Unique among the user's rules of this kind."""
        rule_id: str = self.body["rule_id"]
        return rule_id


def check_kind(kind: str) -> str:
    """The kind, if there is such a kind of rule."""
    if kind not in KINDS:
        raise InvalidInput(f"Unknown kind of push rule: {kind}")
    return kind


def parse_rule(kind: str, rule_id: str, body: JsonObject) -> NewRule:
    """The rule that a client asks for."""
    check_kind(kind)
    _check_own_id(rule_id)
    rule: JsonObject = {"rule_id": rule_id, "enabled": True, "actions": parse_actions(body)}
    if kind in {"override", "underride"}:
        rule["conditions"] = _parse_conditions(body)
    elif kind == "content":
        pattern = body.get("pattern")
        if pattern is None:
            raise InvalidInput("A content rule needs a pattern", "M_MISSING_PARAM")
        if not isinstance(pattern, str):
            raise InvalidInput("pattern must be a string", "M_BAD_JSON")
        if len(pattern) > MAX_PATTERN_LENGTH:
            raise InvalidInput("The pattern is too long")
        rule["pattern"] = pattern
    return NewRule(kind, rule)


def parse_actions(body: JsonObject) -> list[Any]:
    """The actions of a rule, without the historical ones."""
    actions = body.get("actions")
    if actions is None:
        raise InvalidInput("A rule needs actions", "M_MISSING_PARAM")
    if not isinstance(actions, list) or not all(_is_action(action) for action in actions):
        raise InvalidInput("actions must be an array of strings and of objects with set_tweak", "M_BAD_JSON")
    return [action for action in actions if not isinstance(action, str) or action not in HISTORICAL_ACTIONS]


def parse_enabled(body: JsonObject) -> bool:
    """Whether a rule is to be enabled."""
    enabled = body.get("enabled")
    if enabled is None:
        raise InvalidInput("enabled is missing", "M_MISSING_PARAM")
    if not isinstance(enabled, bool):
        raise InvalidInput("enabled must be true or false", "M_BAD_JSON")
    return enabled


def put_rule(stored: JsonObject, new: NewRule, *, before: str | None, after: str | None) -> JsonObject:
    """Add or replace a rule. `before` wins over `after`; with neither a new rule is the most important one."""
    rules = list(stored.get(new.kind, ()))
    at = _index(rules, new.rule_id)
    rule = new.body
    if at is None:
        at = 0
    else:
        rule = {**rule, "enabled": rules.pop(at)["enabled"]}
    if before is not None:
        at = _relative_to(rules, before)
    elif after is not None:
        at = _relative_to(rules, after) + 1
    rules.insert(at, rule)
    return _checked({**stored, new.kind: rules})


def delete_rule(stored: JsonObject, kind: str, rule_id: str) -> JsonObject:
    """Take one of the user's own rules away."""
    check_kind(kind)
    _check_own_id(rule_id)
    rules = list(stored.get(kind, ()))
    at = _index(rules, rule_id)
    if at is None:
        raise _unknown_rule()
    del rules[at]
    return {**stored, kind: rules}


def change_rule(stored: JsonObject, kind: str, rule_id: str, change: JsonObject) -> JsonObject:
    """Set `enabled` or `actions` of a rule, which may be one of the defaults."""
    check_kind(kind)
    rules = list(stored.get(kind, ()))
    at = _index(rules, rule_id)
    if at is not None:
        rules[at] = {**rules[at], **change}
        return _checked({**stored, kind: rules})
    if find_rule(Ruleset(UserID(""), stored), kind, rule_id) is None:
        raise _unknown_rule()
    defaults = dict(stored.get("defaults", {}))
    defaults[rule_id] = {**defaults.get(rule_id, {}), **change}
    return _checked({**stored, "defaults": defaults})


def find_rule(ruleset: Ruleset, kind: str, rule_id: str) -> JsonObject:
    """A rule in the form of the API; raises M_NOT_FOUND."""
    rule = ruleset.find(check_kind(kind), rule_id)
    if rule is None:
        raise _unknown_rule()
    return rule


def _parse_conditions(body: JsonObject) -> list[JsonObject]:
    conditions = body.get("conditions", [])
    if not isinstance(conditions, list) or not all(_is_condition(condition) for condition in conditions):
        raise InvalidInput("conditions must be an array of objects with a kind, each member of its type", "M_BAD_JSON")
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidInput("The rule has too many conditions")
    for condition in conditions:
        pattern = condition.get("pattern")
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_LENGTH:
            raise InvalidInput("The pattern is too long")
    return conditions


def _is_condition(condition: object) -> bool:
    if not isinstance(condition, dict) or not isinstance(condition.get("kind"), str):
        return False
    texts = (condition[name] for name in ("key", "pattern", "is") if name in condition)
    value = condition.get("value")
    return all(isinstance(text, str) for text in texts) and (value is None or isinstance(value, str | int | bool))


def _is_action(action: object) -> bool:
    return isinstance(action, str) or (isinstance(action, dict) and isinstance(action.get("set_tweak"), str))


def _check_own_id(rule_id: str) -> None:
    if rule_id.startswith("."):
        raise InvalidInput("Rules whose ID starts with a dot are the server's")
    if not rule_id or "/" in rule_id or "\\" in rule_id or len(rule_id.encode()) > MAX_ID_BYTES:
        raise InvalidInput("This is not a rule ID")


def _relative_to(rules: Sequence[JsonObject], rule_id: str) -> int:
    at = _index(rules, rule_id)
    if at is None:
        raise MatrixError("M_UNKNOWN", f"before/after rule not found: {rule_id}", 400)
    return at


def _index(rules: Sequence[JsonObject], rule_id: str) -> int | None:
    return next((index for index, rule in enumerate(rules) if rule["rule_id"] == rule_id), None)


def _unknown_rule() -> NotFound:
    return NotFound("The push rule was not found")


def _checked(stored: JsonObject) -> JsonObject:
    tried = sum(len(stored.get(kind, ())) for kind in ("override", "content", "underride"))
    if tried > MAX_TRIED_RULES or len(orjson.dumps(stored)) > MAX_STORED_BYTES:
        raise TooLarge("These are too many push rules")
    return stored
