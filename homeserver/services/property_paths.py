"""Dot-separated property paths (appendices, "Dot-separated property paths"). Pure."""

from federation.protocol.types import JsonObject

Path = tuple[str, ...]

_ESCAPABLE = frozenset(".\\")


class _Missing:
    """What `get_value` gives where there is nothing: JSON's null is a value."""


MISSING = _Missing()


def parse_path(text: str) -> Path:
    """The property names of a path; an escaped dot or backslash belongs to a name, other escapes are left alone."""
    if "\\" not in text:
        return tuple(text.split("."))
    names: list[str] = []
    name: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\" and text[index + 1 : index + 2] in _ESCAPABLE:
            index += 1
            name.append(text[index])
        elif char == ".":
            names.append("".join(name))
            name.clear()
        else:
            name.append(char)
        index += 1
    names.append("".join(name))
    return tuple(names)


def get_value(event: JsonObject, path: Path) -> object:
    """The value at `path`, or `MISSING`."""
    value: object = event
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value
