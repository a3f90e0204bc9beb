"""Splitting an answer into its events while it arrives."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import state_answer
from federation.protocol.errors import InvalidInput
from federation.protocol.state_answer import MAX_DEPTH, EventSplitter
from federation.protocol.types import JsonObject

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), max_size=5)


def split(body: bytes, size: int) -> tuple[list[tuple[str, Any]], JsonObject]:
    splitter = EventSplitter(("state", "auth_chain"))
    found = []
    for start in range(0, len(body), size):
        found += splitter.feed(body[start : start + size])
    last, rest = splitter.finish()
    return [(name, orjson.loads(event)) for name, event in found + last], rest


@given(
    state=OBJECTS,
    auth_chain=OBJECTS,
    other=st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("state", "auth_chain")), JSON, max_size=3),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    is_v1=st.booleans(),
)
def test_events_and_rest_come_out_however_it_arrives(
    state: list[JsonObject], auth_chain: list[JsonObject], other: JsonObject, size: int, indent: int | None, is_v1: bool
) -> None:
    answer = {"state": state, **other, "auth_chain": auth_chain}
    body = json.dumps([200, answer] if is_v1 else answer, indent=indent).encode()
    normal = state_answer._AT_ONCE
    state_answer._AT_ONCE = 1
    try:
        events, rest = split(body, size)
    finally:
        state_answer._AT_ONCE = normal

    assert events == [("state", event) for event in state] + [("auth_chain", event) for event in auth_chain]
    assert rest == other


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[500,{}]",
        b"null",
        b'{"state":[{}',
        b'{"state":[{}]',
        b'{"state":[{}],"auth_chain":[{"a":"}]}',
        b'{"state":[{}],"state":[{}]}',
        b'{"state":[1]}',
        b'{"state":["x"]}',
        b'{"x":1,"x":2}',
        b'{"x" 1}',
        b"{x:1}",
        b'{"x":?}',
        b'{"x":truthy}',
        b'{"x":1}{}',
        b'{"x":"',
        b'{"x',
    ],
)
def test_what_is_no_whole_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        split(body, 3)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        *((start, b" ") for start in (b'{"state":[{"a":"', b'{"x":"', b'{"x":{"a":"', b'{"', b'{"x":[', b" ")),
        *((start, b"[") for start in (b'{"state":[{"a":[', b'{"x":[', b'{"x":1,"y":[{},')),
    ],
)
def test_what_never_ends_is_refused_soon(start: bytes, more: bytes) -> None:
    splitter = EventSplitter(("state",))
    splitter.feed(start)
    with pytest.raises(InvalidInput):
        feed_often(splitter, more * 65536)


def test_an_event_that_is_deep_is_taken_out_as_any_other() -> None:
    deep = b'{"a":' + b"[" * 2 * MAX_DEPTH + b"]" * 2 * MAX_DEPTH + b"}"
    splitter = EventSplitter(("state",))
    found = splitter.feed(b'{"state":[' + deep + b',{"b":1}]}')
    assert found + splitter.finish()[0] == [("state", deep), ("state", b'{"b":1}')]


def test_what_is_deep_is_refused_at_once() -> None:
    splitter = EventSplitter(("state",))
    assert splitter.feed(b'{"x":' + b"[" * MAX_DEPTH + b" " * 65536) == []
    with pytest.raises(InvalidInput):
        splitter.feed(b"{" + b" " * 65536)


def feed_often(splitter: EventSplitter, data: bytes) -> None:
    for _ in range(200):
        splitter.feed(data)


def test_every_array_that_was_there_is_named() -> None:
    splitter = EventSplitter(("state", "auth_chain"))
    splitter.feed(b'{"state":[],"auth_chain":null}')
    assert splitter.finish() == ([], {"auth_chain": None})
    assert splitter.arrays_seen == {"state"}


def test_too_much_besides_events_is_refused() -> None:
    splitter = EventSplitter(("state",))
    splitter.feed(b"{")
    with pytest.raises(InvalidInput):
        feed_often(splitter, b'"x":"' + b"y" * 65536 + b'",')
