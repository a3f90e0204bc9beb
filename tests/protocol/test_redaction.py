"""`redaction`: the keep-lists of every room version."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.redaction import redact
from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject
from tests.protocol.builders import VERSIONS
from tests.protocol.strategies import ANY_JSON, TEXT

KEPT_BY_ALL = {
    "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events",
    "auth_events", "origin_server_ts",
}  # fmt: skip
KEPT_BEFORE_11 = {"prev_state", "origin", "membership"}
POWER_LEVELS = {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}


def kept_content(event_type: str, content: JsonObject, version: str) -> Any:
    return redact({"type": event_type, "content": content}, get_rules(version))["content"]


@pytest.mark.parametrize("version", VERSIONS)
def test_members_of_the_event(version: str) -> None:
    event: JsonObject = {
        key: {} for key in [*KEPT_BY_ALL, *KEPT_BEFORE_11, "unsigned", "redacts", "age", "replaces_state"]
    }

    kept = set(redact(event, get_rules(version)))

    assert kept == (KEPT_BY_ALL if int(version) >= 11 else KEPT_BY_ALL | KEPT_BEFORE_11)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("event_type", "always", "since", "until"),
    [
        ("m.room.message", set(), {}, {}),
        ("m.room.member", {"membership"}, {"join_authorised_via_users_server": 9}, {}),
        ("m.room.create", {"creator"}, {"room_version": 11, "anything": 11}, {}),
        ("m.room.join_rules", {"join_rule"}, {"allow": 8}, {}),
        ("m.room.power_levels", POWER_LEVELS, {"invite": 11}, {}),
        ("m.room.aliases", set(), {}, {"aliases": 5}),
        ("m.room.history_visibility", {"history_visibility"}, {}, {}),
        ("m.room.redaction", set(), {"redacts": 11}, {}),
        ("m.room.name", set(), {}, {}),
    ],
)
def test_members_of_the_content(
    version: str, event_type: str, always: set[str], since: dict[str, int], until: dict[str, int]
) -> None:
    every_key = POWER_LEVELS | {
        "membership", "join_authorised_via_users_server", "creator", "room_version", "anything", "join_rule", "allow",
        "invite", "aliases", "history_visibility", "redacts", "displayname", "notifications", "reason", "body", "name",
    }  # fmt: skip
    number = int(version)

    kept = set(kept_content(event_type, dict.fromkeys(every_key, 1), version))

    expected = always | {key for key, first in since.items() if number >= first}
    expected |= {key for key, last in until.items() if number <= last}
    assert kept == (every_key if event_type == "m.room.create" and number >= 11 else expected)


@pytest.mark.parametrize(
    ("invite", "kept"),
    [
        ({"signed": {"mxid": "@a:h"}, "display_name": "x"}, {"third_party_invite": {"signed": {"mxid": "@a:h"}}}),
        ({"display_name": "x"}, {"third_party_invite": {}}),
        ("text", {}),
    ],
)
def test_a_third_party_invite_keeps_what_is_signed_since_version_11(invite: object, kept: JsonObject) -> None:
    assert kept_content("m.room.member", {"third_party_invite": invite}, "11") == kept
    assert kept_content("m.room.member", {"third_party_invite": invite}, "10") == {}


def test_what_has_no_content_gets_none() -> None:
    assert redact({"type": "x", "unsigned": {}}, get_rules("11")) == {"type": "x"}


def test_the_original_is_left_alone() -> None:
    event = {"type": "m.room.message", "content": {"body": "x"}, "unsigned": {}}

    redact(event, get_rules("11"))

    assert event == {"type": "m.room.message", "content": {"body": "x"}, "unsigned": {}}


CONTENTS = st.dictionaries(
    st.sampled_from(["membership", "third_party_invite", "allow", "users", "redacts", "aliases", "body"]) | TEXT,
    ANY_JSON,
)
EVENTS = st.dictionaries(st.sampled_from(sorted(KEPT_BY_ALL | KEPT_BEFORE_11 | {"unsigned"})) | TEXT, ANY_JSON)


@given(
    EVENTS,
    CONTENTS | ANY_JSON,
    st.sampled_from(["m.room.member", "m.room.create", "m.room.aliases", "m.room.redaction", "x", 7, None, []]),
    st.sampled_from(VERSIONS),
)
def test_redacting_again_changes_nothing(event: JsonObject, content: object, event_type: object, version: str) -> None:
    rules = get_rules(version)

    once = redact({**event, "content": content, "type": event_type}, rules)

    assert redact(once, rules) == once
    assert isinstance(once["content"], dict)
