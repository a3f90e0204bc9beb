"""JSON in and out: one strict parser for all that arrives, one canonical encoder (appendices, "Canonical JSON").

Both are orjson where orjson does what the specification asks. It differs in two ways, dealt with here: it accepts an
object that has a key twice, and it writes floats, which only rooms before version 6 may hold, in a form of its own.
Integers beyond 64 bits are read as floats, so that nothing which was parsed cannot be written again.
"""

import json
from typing import Any

import orjson

from federation.protocol.errors import InvalidInput

MAX_DEPTH = 100
"""How deeply objects and arrays may be nested in what arrives."""

MAX_INTEGER = 2**53 - 1

_ORJSON_DEPTH = 254
"""How deeply nested a value orjson encodes before it refuses."""


def loads(data: bytes | str) -> Any:  # noqa: ANN401 - what JSON holds is for the caller to check
    """The value of a JSON text that has no duplicate keys, no NaN or Infinity and no nesting beyond `MAX_DEPTH`.

    Raises InvalidInput: M_NOT_JSON for what is no JSON in UTF-8, M_BAD_JSON for JSON that is refused.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
        value = orjson.loads(raw)
    except ValueError as error:
        raise InvalidInput(f"Not valid JSON: {error}", "M_NOT_JSON") from None
    # Most senders write compact JSON. Written again in the same order it is the same bytes, unless a key was lost.
    if _encode_shallow(value, raw) != raw:
        _refuse_duplicate_keys(raw)
    return value


def loads_object(data: bytes | str) -> dict[str, Any]:
    """As `loads`, for a text that must hold an object."""
    value = loads(data)
    if not isinstance(value, dict):
        raise InvalidInput("A JSON object is needed", "M_BAD_JSON")
    return value


def encode(value: object) -> bytes:
    """The canonical JSON of a value, floats and large integers included, as old room versions need it.

    Raises InvalidInput (M_BAD_JSON) for what has no such form: NaN, lone surrogates, endless nesting.
    """
    return _encode_slowly(value) if _holds_float(value) else encode_checked(value)


def encode_checked(value: object) -> bytes:
    """As `encode`, for a value without floats, as `check_strict` ensures; the fastest way."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return _encode_slowly(value)  # deeper than orjson goes, an integer beyond 64 bits, or what has no such form


def check_strict(value: object) -> None:
    """Raise M_BAD_JSON if a float, or an integer beyond 2**53, is anywhere in a parsed value (room version 6)."""
    pending = [value]
    for item in pending:  # grows while it is read
        kind = type(item)
        if kind is dict:
            pending.extend([member for member in item.values() if type(member) is not str])  # type: ignore[attr-defined] # a dict
        elif kind is list:
            pending.extend([member for member in item if type(member) is not str])  # type: ignore[attr-defined] # a list
        elif kind is int:
            if not -MAX_INTEGER <= item <= MAX_INTEGER:  # type: ignore[operator] # an int
                raise InvalidInput("An integer is beyond the range of 2**53", "M_BAD_JSON")
        elif kind is float:
            raise InvalidInput("Only integers are allowed as numbers", "M_BAD_JSON")


def _encode_slowly(value: object) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"No canonical JSON: {error}", "M_BAD_JSON") from None


def _holds_float(value: object) -> bool:
    pending = [value]
    for item in pending:
        kind = type(item)
        if kind is dict:
            pending.extend([member for member in item.values() if type(member) is not str])  # type: ignore[attr-defined] # a dict
        elif kind is list or kind is tuple:
            pending.extend([member for member in item if type(member) is not str])  # type: ignore[attr-defined] # a list
        elif kind is float:
            return True
    return False


def _encode_shallow(value: object, raw: bytes) -> bytes:
    """Compact JSON of a value just read from `raw`; raises M_BAD_JSON if it is nested beyond `MAX_DEPTH`."""
    padding = 0
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        # It may be too deep: nested further by the difference, orjson's own limit falls where ours is.
        padding = _ORJSON_DEPTH - MAX_DEPTH
        for _ in range(padding):
            value = [value]
    try:
        encoded = orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise InvalidInput(f"JSON is nested deeper than {MAX_DEPTH}", "M_BAD_JSON") from None
    return encoded[padding : len(encoded) - padding]


def _refuse_duplicate_keys(raw: bytes) -> None:
    try:
        json.loads(raw, object_pairs_hook=_unique_pairs, parse_int=len, parse_float=len)
    except RecursionError:  # an object that a later duplicate of its key replaced
        raise InvalidInput(f"JSON is nested deeper than {MAX_DEPTH}", "M_BAD_JSON") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise InvalidInput("A JSON object has a key twice", "M_BAD_JSON")
