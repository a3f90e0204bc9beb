"""`event_builder`: what we make passes the door that everybody's events pass."""

import pytest

from federation.protocol import event_builder, event_format, event_hashes, signatures
from federation.protocol.errors import InvalidInput, TooLarge
from federation.protocol.event_builder import Placement
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject
from tests.protocol.builders import (
    ALICE,
    HOME,
    HOME_KEY,
    KEY_RING,
    NOW,
    VERSIONS,
    a_room,
    a_room_id,
    a_signed_event,
    an_event_id,
)

STRICT = tuple(version for version in VERSIONS if get_rules(version).strict_canonical_json)


def check_passes_the_door(built: VerifiedPDU) -> None:
    verified = signatures.verify(event_format.parse(built.json, built.rules), KEY_RING)

    for name in type(built).__struct_fields__:
        assert getattr(verified, name) == getattr(built, name), name
    assert event_hashes.event_id_of(built.json, built.rules) == built.event_id


@pytest.mark.parametrize("version", VERSIONS)
def test_a_built_event_passes_our_own_door_and_signature_check(version: str) -> None:
    for built in a_room(version).events:
        check_passes_the_door(built)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_redaction_says_what_it_redacts_where_its_version_wants_it(version: str) -> None:
    target = an_event_id(get_rules(version), "target")

    built = a_signed_event(version, type="m.room.redaction", content={"reason": "x"}, redacts=target)

    check_passes_the_door(built)
    assert built.redacts == target
    if int(version) >= 11:
        assert built.json["content"] == {"reason": "x", "redacts": target}
        assert "redacts" not in built.json
    else:
        assert built.json["content"] == {"reason": "x"}
        assert built.json["redacts"] == target


@pytest.mark.parametrize("version", VERSIONS)
def test_the_event_is_made_of_the_draft_and_its_place(version: str) -> None:
    rules = get_rules(version)

    built = a_signed_event(version, auth_events=[an_event_id(rules, "auth")], depth=3, state_key="")

    expected = {"auth_events", "prev_events", "content", "depth", "origin_server_ts", "sender", "type", "room_id"}
    expected |= {"hashes", "signatures", "state_key"}
    if rules.event_id_format == "server":
        expected.add("event_id")
        assert built.json["auth_events"] == [["$auth:example.org", {"sha256": "h" * 43}]]
        assert built.event_id == "$made:example.org"
    else:
        assert built.json["auth_events"] == [an_event_id(rules, "auth")]
    assert set(built.json) == expected
    assert set(built.json["signatures"]) == {HOME}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_depth_stays_at_the_limit(version: str) -> None:
    limit = 2**53 - 1 if version in STRICT else 2**63 - 1

    built = a_signed_event(version, depth=limit + 1)

    assert built.depth == limit
    check_passes_the_door(built)


def a_draft(
    version: str = "11",
    *,
    content: JsonObject | None = None,
    ts: int | None = None,
    event_type: str = "m.room.message",
    state_key: str | None = None,
) -> Draft:
    return Draft(
        room_id=a_room_id(get_rules(version)),
        type=event_type,
        sender=ALICE,
        content=content or {},
        state_key=state_key,
        origin_server_ts=ts,
    )


def build(draft: Draft, version: str = "11") -> VerifiedPDU:
    placement = Placement(prev_events=[], auth_events=[], depth=1, origin_server_ts=NOW)
    return event_builder.build(
        draft, get_rules(version), placement, server_name=HOME, signing_key=HOME_KEY, event_id_localpart="x"
    )


def test_an_event_is_nested_100_times_at_most() -> None:
    content: JsonObject = {}
    for _ in range(98):
        content = {"a": content}

    build(a_draft(content=content))
    with pytest.raises(InvalidInput, match="nested"):
        build(a_draft(content={"a": content}))


def test_the_time_is_that_of_building_unless_the_draft_has_one() -> None:
    assert build(a_draft()).origin_server_ts == NOW
    assert build(a_draft(ts=0)).json["origin_server_ts"] == 0


def test_a_draft_has_a_time_within_range() -> None:
    with pytest.raises(InvalidInput) as raised:
        build(a_draft("1", ts=2**60), "1")

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("content", [{"a": 1.5}, {"a": [{"b": 2**53}]}])
def test_floats_and_wide_integers_can_be_sent_to_old_rooms_alone(version: str, content: JsonObject) -> None:
    if version in STRICT:
        with pytest.raises(InvalidInput) as raised:
            build(a_draft(version, content=content), version)
        assert (raised.value.errcode, raised.value.http_status) == ("M_BAD_JSON", 400)
    else:
        check_passes_the_door(build(a_draft(version, content=content), version))


@pytest.mark.parametrize(
    "draft", [a_draft(event_type="x" * 256), a_draft(state_key="é" * 128), a_draft(event_type="\ud800")]
)
def test_a_long_type_or_state_key_is_too_large(draft: Draft) -> None:
    with pytest.raises(TooLarge) as raised:
        build(draft)

    assert (raised.value.errcode, raised.value.http_status) == ("M_TOO_LARGE", 413)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_may_have_65536_bytes_and_no_more(version: str) -> None:
    room = 65536 - len(a_signed_event(version, content={"body": ""}).canonical)

    assert len(a_signed_event(version, content={"body": "x" * room}).canonical) == 65536
    with pytest.raises(TooLarge) as raised:
        a_signed_event(version, content={"body": "x" * (room + 1)})
    assert raised.value.errcode == "M_TOO_LARGE"


@pytest.mark.parametrize(
    "draft",
    [
        a_draft(event_type="a\0"),
        a_draft(event_type="m.room.member", state_key="bob", content={"membership": "invite"}),
        a_draft(event_type="m.room.member", state_key=ALICE, content={"membership": 1}),
        a_draft(content={"body": "\ud800"}),
    ],
)
def test_what_our_own_door_would_drop_is_not_built(draft: Draft) -> None:
    with pytest.raises(InvalidInput) as raised:
        build(draft)

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_template_is_the_event_without_what_its_own_server_adds(version: str) -> None:
    rules = get_rules(version)
    draft = a_draft(version, event_type="m.room.member", state_key=ALICE, content={"membership": "join"})
    placement = Placement(prev_events=[], auth_events=[], depth=7, origin_server_ts=NOW)

    made = event_builder.template(draft, rules, placement)

    built = build(draft, version)
    assert set(built.json) - set(made.json) == {"hashes", "signatures"} | ({"event_id"} & set(built.json))
    assert (made.event_id, made.json["depth"]) == ("", 7)
    assert (made.type, made.state_key, made.sender, made.room_id) == (draft.type, ALICE, ALICE, draft.room_id)
