"""Glob patterns of push rules (Client-Server API, "Conditions"): without case, in linear time. Pure.

Patterns and texts are hostile. A pattern is matched by running all its possible positions at once, as the bits of an
integer, so that no pattern makes a text cost more than its length times a few machine words. Since somebody may have
thousands of patterns, and texts be long, all patterns together have a limited `Effort` for one text; what it does not
suffice for does not match.
"""

from typing import Protocol

from federation.protocol.globs import glob_match, has_wildcards


class Effort:
    """How much may still be spent on matching: about one character looked at by itself, in Python, costs one."""

    __slots__ = ("_left",)

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, amount: int) -> bool:
        """Whether there was that much left; it is taken then."""
        if amount > self._left:
            return False
        self._left -= amount
        return True


class Matcher(Protocol):
    """Says whether a text, already in lower case, matches."""

    def __call__(self, text: str, effort: Effort | None = None, /) -> bool:
        """Without `effort`, whatever it costs."""


_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_SKIMMED = 64
"""Characters that are skimmed through for a plain word at the cost of one that is looked at by itself."""
_TRIED_LITERALLY = 32
"""Occurrences of a plain word that are looked at one by one before the bits take over."""
_TRIED = 2
"""What one of them costs."""
_BEGUN = 8
"""What a pattern costs of which nothing is in the text: thousands of them take their time, too."""


def whole(pattern: str) -> Matcher:
    """Matches a text as a whole."""
    pattern = pattern.lower()
    if not has_wildcards(pattern):
        return lambda text, effort=None: pattern == text
    stars = pattern.count("*")
    weight = _weight(pattern) if "?" in pattern else 0

    def match(text: str, effort: Effort | None = None) -> bool:
        cost = _BEGUN + (len(text) * weight if weight else stars + len(text) // _SKIMMED)
        return (effort is None or effort.take(cost)) and glob_match(pattern, text)

    return match


def words(pattern: str) -> Matcher:
    """Matches a text of which a part that starts and ends at word boundaries matches the pattern."""
    pattern = pattern.lower()
    if pattern and not has_wildcards(pattern):
        return lambda text, effort=None: has_word(text, pattern, effort)
    return _Bits(pattern).found_in


def has_word(text: str, word: str, effort: Effort | None = None) -> bool:
    """Whether `word`, in which nothing is a wildcard, stands in `text` between word boundaries; both in lower case."""
    if effort is not None and not effort.take(_BEGUN + len(text) // _SKIMMED):
        return False
    at = text.find(word)
    for _ in range(_TRIED_LITERALLY):
        if at < 0:
            return False
        if _is_boundary(text, at) and _is_boundary(text, at + len(word)):
            return True
        if effort is not None and not effort.take(_TRIED):
            return False
        at = text.find(word, at + 1)
    if effort is not None and not effort.take(len(word)):
        return False
    return _Bits(word, is_literal=True).found_in(text, effort)


def _weight(pattern: str) -> int:
    """What a character of the text costs: numbers of that many bits are worked on."""
    return 1 + len(pattern) // 512


class _Bits:
    """Any pattern, searched for between word boundaries: bit i of a state says that its first i tokens are matched."""

    __slots__ = ("_accept", "_any", "_literals", "_loops", "_masks", "_weight")

    def __init__(self, pattern: str, *, is_literal: bool = False) -> None:
        self._masks: dict[str, int] = {}
        self._weight = _weight(pattern)
        self._any = 0
        self._loops = 0
        count = 0
        for char in pattern:
            bit = 1 << count
            if char == "*" and not is_literal:
                self._loops |= bit
                continue
            if char == "?" and not is_literal:
                self._any |= bit
            else:
                self._masks[char] = self._masks.get(char, 0) | bit
            count += 1
        self._accept = 1 << count
        parts = [pattern] if is_literal else pattern.replace("?", "*").split("*")
        self._literals = [part for part in parts if part]

    def found_in(self, text: str, effort: Effort | None = None) -> bool:
        if effort is not None and not effort.take(_BEGUN + len(self._literals) * (1 + len(text) // _SKIMMED)):
            return False
        if not all(part in text for part in self._literals):
            return False
        if effort is not None and not effort.take(len(text) * self._weight):
            return False
        masks, anything, loops, accept = self._masks, self._any, self._loops, self._accept
        state = 0
        inside = False  # whether the character before is part of a word
        for char in text:
            is_word = char in _WORD
            if not (inside and is_word):
                state |= 1
                if state & accept:
                    return True
            state = ((state & (masks.get(char, 0) | anything)) << 1) | (state & loops)
            inside = is_word
        return bool((state | 1) & accept)


def _is_boundary(text: str, index: int) -> bool:
    return index in (0, len(text)) or text[index - 1] not in _WORD or text[index] not in _WORD
