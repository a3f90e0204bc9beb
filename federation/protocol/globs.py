"""Glob-style matching (appendices, "Glob-style matching"): `*` is any text, `?` is any one character.

In time linear in the text, whatever the pattern: nothing is tried twice. There is no way to escape either character.
"""


def has_wildcards(pattern: str) -> bool:
    """Whether the pattern can match anything but itself."""
    return "*" in pattern or "?" in pattern


def glob_match(pattern: str, text: str) -> bool:
    """Whether the whole text matches; case counts."""
    if "?" in pattern:
        return _match_by_states(pattern, text)
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


def _match_by_states(pattern: str, text: str) -> bool:
    """Follows all ways to match at once: bit n of `states` says that the first n steps of the pattern are done.

    A step is a character or `?`; `*` lets the states before it stay. One turn for each character of the text.
    """
    accepts: dict[str, int] = {}
    any_character = stays = step = 0
    for character in pattern:
        if character == "*":
            stays |= 1 << step
            continue
        if character == "?":
            any_character |= 1 << step
        else:
            accepts[character] = accepts.get(character, 0) | 1 << step
        step += 1
    states = 1
    for character in text:
        states = (states & (accepts.get(character, 0) | any_character)) << 1 | states & stays
        if not states:
            return False
    return bool(states >> step)
