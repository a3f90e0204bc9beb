"""The authorisation rules, by room version and rule number (`m.room.member` and power levels in their own modules)."""

from typing import Any

import pytest

from federation.protocol.auth_rules import check, check_auth_events
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.types import EventID
from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL, EVE, ARoom, broken_rule, member_rule

UNTIL_5, FROM_6 = ALL_VERSIONS[:5], ALL_VERSIONS[5:]
UNTIL_10, UNTIL_11 = ALL_VERSIONS[:10], ALL_VERSIONS[:11]


def auth_rule(version: str) -> int:
    """The number of the rule on `auth_events`."""
    return 3 if version == "12" else 2


def broken_auth_rule(room: ARoom, auth: list[str], *rejected: str, state_key: str | None = None) -> str | None:
    pdu = room.event("m.room.message" if state_key is None else "m.room.topic", ALICE, state_key=state_key, auth=auth)
    try:
        check_auth_events(pdu, room.events, [EventID(each) for each in rejected])
    except AuthRuleViolated as violated:
        return violated.rule
    return None


# Rule 1: m.room.create


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_1_a_create_event_is_allowed(version: str) -> None:
    room = ARoom(version)

    check(room.create, {})
    check_auth_events(room.create, {}, ())


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_1_1_a_create_event_has_no_previous_events(version: str) -> None:
    room = ARoom(version)

    assert (
        broken_rule(room, room.event("m.room.create", ALICE, room.create.content, state_key="", prev=["$x"])) == "1.1"
    )


@pytest.mark.parametrize("version", UNTIL_11)
def test_1_2_the_room_id_is_of_the_senders_server(version: str) -> None:
    room = ARoom(version)

    assert broken_rule(room, room.event("m.room.create", BOB, room.create.content, state_key="")) == "1.2"


def test_1_2_a_create_event_of_version_12_has_no_room_id() -> None:
    room = ARoom("12")
    create = room.event("m.room.create", ALICE, room.create.content, state_key="", json={"room_id": "!create"})

    assert broken_rule(room, create) == "1.2"


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("room_version", ["13", "org.example", 1, None, [], {}])
def test_1_3_the_room_version_is_known(version: str, room_version: object) -> None:
    room = ARoom(version, create={"room_version": room_version})

    assert broken_rule(room, room.create) == "1.3"


def test_1_3_a_create_event_without_a_version_is_of_version_1() -> None:
    room = ARoom("1")

    assert broken_rule(room, room.event("m.room.create", ALICE, {"creator": ALICE}, state_key="")) is None


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_1_4_the_creator_is_named_until_version_10(version: str) -> None:
    room = ARoom(version)
    create = room.event("m.room.create", ALICE, {"room_version": version}, state_key="")

    assert broken_rule(room, create) == ("1.4" if version in UNTIL_10 else None)


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("additional", [None, BOB, {}, [7], ["bob"], [BOB, "@bob"], ["@bob:"]])
def test_1_4_additional_creators_are_user_ids_from_version_12(version: str, additional: object) -> None:
    room = ARoom(version, create={"additional_creators": additional})

    assert broken_rule(room, room.create) == ("1.4" if version == "12" else None)


@pytest.mark.parametrize("additional", [[], [BOB], [BOB, CAROL, BOB]])
def test_1_4_a_list_of_users_is_allowed(additional: list[str]) -> None:
    room = ARoom("12", create={"additional_creators": additional})

    assert broken_rule(room, room.create) is None


# Rule 2 (3 in version 12): auth_events


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_events_that_cite_what_selection_asks_for_are_allowed(version: str) -> None:
    room = ARoom(version)
    room.power()
    pdu = room.event("m.room.message", ALICE)

    check_auth_events(pdu, room.events, ())
    assert len(pdu.auth_event_ids) == (2 if version == "12" else 3)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_an_auth_event_that_nobody_has_allows_nothing(version: str) -> None:
    room = ARoom(version)

    assert broken_auth_rule(room, ["$unknown"]) == f"{auth_rule(version)}"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_1_there_is_one_auth_event_for_a_key(version: str) -> None:
    room = ARoom(version)
    first, second = room.member(ALICE, "join"), room.member(ALICE, "join")

    assert broken_auth_rule(room, [first.event_id, second.event_id]) == f"{auth_rule(version)}.1"
    assert broken_auth_rule(room, [first.event_id, first.event_id]) == f"{auth_rule(version)}.1"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_2_no_other_events_are_cited(version: str) -> None:
    room = ARoom(version)
    topic = room.add("m.room.topic", ALICE, {"topic": "x"})
    bob = room.member(BOB, "join")
    message = room.apply(room.event("m.room.message", ALICE))
    fake_create = room.apply(room.event("m.room.power_levels", ALICE))

    for useless in (topic, bob, message, fake_create):
        assert broken_auth_rule(room, [useless.event_id]) == f"{auth_rule(version)}.2"


def test_2_2_the_create_event_is_not_cited_in_version_12() -> None:
    assert broken_auth_rule(ARoom("12"), ["$create"]) == "3.2"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_3_rejected_events_authorise_nothing(version: str) -> None:
    room = ARoom(version)
    alice = room.state["m.room.member", ALICE].event_id

    assert broken_auth_rule(room, [alice], alice) == f"{auth_rule(version)}.3"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_4_the_create_event_is_cited_until_version_11(version: str) -> None:
    room = ARoom(version)
    alice = room.state["m.room.member", ALICE].event_id

    assert broken_auth_rule(room, [alice]) == (None if version == "12" else "2.4")


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_5_events_of_other_rooms_authorise_nothing(version: str) -> None:
    room, other = ARoom(version), ARoom(version)
    other.room_id = type(other.room_id)("!other:alice.example")
    foreign = room.apply(other.event("m.room.power_levels", ALICE, state_key="", event_id="$foreign"))

    assert broken_auth_rule(room, [foreign.event_id]) == f"{auth_rule(version)}.5"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_2_the_state_holds_the_rooms_own_create_event(version: str) -> None:
    room, other = ARoom(version), ARoom(version)
    other.room_id = type(other.room_id)("!other:alice.example")
    foreign = other.event("m.room.create", ALICE, state_key="")
    message = room.event("m.room.message", ALICE)

    with pytest.raises(AuthRuleViolated) as missing:
        check(message, {key: pdu for key, pdu in room.state.items() if key[0] != "m.room.create"})
    with pytest.raises(AuthRuleViolated) as mismatched:
        check(message, {**room.state, ("m.room.create", ""): foreign})

    assert missing.value.rule == ("2" if version == "12" else "2.4")
    assert mismatched.value.rule == ("2" if version == "12" else "2.5")


# Rule 3 (4 in version 12): m.federate


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_3_a_room_that_does_not_federate_takes_events_of_its_own_server_only(version: str) -> None:
    room = ARoom(version, create={"m.federate": False})
    local = "@dora:alice.example"
    room.member(local, "join")
    room.member(BOB, "join")

    assert broken_rule(room, room.event("m.room.message", BOB)) == f"{auth_rule(version) + 1}"
    assert broken_rule(room, room.event("m.room.message", local)) is None


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("federate", [True, None, "false", 0])
def test_3_only_false_keeps_others_out(version: str, federate: object) -> None:
    room = ARoom(version, create={"m.federate": federate})
    room.member(BOB, "join")

    assert broken_rule(room, room.event("m.room.message", BOB)) is None


# Rule 4 until version 5: m.room.aliases


@pytest.mark.parametrize("version", UNTIL_5)
def test_4_servers_publish_their_own_aliases_without_being_in_the_room(version: str) -> None:
    room = ARoom(version)

    assert broken_rule(room, room.event("m.room.aliases", EVE)) == "4.1"
    assert broken_rule(room, room.event("m.room.aliases", EVE, state_key="bob.example")) == "4.2"
    assert broken_rule(room, room.event("m.room.aliases", EVE, state_key="eve.example")) is None


@pytest.mark.parametrize("version", FROM_6)
def test_4_aliases_are_ordinary_state_from_version_6(version: str) -> None:
    room = ARoom(version)

    assert (
        broken_rule(room, room.event("m.room.aliases", EVE, state_key="eve.example")) == f"{member_rule(version) + 1}"
    )
    assert broken_rule(room, room.event("m.room.aliases", ALICE, state_key="eve.example")) is None


# Rule 6: the sender is in the room


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", [None, "invite", "leave", "ban", "knock", "", "Join"])
@pytest.mark.parametrize("event_type", ["m.room.message", "m.room.power_levels", "m.room.third_party_invite"])
def test_6_who_is_not_in_the_room_sends_nothing(version: str, membership: str | None, event_type: str) -> None:
    room = ARoom(version)
    if membership is not None:
        room.member(BOB, membership)

    assert broken_rule(room, room.event(event_type, BOB, state_key="")) == f"{member_rule(version) + 1}"


# Rule 7: m.room.third_party_invite


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_7_third_party_invites_need_the_invite_level_and_nothing_else(version: str) -> None:
    room = ARoom(version)
    room.member(BOB, "join")
    room.member(CAROL, "join")
    room.power(invite=20, users={BOB: 20, CAROL: 19}, state_default=100)

    assert broken_rule(room, room.event("m.room.third_party_invite", BOB, state_key="t")) is None
    refused = room.event("m.room.third_party_invite", CAROL, state_key="t")
    assert broken_rule(room, refused) == f"{member_rule(version) + 2}.1"


# Rule 8: the required power level


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_8_the_senders_level_reaches_the_types_level(version: str) -> None:
    room = ARoom(version)
    for user_id in (BOB, CAROL):
        room.member(user_id, "join")
    room.power(users={BOB: 50}, events={"m.room.name": 51, "m.reaction": 1})

    def sends(sender: str, event_type: str, state_key: str | None = None) -> str | None:
        return broken_rule(room, room.event(event_type, sender, state_key=state_key))

    rule = f"{member_rule(version) + 3}"
    assert sends(BOB, "m.room.topic", "") is None
    assert sends(CAROL, "m.room.topic", "") == rule
    assert sends(BOB, "m.room.name", "") == rule
    assert sends(CAROL, "m.room.message") is None
    assert sends(CAROL, "m.reaction") == rule
    assert sends(BOB, "m.reaction") is None


def test_8_creators_may_send_everything_in_version_12() -> None:
    room = ARoom("12", create={"additional_creators": [BOB]})
    room.member(BOB, "join")
    room.power(state_default=2**53 - 1)

    assert broken_rule(room, room.event("m.room.topic", ALICE, state_key="")) is None
    assert broken_rule(room, room.event("m.room.topic", BOB, state_key="")) is None


# Rule 9: state keys that are user IDs


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_9_a_state_key_that_is_a_user_is_the_sender(version: str) -> None:
    room = ARoom(version)

    assert broken_rule(room, room.event("x", ALICE, state_key=ALICE)) is None
    assert broken_rule(room, room.event("x", ALICE, state_key="_" + BOB)) is None
    assert broken_rule(room, room.event("x", ALICE, state_key=BOB)) == f"{member_rule(version) + 4}"
    assert broken_rule(room, room.event("x", ALICE, state_key=ALICE + "_x")) == f"{member_rule(version) + 4}"


# Rule 11 in versions 1 and 2: m.room.redaction


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(
    ("sender", "redacts", "is_allowed"),
    [
        (ALICE, "$event:elsewhere.example", True),
        (BOB, "$event:bob.example", True),
        (BOB, "$event:bob.example:80", False),
        (BOB, "$event:elsewhere.example", False),
        (BOB, None, False),
    ],
)
def test_11_redactions_are_authorised_in_versions_1_and_2(
    version: str, sender: str, redacts: str | None, is_allowed: bool
) -> None:
    room = ARoom(version)
    room.member(BOB, "join")
    redaction = room.event("m.room.redaction", sender, redacts=redacts, event_id="$redaction:bob.example")

    assert broken_rule(room, redaction) == (None if is_allowed or version not in ("1", "2") else "11.3")


def test_check_asks_the_state_only_for_the_keys_that_select_auth_events() -> None:
    asked: set[tuple[str, str]] = set()

    class Recording(dict[tuple[str, str], Any]):
        def get(self, key: tuple[str, str], default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    room = ARoom("11")
    room.power(users={ALICE: 100})
    pdu = room.event("m.room.topic", ALICE, state_key="")

    check(pdu, Recording(room.state))

    assert asked == {("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", ALICE)}
