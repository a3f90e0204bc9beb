"""Members of a request's JSON body, each of the type that the specification gives it or refused with M_BAD_JSON."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject


def _wrong(name: str, kind: str) -> InvalidInput:
    return InvalidInput(f"{name} must be {kind}", "M_BAD_JSON")


def find_text(body: JsonObject, name: str) -> str | None:
    """A string; None where it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "a string")
    return value


def get_text(body: JsonObject, name: str) -> str:
    """A string that must be there: M_MISSING_PARAM without it."""
    value = find_text(body, name)
    if value is None:
        raise InvalidInput(f"{name} is required", "M_MISSING_PARAM")
    return value


def find_bool(body: JsonObject, name: str) -> bool | None:
    """A boolean; None where it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "a boolean")
    return value


def get_bool(body: JsonObject, name: str) -> bool:
    """A boolean; false where it is absent or null."""
    return bool(find_bool(body, name))


def required_bool(body: JsonObject, name: str) -> bool:
    """A boolean that must be there: M_MISSING_PARAM without it."""
    value = find_bool(body, name)
    if value is None:
        raise InvalidInput(f"{name} is required", "M_MISSING_PARAM")
    return value


def find_int(body: JsonObject, name: str) -> int | None:
    """An integer; None where it is absent or null."""
    value = body.get(name)
    if value is not None and type(value) is not int:
        raise _wrong(name, "an integer")
    return value


def get_object(body: JsonObject, name: str) -> JsonObject:
    """An object; an empty one where it is absent or null."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    return value


def get_objects(body: JsonObject, name: str) -> list[JsonObject]:
    """An array of objects; an empty one where it is absent or null."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong(name, "an array of objects")
    return value


def get_texts(body: JsonObject, name: str) -> list[str]:
    """An array of strings; an empty one where it is absent or null."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "an array of strings")
    return value
