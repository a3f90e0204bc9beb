"""We sign only what we built: what another server's template may and may not bring."""

from typing import Any

import pytest

from federation.protocol import event_builder, event_format, member_template, signatures
from federation.protocol.errors import InvalidInput
from federation.protocol.event_builder import Placement
from federation.protocol.member_template import IncompatibleRoomVersion, Wish
from federation.protocol.pdu import Draft
from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject
from tests.protocol.builders import (
    ALICE,
    BOB,
    EVE,
    HOME,
    HOME_KEY,
    KEY_RING,
    NOW,
    VERSIONS,
    a_room_id,
    an_event_id,
)


def a_wish(version: str = "11", membership: str = "join") -> Wish:
    content = {"membership": membership, "displayname": "Alice"}
    return Wish(room_id=a_room_id(get_rules(version)), user_id=ALICE, membership=membership, content=content)


def an_answer(version: str = "11", extra: JsonObject | None = None, **changes: Any) -> JsonObject:
    rules = get_rules(version)

    def refer(name: str) -> object:
        event_id = an_event_id(rules, name)
        return [event_id, {"sha256": "h" * 43}] if rules.references_carry_hashes else event_id

    event: JsonObject = {
        "type": "m.room.member",
        "room_id": a_room_id(rules),
        "sender": ALICE,
        "state_key": ALICE,
        "content": {"membership": "join", **(extra or {})},
        "depth": 12,
        "prev_events": [refer("prev")],
        "auth_events": [refer("auth"), refer("auth2")],
    }
    event.update(changes)
    return {"room_version": version, "event": event}


@pytest.mark.parametrize("version", VERSIONS)
def test_our_event_stands_where_the_template_says_and_says_what_we_want(version: str) -> None:
    foreign = {
        "origin": "evil.example",
        "origin_server_ts": 1,
        "hashes": {"sha256": "x"},
        "signatures": {"example.org": {"ed25519:home": "x"}},
        "unsigned": {"age": 1},
        "redacts": "$x",
        "membership": "ban",
        "m.evil": True,
    }
    answer = an_answer(version, {"displayname": "Mallory", "is_direct": True, "m.evil": {"a": 1}}, **foreign)

    template = member_template.read(answer, a_wish(version))
    pdu = template.build(server_name=HOME, signing_key=HOME_KEY, now_ts=NOW, event_id_localpart="made")

    rules = get_rules(version)
    assert pdu.content == {"membership": "join", "displayname": "Alice"}
    assert pdu.prev_event_ids == (an_event_id(rules, "prev"),)
    assert pdu.auth_event_ids == (an_event_id(rules, "auth"), an_event_id(rules, "auth2"))
    assert (pdu.depth, pdu.origin_server_ts) == (12, NOW)
    ours = {"auth_events", "content", "depth", "hashes", "origin_server_ts", "prev_events", "room_id", "sender"}
    ours |= {"origin", "signatures", "state_key", "type"}
    ours |= {"event_id"} if rules.event_id_format == "server" else set()
    assert set(pdu.json) == ours
    assert pdu.json["origin"] == HOME
    signatures.verify(event_format.parse(pdu.json, rules), KEY_RING)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "m.room.power_levels"},
        {"room_id": "!other:example.org"},
        {"sender": BOB},
        {"state_key": BOB},
        {"state_key": None},
        {"content": {"membership": "leave"}},
        {"content": {}},
        {"content": []},
        {"depth": -1},
        {"depth": 2**60},
        {"depth": 1.5},
        {"depth": True},
        {"depth": None},
        {"prev_events": []},
        {"prev_events": None},
        {"prev_events": ["$x"]},
        {"prev_events": [1]},
        {"prev_events": [an_event_id(get_rules("11"), str(number)) for number in range(21)]},
        {"prev_events": [an_event_id(get_rules("11"))] * 2},
        {"auth_events": [an_event_id(get_rules("11"), str(number)) for number in range(11)]},
        {"auth_events": {}},
        {"content": {"membership": "join", "join_authorised_via_users_server": "bob"}},
        {"content": {"membership": "join", "join_authorised_via_users_server": 1}},
        {"content": {"membership": "join", "join_authorised_via_users_server": BOB}},
    ],
)
def test_a_template_that_is_not_of_what_we_want_is_refused(changes: JsonObject) -> None:
    with pytest.raises(InvalidInput):
        member_template.read(an_answer(**changes), a_wish())


@pytest.mark.parametrize(
    "reference", ["$x:y", ["$x:y"], ["$x:y", {}, {}], ["$x:y", {"sha256": 1}], ["$x:y", {"sha256": "x"}]]
)
def test_references_of_old_rooms_carry_hashes(reference: object) -> None:
    with pytest.raises(InvalidInput):
        member_template.read(an_answer("1", prev_events=[reference]), a_wish("1"))


def test_references_of_old_rooms_may_leave_the_hashes_out() -> None:
    template = member_template.read(an_answer("1", prev_events=[["$x:y", {}]]), a_wish("1"))
    placement = Placement(
        prev_events=template.prev_events,
        auth_events=template.auth_events,
        depth=1,
        origin_server_ts=1,
        hashes=template.hashes,
    )
    draft = Draft(room_id=a_room_id(get_rules("1")), type="m.room.member", sender=ALICE, content={}, state_key=ALICE)
    event = event_builder.build(
        draft, get_rules("1"), placement, server_name=HOME, signing_key=HOME_KEY, event_id_localpart="x"
    )
    assert event.json["prev_events"] == [["$x:y", {}]]
    assert event_format.parse(event.json, get_rules("1")).prev_event_ids == ("$x:y",)


@pytest.mark.parametrize("version", ["13", "org.example.new", 11, None, ["11"]])
def test_an_unknown_room_version_is_refused(version: object) -> None:
    with pytest.raises(IncompatibleRoomVersion) as refused:
        member_template.read({**an_answer(), "room_version": version}, a_wish())
    assert refused.value.body()["room_version"] == version


def test_without_a_version_it_is_version_1() -> None:
    answer = an_answer("1")
    del answer["room_version"]
    assert member_template.read(answer, a_wish("1")).rules.version == "1"


def test_who_vouches_is_taken_over_only_where_somebody_has_to() -> None:
    vouched = {"join_authorised_via_users_server": EVE}
    template = member_template.read(an_answer("11", vouched), a_wish())
    assert template.authoriser == EVE
    pdu = template.build(server_name=HOME, signing_key=HOME_KEY, now_ts=NOW, event_id_localpart="made")
    assert pdu.content == {"membership": "join", "displayname": "Alice", **vouched}
    assert member_template.read(an_answer("7", vouched), a_wish("7")).authoriser is None
    knock = an_answer("11", {**vouched, "membership": "knock"})
    assert member_template.read(knock, a_wish(membership="knock")).authoriser is None


@pytest.mark.parametrize("answer", [{}, {"event": []}, {"event": None, "room_version": "11"}])
def test_no_template_is_refused(answer: JsonObject) -> None:
    with pytest.raises(InvalidInput):
        member_template.read(answer, a_wish())
