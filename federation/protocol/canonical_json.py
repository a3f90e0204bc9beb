"""JSON in and out: one strict parser for all that arrives, one canonical encoder (appendices, "Canonical JSON").

Both are orjson where orjson does what the specification asks. It differs in two ways, dealt with here: it accepts an
object that has a key twice, and it writes floats, which only rooms before version 6 may hold, in a form of its own.
Integers beyond 64 bits are read as floats, so that nothing which was parsed cannot be written again.
"""

import json
import re
from typing import Any

import orjson

from federation.protocol.errors import InvalidInput

MAX_DEPTH = 100
"""How deeply objects and arrays may be nested: far less than what can be encoded with more around it."""

MAX_INTEGER = 2**53 - 1

MAX_VALUES = 1_000_000
"""Of one text. Two bytes, as `[]`, become some hundred when they are read: this bounds memory and time, not `len`."""

_SPACE_BEFORE_COLON = re.compile(rb'"[ \t\r\n]+:')


def loads(data: bytes | str, *, max_depth: int | None = MAX_DEPTH) -> Any:  # noqa: ANN401 - JSON
    """The value of a JSON text that has no duplicate keys, no NaN or Infinity and no nesting beyond `max_depth`.

    None, for no limit but the parser's own, is for bodies that carry events or EDUs of many servers, of which one that
    is nested too deeply must not spoil the others: `event_format` and `edu` hold each to `MAX_DEPTH`.
    Raises InvalidInput: M_NOT_JSON for what is no JSON in UTF-8, M_BAD_JSON for JSON that is refused, M_TOO_LARGE for
    more than `MAX_VALUES`.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
        _check_values(raw)
        value = orjson.loads(raw)
    except ValueError as error:
        raise InvalidInput(f"Not valid JSON: {error}", "M_NOT_JSON") from None
    if max_depth is not None:
        check_depth(value, raw, max_depth)
    if not _is_compact(value, raw) and (max_depth is None or not _has_all_keys(value, raw)):
        _refuse_duplicate_keys(raw)
    return value


def _check_values(raw: bytes) -> None:
    """Each value but the first of an object or array stands after a comma, and that behind a bracket."""
    if len(raw) > MAX_VALUES and raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise InvalidInput(f"JSON with more than {MAX_VALUES} values", "M_TOO_LARGE")


def loads_object(data: bytes | str, *, max_depth: int | None = MAX_DEPTH) -> dict[str, Any]:
    """As `loads`, for a text that must hold an object."""
    value = loads(data, max_depth=max_depth)
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


def check_depth(value: object, encoded: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Raise M_BAD_JSON if a parsed value is nested beyond `max_depth`; `encoded` is any JSON text of it."""
    if encoded.count(b"[") + encoded.count(b"{") <= max_depth:
        return  # the usual case, at the cost of two scans
    level = [value]
    for _ in range(max_depth):
        level = [
            member
            for item in level
            if isinstance(item, dict | list)
            for member in (item.values() if isinstance(item, dict) else item)
            if isinstance(member, dict | list)
        ]
        if not level:
            return
    raise InvalidInput(f"JSON is nested deeper than {max_depth}", "M_BAD_JSON")


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


def _is_compact(value: object, raw: bytes) -> bool:
    """Whether a value just read from `raw` becomes the same bytes when it is written again in the order it has.

    So it does if the sender wrote compact JSON, as most do, and not if a duplicate key was lost on the way.
    """
    try:
        return orjson.dumps(value) == raw
    except orjson.JSONEncodeError:  # deeper than orjson writes
        return False


def _has_all_keys(value: object, raw: bytes) -> bool:
    """Whether a value just read from `raw` surely has as many keys as the text, which then repeats none.

    Every key ends in `":`, and so may a piece of a string, as `\\":`: the text can only count too many.
    """
    if _SPACE_BEFORE_COLON.search(raw):
        return False
    keys = 0
    pending = [value]
    for item in pending:
        if type(item) is dict:
            keys += len(item)
            pending.extend([member for member in item.values() if type(member) is not str])
        elif type(item) is list:
            pending.extend([member for member in item if type(member) is not str])
    return keys == raw.count(b'":')


def _refuse_duplicate_keys(raw: bytes) -> None:
    try:
        json.loads(raw, object_pairs_hook=_unique_pairs, parse_int=len, parse_float=len)
    except RecursionError:
        raise InvalidInput("JSON is nested too deeply", "M_BAD_JSON") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise InvalidInput("A JSON object has a key twice", "M_BAD_JSON")
