"""Glob-style matching (appendices, "Glob-style matching"): `*` is any text, `?` is any one character.

In time linear in the text, whatever the pattern: nothing is tried twice. There is no way to escape either character.
"""


def has_wildcards(pattern: str) -> bool:
    """Whether the pattern can match anything but itself."""
    return "*" in pattern or "?" in pattern


def glob_match(pattern: str, text: str) -> bool:
    """Whether the whole text matches; case counts."""
    if "?" in pattern:
        return _Steps(pattern).match(text)
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    last = rest.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    place, end = len(first), len(text) - len(last)
    for part in rest:
        found = text.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


class _Steps:
    """A pattern as steps, a character or `?` each, of which all ways to match are followed at once.

    Bit n of `states` says that the first n steps are done; `*` lets the states before it stay. The text is gone
    through once, with a few operations on numbers of as many bits as there are steps for each character.
    """

    __slots__ = ("_accepts", "_any", "_count", "_stays")

    def __init__(self, pattern: str) -> None:
        self._accepts: dict[str, int] = {}
        self._any = self._stays = self._count = 0
        for character in pattern:
            bit = 1 << self._count
            if character == "*":
                self._stays |= bit
                continue
            if character == "?":
                self._any |= bit
            else:
                self._accepts[character] = self._accepts.get(character, 0) | bit
            self._count += 1

    def match(self, text: str) -> bool:
        """Whether the whole text matches."""
        accepts, any_character, stays = self._accepts, self._any, self._stays
        states = 1
        for character in text:
            states = (states & (accepts.get(character, 0) | any_character)) << 1 | states & stays
        return bool(states >> self._count)
