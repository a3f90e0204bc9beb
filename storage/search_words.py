"""The words of a text, as messages are indexed and searched by them. Pure.

Case, accents and widths of characters make no difference. What is written without spaces (Chinese, Japanese, Thai,
...), or with endings that are written to the word (Korean), is indexed by pairs of characters, and by single ones
where these are words; a query of several characters finds them where they stand next to each other.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

VERSION = 1
"""To be raised when other words are made of the same text: the index is then made anew."""
MAX_WORDS = 1_000
"""Different ones of one text."""
MAX_LENGTH = 64
"""Of a word, after which it is cut off."""
MAX_QUERY_WORDS = 32

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HANGUL = "\uac00-\ud7af"
_OTHERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
"""Thai, Lao, Burmese, Khmer, Hiragana and Katakana."""
_UNSPACED = _HAN + _HANGUL + _OTHERS
_MARKS = "\u0900-\u0963\u0966-\u0dff\u0f71-\u0f84\u200d"
"""Signs within words of India and Tibet, which are no letters."""
_SIGNS = "\u2600-\u27bf\U0001f000-\U0001faff"
"""Emoji are words, each."""
_FOUND = re.compile(rf"([{_UNSPACED}]+)|((?:[^\W_{_UNSPACED}]|[{_MARKS}])+)|([{_SIGNS}])")
_ASCII = re.compile("[a-z0-9]+")
_DROPPED = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670\u0640\ufe0f]")
"""Accents, and vowel signs that are often left out."""
_SINGLE = re.compile(f"[{_HAN}{_HANGUL}]")


def fold(text: str) -> str:
    """The text with what makes no difference taken away."""
    if text.isascii():
        return text.lower()
    text = _DROPPED.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFC", text).casefold()


class Words(Struct, frozen=True):
    """What stands in a text, folded."""

    plain: tuple[str, ...]
    """Words between spaces, in order, which may have other endings elsewhere."""
    exact: frozenset[str]
    """Characters and pairs of characters of runs without spaces; emoji."""


def words_of(text: str) -> Words:
    """What a text is to be found by."""
    if text.isascii():  # the same, at an eighth of the cost
        return Words(tuple({word[:MAX_LENGTH]: None for word in _ASCII.findall(text.lower())})[:MAX_WORDS], frozenset())
    plain: dict[str, None] = {}
    exact: dict[str, None] = {}
    for match in _FOUND.finditer(fold(text)):
        run, word, sign = match.groups()
        if word is not None:
            plain[word[:MAX_LENGTH]] = None
        elif sign is not None:
            exact[sign] = None
        elif len(run) == 1:
            exact[run] = None
        else:
            exact.update(dict.fromkeys(_pairs(run)))
            exact.update(dict.fromkeys(_SINGLE.findall(run)))
        if len(plain) + len(exact) >= MAX_WORDS:
            break
    return Words(tuple(plain)[:MAX_WORDS], frozenset(tuple(exact)[:MAX_WORDS]))


class Query(Struct, frozen=True):
    """What somebody searches for: a text that has all of it."""

    plain: tuple[str, ...]
    exact: tuple[str, ...]
    """What the index is asked for besides: as `Words.exact`."""
    runs: tuple[str, ...]
    """Characters that must stand next to each other; emoji."""

    @property
    def initials(self) -> frozenset[str]:
        """How words between spaces begin that may be other forms of these: no dictionary changes that."""
        return frozenset(word[0] for word in self.plain)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is searched for."""
        return not self.plain and not self.exact


@lru_cache(256)
def query_of(text: str) -> Query:
    """What a search term asks for; what is longer than any sensible one is cut off."""
    plain: dict[str, None] = {}
    exact: dict[str, None] = {}
    runs: dict[str, None] = {}
    for match in _FOUND.finditer(fold(text)):
        run, word, sign = match.groups()
        if len(plain) + len(exact) >= MAX_QUERY_WORDS:
            break
        if word is not None:
            plain[word[:MAX_LENGTH]] = None
            continue
        found = sign or run[:MAX_QUERY_WORDS]
        runs[found] = None
        exact.update(dict.fromkeys(_pairs(found) if len(found) > 1 else (found,)))
    return Query(tuple(plain), tuple(exact), tuple(runs))


def _pairs(run: str) -> list[str]:
    return [run[index : index + 2] for index in range(len(run) - 1)]


def spellings(text: str) -> Iterable[tuple[str, str]]:
    """The words between spaces as they are written in a text, in small letters, each with its folded form."""
    for match in re.finditer(rf"(?:[^\W_]|[{_MARKS}\u0300-\u036f])+", text):
        written = match[0].lower()
        yield written, fold(written)[:MAX_LENGTH]


# --- names


MAX_NAME_WORDS = 24
_MAX_RUN = 16
"""Characters of a run without spaces whose ends are words, too."""


def name_words(*texts: str) -> list[str]:
    """The words of names, as users are found by how they begin; of a run without spaces each end is one."""
    words: dict[str, None] = {}
    for text in texts:
        for match in _FOUND.finditer(fold(text)):
            run, word, sign = match.groups()
            if run is not None:
                words.update(dict.fromkeys(run[start:][:_MAX_RUN] for start in range(min(len(run), _MAX_RUN))))
            else:
                words[(word or sign)[:MAX_LENGTH]] = None
    return list(words)[:MAX_NAME_WORDS]


def name_query(text: str) -> list[str]:
    """How words have to begin for a user to be found; what begins with @ is the beginning of an ID."""
    beginnings: dict[str, None] = {}
    for part in text[: MAX_LENGTH * 4].split():
        if part.startswith("@"):
            beginnings[fold(part[1:]).replace("\0", "")] = None
        else:
            found = (match[0][:MAX_LENGTH] for match in _FOUND.finditer(fold(part)))
            beginnings.update(dict.fromkeys(found))
    beginnings.pop("", None)
    return list(beginnings)[:MAX_NAME_WORDS]
