"""Patterns of push rules: what they match, and that no pattern is slow."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.types import UserID
from homeserver.services.push_conditions import Situation
from homeserver.services.push_patterns import has_word, whole, words
from homeserver.services.push_rules import Ruleset
from tests.processor import cpu_within


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("lunc?*", "lunch plans", True),
        ("lunc?*", "lunch", True),
        ("LUNC?*", "lunch", True),
        ("lunc?*", " lunch", False),
        ("lunc?*", "lunc", False),
        ("", "", True),
        ("", "x", False),
        ("*", "", True),
        ("a.c", "abc", False),
    ],
)
def test_a_pattern_matches_a_whole_value(pattern: str, text: str, expected: bool) -> None:
    assert whole(pattern)(text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("ex*ple", "an example event.", True),
        ("ex*ple", "exple", True),
        ("ex*ple", "an exciting triple-whammy", True),
        ("ex*ple", "hexample", False),
        ("cake", "cakes", False),
        ("cake", "the cake_is", False),
        ("cake", "cakes are no cake!", True),
        ("Cake", "a cake", True),
        ("c?ke", "coke, please", True),
        ("c?ke", "smoke", False),
        ("@room", "hello @room", True),
        ("tea*time", "teapot bedtime", True),
        ("tea*time", "teapot bedtimes", False),
        ("ünder", "wünder", True),
        ("", "", True),
    ],
)
def test_a_pattern_for_the_body_matches_between_word_boundaries(pattern: str, text: str, expected: bool) -> None:
    assert words(pattern)(text) is expected


ALPHABET = st.text(alphabet="ab _-", max_size=12)


@given(st.text(alphabet="ab _-*?", max_size=7), ALPHABET)
def test_every_pattern_matches_what_trying_every_part_finds(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern)
    edges = [i for i in range(len(text) + 1) if _is_edge(text, i)]
    expected = any(re.fullmatch(expression, text[i:j], re.DOTALL) for i in edges for j in edges if i <= j)

    assert words(pattern)(text) is expected


@given(ALPHABET.filter(bool), ALPHABET)
def test_a_literal_word_is_found_as_a_pattern_would_be(word: str, text: str) -> None:
    assert has_word(text, word) is words(word)(text)


def _is_edge(text: str, i: int) -> bool:
    return i in (0, len(text)) or not (re.match(r"[a-z_]", text[i - 1]) and re.match(r"[a-z_]", text[i]))


def test_wildcards_in_a_literal_word_are_ordinary_characters() -> None:
    assert has_word("who is a*?", "a*?")
    assert not has_word("who is abc", "a*?")
    assert has_word("xa? " * 40 + "a?", "a?")


@pytest.mark.parametrize("pattern", ["a*" * 500 + "b", "?" * 2000 + "*b", "a" * 2000, "*a?" * 300, "a?" * 1000 + "x"])
def test_no_pattern_takes_long(pattern: str) -> None:
    text = "a" * 60_000

    with cpu_within(1.0):
        words(pattern)(text)
        whole(pattern)(text)


@pytest.mark.parametrize(("pattern", "text"), [("b?a*c", "abc" * 20_000), ("b", "ab" * 30_000), ("?*z", "xy" * 30_000)])
@pytest.mark.parametrize("kind", ["content", "override"])
def test_not_even_thousands_of_rules_take_long(kind: str, pattern: str, text: str) -> None:
    conditions = [{"kind": "event_match", "key": "content.other", "pattern": pattern}]
    rules = [
        {"rule_id": f"{n}", "enabled": True, "actions": ["notify"], "pattern": pattern, "conditions": conditions}
        for n in range(1500)
    ]
    ruleset = Ruleset(UserID("@a:x"), {kind: rules})
    situation = Situation({"content": {"body": text, "other": text}}, 2, lambda _: False)
    ruleset.evaluate(situation)

    with cpu_within(1.0):
        assert not ruleset.evaluate(situation).notify


def test_each_member_has_as_much_effort_and_short_texts_need_little() -> None:
    rules = [{"rule_id": f"{n}", "enabled": True, "actions": [], "pattern": f"b?{n}*c"} for n in range(1000)]
    last = {"rule_id": "last", "enabled": True, "actions": ["notify"], "pattern": "t?a"}
    ruleset = Ruleset(UserID("@a:x"), {"content": [*rules, last]})
    situation = Situation({"content": {"body": "a cup of tea, please: " * 10}}, 2, lambda _: False)

    for _ in range(3):
        assert ruleset.evaluate(situation).notify


def test_thousands_of_patterns_on_a_short_text_cost_effort_too() -> None:
    situation = Situation({"content": {"body": "aza " * 10}}, 2, lambda _: False)
    rules = [{"rule_id": f"{n}", "enabled": True, "actions": ["notify"], "pattern": "a"} for n in range(3000)]
    last = {"rule_id": "last", "enabled": True, "actions": ["notify"], "pattern": "aza"}

    assert not Ruleset(UserID("@a:x"), {"content": [*rules, last]}).evaluate(situation).notify
    assert Ruleset(UserID("@a:x"), {"content": [*rules[:100], last]}).evaluate(situation).notify
