"""Hypothesis strategies for JSON, hostile or not."""

from typing import Any

from hypothesis import strategies as st

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
SAFE_INTEGERS = st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def json_of(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """JSON values whose numbers are these."""
    return st.recursive(
        st.none() | st.booleans() | numbers | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
        max_leaves=12,
    )


STRICT_JSON = json_of(SAFE_INTEGERS)
"""What room version 6 and later may hold."""
ANY_JSON = json_of(INT64 | st.floats(allow_nan=False, allow_infinity=False))
"""What `canonical_json.loads` may return."""


def mutated(value: Any) -> st.SearchStrategy[Any]:
    """The value with one member somewhere replaced by any JSON, added or removed."""
    if isinstance(value, dict) and value:
        keys = st.sampled_from(sorted(value))
        replaced = keys.flatmap(
            lambda key: (ANY_JSON | mutated(value[key])).map(lambda changed: {**value, key: changed})
        )
        removed = keys.map(lambda key: {name: member for name, member in value.items() if name != key})
        added = st.tuples(TEXT, ANY_JSON).map(lambda pair: {**value, pair[0]: pair[1]})
        return replaced | removed | added
    if isinstance(value, list) and value:
        return st.integers(0, len(value) - 1).flatmap(
            lambda at: (ANY_JSON | mutated(value[at])).map(lambda changed: [*value[:at], changed, *value[at + 1 :]])
        )
    return ANY_JSON
