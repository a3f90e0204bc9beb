"""Filters: what passes, what is refused."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.errors import InvalidInput
from homeserver.services.sync_filter import EVERYTHING, parse_event_filter, parse_filter, parse_room_event_filter
from tests.processor import cpu_within

BOB = "@bob:example.org"


@pytest.mark.parametrize(
    ("body", "event_type", "expected"),
    [
        ({}, "m.x", True),
        ({"types": ["m.x"]}, "m.x", True),
        ({"types": ["m.x"]}, "m.xy", False),
        ({"types": ["m.*"]}, "m.x", True),
        ({"types": ["*.x"]}, "m.x", True),
        ({"types": ["m*m"]}, "m", False),
        ({"types": ["m.?"]}, "m.x", False),
        ({"types": ["m?*"]}, "m?x", True),
        ({"types": ["m?*"]}, "m.x", False),
        ({"types": []}, "m.x", False),
        ({"types": ["m.*"], "not_types": ["m.x"]}, "m.x", False),
        ({"not_types": ["m.*"]}, "n.x", True),
        ({"not_types": []}, "m.x", True),
        ({"senders": [BOB]}, "m.x", True),
        ({"senders": []}, "m.x", False),
        ({"senders": ["@other:example.org"]}, "m.x", False),
        ({"senders": [BOB], "not_senders": [BOB]}, "m.x", False),
        ({"unknown": 7}, "m.x", True),
    ],
)
def test_an_event_passes(body: dict[str, Any], event_type: str, expected: bool) -> None:
    assert parse_event_filter(body).allows(event_type, BOB) is expected
    assert parse_room_event_filter(body).allows_event(event_type, BOB, {}) is expected


def test_a_url_in_the_content_may_be_asked_for() -> None:
    assert parse_room_event_filter({"contains_url": True}).allows_event("m", BOB, {"url": "mxc://x/y"})
    assert not parse_room_event_filter({"contains_url": True}).allows_event("m", BOB, {})
    assert not parse_room_event_filter({"contains_url": False}).allows_event("m", BOB, {"url": 1})
    assert parse_room_event_filter({"contains_url": False}).allows_event("m", BOB, None)


def test_rooms_are_chosen() -> None:
    whole = parse_filter(
        {"room": {"rooms": ["!a:x", "!b:x"], "not_rooms": ["!b:x"], "timeline": {"not_rooms": ["!a:x"]}}}
    )

    assert whole.allows_room("!a:x")
    assert not whole.allows_room("!b:x")
    assert not whole.allows_room("!c:x")
    assert not whole.timeline.allows_room("!a:x")
    assert whole.state.allows_room("!a:x")


def test_without_a_filter_everything_passes() -> None:
    assert parse_filter({}) == EVERYTHING
    assert EVERYTHING.timeline.is_trivial
    assert EVERYTHING.allows_room("!a:x")
    assert not EVERYTHING.include_leave
    assert not parse_room_event_filter({"types": ["x"]}).is_trivial
    assert not parse_room_event_filter({"contains_url": False}).is_trivial


def test_flags_are_read() -> None:
    section = parse_room_event_filter(
        {"lazy_load_members": True, "include_redundant_members": True, "unread_thread_notifications": True, "limit": 5}
    )

    assert section.lazy_load_members
    assert section.include_redundant_members
    assert section.unread_thread_notifications
    assert section.limit == 5
    assert parse_room_event_filter({"limit": 10**9}).limit == 1000
    assert parse_room_event_filter({"related_by_rel_types": ["m.thread"]}).needs_relations
    assert parse_filter({"event_format": "federation"}).federation_format


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["type"], {"type": "t"}),
        (["content.body"], {"content": {"body": "b"}}),
        (["content.m\\.relates_to.event_id"], {"content": {"m.relates_to": {"event_id": "$e"}}}),
        (["content.body", "content.m\\.relates_to.x"], {"content": {"body": "b", "m.relates_to": {"x": 1}}}),
        (["content", "content.body"], {"content": {"body": "b", "m.relates_to": {"event_id": "$e", "x": 1}}}),
        (["content.body.deeper", "absent", ""], {}),
        ([], {}),
    ],
)  # fmt: skip
def test_fields_are_chosen(fields: list[str], expected: dict[str, Any]) -> None:
    event = {"type": "t", "content": {"body": "b", "m.relates_to": {"event_id": "$e", "x": 1}}}
    before = repr(event)

    assert parse_filter({"event_fields": fields}).shape(event) == expected
    assert repr(event) == before


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {"room": []},
        {"room": {"timeline": 7}},
        {"room": {"rooms": "!a:x"}},
        {"room": {"rooms": ["a"]}},
        {"room": {"rooms": [7]}},
        {"room": {"include_leave": "yes"}},
        {"presence": {"types": "m.presence"}},
        {"presence": {"senders": ["bob"]}},
        {"account_data": {"limit": "5"}},
        {"account_data": {"limit": True}},
        {"account_data": {"limit": -1}},
        {"event_format": "xml"},
        {"event_format": ["client"]},
        {"event_fields": "type"},
        {"event_fields": ["x" * 5000]},
        {"presence": {"types": ["x"] * 2000}},
        {"room": {"timeline": {"lazy_load_members": 1}}},
        {"room": {"timeline": {"contains_url": "no"}}},
    ],
)
def test_a_malformed_filter_is_refused(body: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_filter(body)

    assert (refused.value.errcode, refused.value.http_status) == ("M_BAD_JSON", 400)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["room", "timeline", "types", "senders", "limit", "rooms", "event_fields", "contains_url"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_filter_or_refused(body: object) -> None:
    with suppress(InvalidInput):
        assert parse_filter(body).timeline.allows_event("m.x", BOB, {}) in {True, False}


def test_thousands_of_events_are_asked_of_many_patterns_at_once() -> None:
    wanted = parse_room_event_filter({"types": ["a*" * 100 + f"{n}" for n in range(100)], "not_types": ["b*"]})

    with cpu_within(2.0):
        assert not any(wanted.allows_event("a" * 250, "@a:b", {}) for _ in range(100_000))


@pytest.mark.parametrize("types", [[f"{n}*" for n in range(101)], ["a" * 255 + "*"]])
def test_a_filter_with_too_many_patterns_or_too_long_ones_is_refused(types: list[str]) -> None:
    with pytest.raises(InvalidInput):
        parse_room_event_filter({"types": types})
