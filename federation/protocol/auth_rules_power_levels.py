"""The `m.room.power_levels` branch of the authorisation rules: 10, in versions 6 to 11 rule 9."""

from federation.protocol.errors import AuthRuleViolated
from federation.protocol.identifiers import is_user_id
from federation.protocol.pdu import PDU
from federation.protocol.power_levels import DEFAULT_LEVELS, PowerLevels, get_creators, parse_level
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import JsonObject


def check_power_levels(pdu: PDU, current: PDU | None, create: PDU, levels: PowerLevels, rule: int) -> None:
    """Raise AuthRuleViolated unless the sender may replace `current` by this event; `rule` is this rule's number."""
    rules = pdu.rules
    number = 1
    if rules.integer_power_levels:
        _check_integers(pdu.content, rules, rule)
        number = 3
    users = pdu.content.get("users", {})
    if not isinstance(users, dict) or not all(
        is_user_id(user_id) and parse_level(level, rules) is not None for user_id, level in users.items()
    ):
        raise AuthRuleViolated(f"{rule}.{number}", "users is not an object of user IDs and levels")
    if rules.creators_have_infinite_power:
        number += 1
        if not get_creators(create).isdisjoint(users):
            raise AuthRuleViolated(f"{rule}.{number}", "The power of creators cannot be set")
    if current is None:
        return
    _Comparison(pdu, current, levels.of_user(pdu.sender), f"{rule}", number + 2).check()


def _check_integers(content: JsonObject, rules: RoomVersionRules, rule: int) -> None:
    """Rules .1 and .2 since version 10."""
    for name in DEFAULT_LEVELS:
        if name in content and parse_level(content[name], rules) is None:
            raise AuthRuleViolated(f"{rule}.1", f"{name} is not an integer")
    for name in ("events", "notifications"):
        entries = content.get(name, {})
        if not isinstance(entries, dict) or any(parse_level(level, rules) is None for level in entries.values()):
            raise AuthRuleViolated(f"{rule}.2", f"{name} is not an object of integers")


class _Comparison:
    """The sender may neither touch what is above them nor lift anything above them."""

    def __init__(self, pdu: PDU, current: PDU, sender_level: int, rule: str, number: int) -> None:
        self._new = pdu.content
        self._old = current.content
        self._rules = pdu.rules
        self._sender = pdu.sender
        self._sender_level = sender_level
        self._rule = rule
        self._number = number
        """Of the rule on named properties; those on `events` and on `users` follow, two each."""

    def check(self) -> None:
        """Raise AuthRuleViolated at the first alteration that is not the sender's to make."""
        number = f"{self._rule}.{self._number}"
        for name in DEFAULT_LEVELS:
            old, new = self._levels(self._old, self._new, name, f"{number}.2")
            self._check_change(name, old, new, (f"{number}.1", f"{number}.2"))
        tables = ("events", "notifications") if self._rules.checks_notification_levels else ("events",)
        for table in tables:
            self._check_table(table, self._number + 1)
        self._check_table("users", self._number + 3)

    def _check_table(self, table: str, number: int) -> None:
        removed_rule, added_rule = f"{self._rule}.{number}.1", f"{self._rule}.{number + 1}.1"
        old_entries, new_entries = self._old.get(table), self._new.get(table, {})
        if not isinstance(old_entries, dict):
            old_entries = {}
        if not isinstance(new_entries, dict):
            raise AuthRuleViolated(added_rule, f"{table} is not an object")
        for key in {**old_entries, **new_entries}:
            old, new = self._levels(old_entries, new_entries, key, added_rule)
            if table == "users" and old != new and old is not None:
                if old >= self._sender_level and key != self._sender:
                    raise AuthRuleViolated(removed_rule, f"{key} has as much power as {self._sender}")
                old = None
            self._check_change(key, old, new, (removed_rule, added_rule))

    def _levels(
        self, old_entries: JsonObject, new_entries: JsonObject, key: str, rule: str
    ) -> tuple[int | None, int | None]:
        """Both levels; raises AuthRuleViolated when the new one is there and is no level."""
        new = parse_level(new_entries[key], self._rules) if key in new_entries else None
        if new is None and key in new_entries:
            raise AuthRuleViolated(rule, f"{key} is not a level")
        return parse_level(old_entries.get(key), self._rules), new

    def _check_change(self, name: str, old: int | None, new: int | None, rules: tuple[str, str]) -> None:
        if old == new:
            return
        if old is not None and old > self._sender_level:
            raise AuthRuleViolated(rules[0], f"{name} is above the level of {self._sender}")
        if new is not None and new > self._sender_level:
            raise AuthRuleViolated(rules[1], f"{name} would be above the level of {self._sender}")
