"""Glob-style matching, and that it never tries anything twice."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.protocol.globs import glob_match, has_wildcards

PATTERNS = st.text("ab_ *?\n", max_size=8)
TEXTS = st.text("ab_ \n", max_size=12)


def as_regex(pattern: str) -> str:
    """The pattern as a regular expression, good for short texts."""
    return "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("**", "anything", True),
        ("evil.com", "evil.com", True),
        ("evil.com", "Evil.com", False),
        ("evil.com", "evilxcom", False),
        ("*.evil.com", "a.b.evil.com", True),
        ("*.evil.com", "evil.com", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*ab*ab*", "xabx", False),
        ("lunc?*", "lunch plans", True),
        ("lunc?*", "lunc", False),
        ("?", "", False),
        ("?", "é", True),
        ("a[b]", "ab", False),
        ("a\\*", "a\\anything", True),
    ],
)
def test_a_star_is_any_text_and_a_question_mark_one_character(pattern: str, text: str, *, matches: bool) -> None:
    assert glob_match(pattern, text) is matches


@given(PATTERNS, TEXTS)
@example("a*?b*", "a\nbb")
def test_it_matches_as_a_regular_expression_does(pattern: str, text: str) -> None:
    assert glob_match(pattern, text) is bool(re.fullmatch(as_regex(pattern), text, re.DOTALL))


def test_wildcards_are_seen() -> None:
    assert [has_wildcards(pattern) for pattern in ("", "a.b", "a*", "a?")] == [False, False, True, True]


class CountingText(str):
    """Counts characters looked at one by one, and what is looked through by `find`."""

    __slots__ = ("looked",)

    def __init__(self, _text: str) -> None:
        self.looked = 0

    def __iter__(self) -> Iterator[str]:
        for character in super().__iter__():
            self.looked += 1
            yield character

    def find(self, part: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override] # fewer kinds of index
        found = super().find(part, start, end)
        self.looked += (len(self) if found < 0 else found + len(part)) - start
        return found


@pytest.mark.parametrize(
    "pattern", ["*a" * 100 + "*b", "a*" * 100 + "c", "*a?" * 50 + "*b", "?*" * 50 + "b", "*" * 500, "*" * 500 + "?b"]
)
def test_a_text_is_gone_through_once(pattern: str) -> None:
    for length in (100, 1000, 10_000):
        text = CountingText("a" * length)

        glob_match(pattern, text)

        assert text.looked <= 2 * length
