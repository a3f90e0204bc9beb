"""`event_format`: what is an event of its room version, and what is dropped."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import canonical_json, event_format
from federation.protocol.errors import InvalidEvent
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, JsonObject
from tests.processor import cpu_within
from tests.protocol.builders import ALICE, BOB, VERSIONS, a_room, a_room_id, a_signed_event, an_event_id
from tests.protocol.strategies import ANY_JSON, mutated

LENIENT = ("1", "2", "3", "4", "5")
STRICT = tuple(version for version in VERSIONS if version not in LENIENT)
PAIRS = ("1", "2")
MISSING = object()


def an_event(version: str, **changes: Any) -> JsonObject:
    """The JSON of a good event with some members changed; only `unsigned` and the like break no signature."""
    json = {**a_signed_event(version).json, **changes}
    return {key: value for key, value in json.items() if value is not MISSING}


def check_is_dropped(json: object, version: str, match: str | None = None) -> None:
    with pytest.raises(InvalidEvent, match=match) as raised:
        event_format.parse(json, get_rules(version))  # type: ignore[arg-type] # hostile on purpose
    assert raised.value.errcode == "M_BAD_JSON"


def references(version: str, count: int) -> list[Any]:
    event_ids = [an_event_id(get_rules(version), f"e{number}") for number in range(count)]
    return [[event_id, {"sha256": "x"}] for event_id in event_ids] if version in PAIRS else list(event_ids)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_message_is_parsed(version: str) -> None:
    rules = get_rules(version)
    json = an_event(version, auth_events=references(version, 2), unsigned={"age": 5, "redacted_because": 1.5})

    pdu = event_format.parse(json, rules)

    assert pdu.json == {key: value for key, value in json.items() if key != "unsigned"}
    assert (pdu.room_id, pdu.type, pdu.sender) == (a_room_id(rules), "m.room.message", ALICE)
    assert (pdu.state_key, pdu.redacts, pdu.depth) == (None, None, 7)
    assert pdu.prev_event_ids == (an_event_id(rules, "prev"),)
    assert pdu.auth_event_ids == (an_event_id(rules, "e0"), an_event_id(rules, "e1"))
    assert pdu.content == {"body": "hello", "msgtype": "m.text"}
    assert pdu.rules is rules


@pytest.mark.parametrize("json", [None, [], "x", 1, {}])
def test_what_is_no_object_or_empty_is_dropped(json: object) -> None:
    check_is_dropped(json, "11")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "key",
    [
        "sender",
        "type",
        "content",
        "depth",
        "origin_server_ts",
        "hashes",
        "signatures",
        "prev_events",
        "auth_events",
        "room_id",
    ],
)
def test_an_event_without_a_required_member_or_with_one_of_another_type_is_dropped(version: str, key: str) -> None:
    for value in (MISSING, None, 1.0, True, "", "x", -1, [1], [[]], {"x": 1}):
        if (key, value) not in (("content", {"x": 1}), ("type", ""), ("type", "x"), ("origin_server_ts", -1)):
            check_is_dropped(an_event(version, **{key: value}), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("state_key", [None, 1, [], {}, True, "x" * 256, "é" * 128, "a\0"])
def test_a_state_key_is_a_string_of_at_most_255_bytes(version: str, state_key: object) -> None:
    check_is_dropped(an_event(version, state_key=state_key), version, "state_key")


def test_a_state_key_may_be_empty_or_have_255_bytes() -> None:
    assert event_format.parse(an_event("11", state_key=""), get_rules("11")).state_key == ""
    assert event_format.parse(an_event("11", state_key="x" * 255), get_rules("11")).state_key == "x" * 255


@pytest.mark.parametrize("event_type", ["x" * 256, "é" * 128, "a\0b"])
def test_a_type_has_at_most_255_bytes(event_type: str) -> None:
    check_is_dropped(an_event("11", type=event_type), "11", "type")


@pytest.mark.parametrize("sender", ["alice", "@alice", "@a:b c", "@" + "a" * 260 + ":h", "@a\0:h"])
def test_a_sender_is_a_user_id(sender: str) -> None:
    check_is_dropped(an_event("11", sender=sender), "11", "sender")


def test_a_sender_may_be_historical() -> None:
    assert event_format.parse(an_event("11", sender="@ÉVE !:h"), get_rules("11")).sender == "@ÉVE !:h"


@pytest.mark.parametrize("version", VERSIONS)
def test_room_ids_have_the_form_of_the_room_version(version: str) -> None:
    foreign = "!room:example.org" if version == "12" else "!" + "r" * 43

    check_is_dropped(an_event(version, room_id=foreign), version, "room_id")


@pytest.mark.parametrize("version", PAIRS)
@pytest.mark.parametrize("event_id", [MISSING, None, 1, "$abc", "a:b", "$" + "x" * 260 + ":h", "$a:b c"])
def test_old_events_carry_their_id(version: str, event_id: object) -> None:
    check_is_dropped(an_event(version, event_id=event_id), version, "event_id")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("key", "most"), [("prev_events", 20), ("auth_events", 10)])
def test_references_are_limited(version: str, key: str, most: int) -> None:
    event_format.parse(an_event(version, **{key: references(version, most)}), get_rules(version))
    event_format.parse(an_event(version, **{key: []}), get_rules(version))
    check_is_dropped(an_event(version, **{key: references(version, most + 1)}), version, key)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("key", ["prev_events", "auth_events"])
def test_references_have_the_form_of_the_room_version(version: str, key: str) -> None:
    good = references(version, 1)[0]
    foreign = references("4" if version in PAIRS else "1", 1)[0]
    bad: list[Any] = [foreign, 1, None, [], {}, [good], "$", ["$a:h"], ["$a:h", "x"], ["$a:h", {}, 1], [1, {}]]

    for reference in bad:
        check_is_dropped(an_event(version, **{key: [good, reference]}), version)


def test_a_reference_that_stands_twice_counts_once_before_and_is_refused_among_auth_events() -> None:
    twice = references("11", 1) * 2

    assert len(event_format.parse(an_event("11", prev_events=twice), get_rules("11")).prev_event_ids) == 1
    check_is_dropped(an_event("11", auth_events=twice), "11", "twice")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_depth_has_a_limit(version: str) -> None:
    limit = 2**53 - 1 if version in STRICT else 2**63 - 1
    for depth in (0, 1, limit):
        assert event_format.parse(an_event(version, depth=depth), get_rules(version)).depth == depth
    bad: list[object] = [-1, limit + 1, 2**70, True, 1.0, "1"]
    for no_depth in bad:
        check_is_dropped(an_event(version, depth=no_depth), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("number", [0.5, 1.0, 2**53, -(2**53), 2**70])
def test_floats_and_wide_integers_stand_in_old_events_alone(version: str, number: float) -> None:
    anywhere = [
        an_event(version, content={"a": [{"b": number}]}),
        an_event(version, anything={"a": number}),
        an_event(version, hashes={"sha256": "x", "y": number}),
    ]

    for json in anywhere:
        if version in STRICT:
            check_is_dropped(json, version)
        else:
            assert event_format.parse(json, get_rules(version)).json == json


@pytest.mark.parametrize("version", ["1", "11"])
def test_lone_surrogates_are_dropped(version: str) -> None:
    check_is_dropped(an_event(version, content={"a": "\ud800"}), version)
    check_is_dropped(an_event(version, **{"\udfff": 1}), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_has_at_most_65536_bytes_without_unsigned(version: str) -> None:
    rules = get_rules(version)
    room = a_signed_event(version, content={"body": ""})
    largest = a_signed_event(version, content={"body": "x" * (65536 - len(room.canonical))})

    assert len(largest.canonical) == 65536
    event_format.parse({**largest.json, "unsigned": {"x": "y" * 1000}}, rules)
    check_is_dropped({**largest.json, "x": 1}, version, "bytes")


@pytest.mark.parametrize(
    "signatures",
    [{"h": 1}, {"h": []}, {"h": {"ed25519:1": 1}}, {"h": {"ed25519:1": None}}, {"a b": {}}, {"h": {"x": {}}}],
)
def test_signatures_are_strings_under_server_names(signatures: JsonObject) -> None:
    check_is_dropped(an_event("11", signatures=signatures), "11", "ignature")


@pytest.mark.parametrize("hashes", [{"sha256": 1}, {"md5": "x"}, {"sha256": None}])
def test_an_event_has_a_content_hash(hashes: JsonObject) -> None:
    check_is_dropped(an_event("11", hashes=hashes), "11", "hashes")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("state_key", "content"),
    [
        ("bob", {"membership": "join"}),
        ("", {"membership": "join"}),
        (BOB, {"membership": 1}),
        (BOB, {"membership": None}),
    ],
)
def test_a_membership_is_a_string_of_a_user(version: str, state_key: str, content: JsonObject) -> None:
    check_is_dropped(an_event(version, type="m.room.member", state_key=state_key, content=content), version, "member")


def test_a_member_event_without_membership_or_state_key_is_left_to_the_authorisation_rules() -> None:
    rules = get_rules("11")

    assert event_format.parse(an_event("11", type="m.room.member", state_key=BOB, content={}), rules).membership is None
    assert event_format.parse(an_event("11", type="m.room.member"), rules).state_key is None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_id_of_a_room_is_given_or_made_of_its_create_event(version: str) -> None:
    create = a_room(version).events[0]

    pdu = event_format.parse(create.json, get_rules(version))

    if version == "12":
        assert pdu.room_id == "!" + pdu.event_id[1:]
        assert "room_id" not in pdu.json
    else:
        assert pdu.room_id == "!room:example.org"


@pytest.mark.parametrize("changes", [{"room_id": "!" + "r" * 43}, {"room_id": None}, {"state_key": "x"}])
def test_a_create_event_of_version_12_has_no_room_id_and_an_empty_state_key(changes: JsonObject) -> None:
    create = a_room("12").events[0]

    check_is_dropped({**create.json, **changes}, "12")
    check_is_dropped({key: value for key, value in create.json.items() if key != "state_key"}, "12", "create")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_redaction_says_what_it_redacts(version: str) -> None:
    rules = get_rules(version)
    target = EventID("$target:example.org") if version in PAIRS else an_event_id(rules, "target")
    top, inside = {"redacts": target, "content": {}}, {"content": {"redacts": target}}
    place, elsewhere = (inside, top) if int(version) >= 11 else (top, inside)

    assert event_format.parse(an_event(version, type="m.room.redaction", **place), rules).redacts == target
    assert event_format.parse(an_event(version, type="m.room.redaction", **elsewhere), rules).redacts is None
    assert event_format.parse(an_event(version, **place), rules).redacts is None
    bad: list[object] = [1, None, [], "x", "!a:h"]
    for nonsense in bad:
        changes = {"redacts": nonsense, "content": {"redacts": nonsense}}
        assert event_format.parse(an_event(version, type="m.room.redaction", **changes), rules).redacts is None


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_stored_comes_back_as_it_was(version: str) -> None:
    redaction = a_signed_event(version, type="m.room.redaction", redacts=an_event_id(get_rules(version), "x"))
    for event in [*a_room(version).events, redaction, a_signed_event(version)]:
        stored = event_format.from_stored(event.canonical, event.event_id, event.room_id, event.rules)

        for name in type(event).__struct_fields__:
            assert getattr(stored, name) == getattr(event, name), name


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_is_nested_100_times_at_most(version: str) -> None:
    content: JsonObject = {}
    for _ in range(98):
        content = {"a": content}

    event_format.parse(an_event(version, content=content), get_rules(version))
    check_is_dropped(an_event(version, content={"a": content}), version, "nested")
    for _ in range(5000):
        content = {"a": content}
    check_is_dropped(an_event(version, content=content), version)


@pytest.mark.parametrize("version", ["1", "11"])
@pytest.mark.parametrize(
    "key", ["type", "sender", "content", "prev_events", "auth_events", "depth", "origin_server_ts"]
)
def test_a_hostile_stored_event_is_refused_and_nothing_worse(version: str, key: str) -> None:
    event = a_signed_event(version, type="m.room.redaction")
    hostile: list[object] = [None, True, 1.5, [[]], {"a": 1}, {}, [1], [{}], [None], "x", 1]
    stored: list[object] = [an_event(version, **{key: value}) for value in [MISSING, *hostile]]

    for json in [*stored, *hostile, an_event(version, state_key=1)]:
        with contextlib.suppress(InvalidEvent):
            pdu = event_format.from_stored(canonical_json.encode(json), event.event_id, event.room_id, event.rules)

            texts = [pdu.type, pdu.sender, pdu.state_key or "", *pdu.prev_event_ids, *pdu.auth_event_ids]
            assert all(isinstance(text, str) for text in texts)
            assert isinstance(pdu.content, dict)
            assert [type(pdu.depth), type(pdu.origin_server_ts)] == [int, int]
    with pytest.raises(InvalidEvent):
        event_format.from_stored(b"{", event.event_id, event.room_id, event.rules)
    with pytest.raises(InvalidEvent):
        event_format.from_stored(canonical_json.encode(stored[0]), event.event_id, event.room_id, event.rules)


@st.composite
def mutated_events(draw: st.DrawFn) -> tuple[str, Any]:
    version = draw(st.sampled_from(VERSIONS))
    json: Any = draw(st.sampled_from([event.json for event in [*a_room(version).events, a_signed_event(version)]]))
    for _ in range(draw(st.integers(1, 3))):
        json = draw(mutated(json))
    return version, json


@given(mutated_events())
def test_any_json_is_an_event_or_is_dropped(case: tuple[str, Any]) -> None:
    version, json = case
    with contextlib.suppress(InvalidEvent):
        pdu = event_format.parse(json, get_rules(version))

        assert "unsigned" not in pdu.json


@given(ANY_JSON, st.sampled_from(VERSIONS))
def test_nonsense_is_dropped(json: object, version: str) -> None:
    check_is_dropped(json, version)


@pytest.mark.parametrize("version", ["1", "12"])
def test_a_huge_event_is_dropped_quickly(version: str) -> None:
    huge = an_event(
        version,
        content={f"key{number}": [number] for number in range(100_000)},
        prev_events=["$" + "x" * 43] * 100_000,
        signatures={f"h{number}": {} for number in range(100_000)},
    )

    with cpu_within(2.0):
        check_is_dropped(huge, version)
