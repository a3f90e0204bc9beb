"""The authorisation rules for `m.room.power_levels`, by room version and rule number."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL, EVE, ARoom, broken_rule, member_rule

FROM_10 = ALL_VERSIONS[9:]
UNTIL_5, UNTIL_9 = ALL_VERSIONS[:5], ALL_VERSIONS[:9]
NAMED = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")

USERS, NAMES, REMOVED_EVENTS, ADDED_EVENTS, REMOVED_USERS, ADDED_USERS = 1, 3, 4, 5, 6, 7


def rule(version: str, number: int, rest: str = "") -> str:
    """The number of a rule that all versions have, given as in version 1: 10 put two before it, 12 one more."""
    added = 0
    if version in FROM_10:
        added = 2 if number == USERS or version != "12" else 3
    return f"{member_rule(version) + 5}.{number + added}{rest}"


def a_room(version: str, current: Mapping[str, Any] | None) -> ARoom:
    """A room where Bob has level 50 and may change the levels, unless `current` says something else."""
    room = ARoom(version)
    room.member(BOB, "join")
    if current is not None:
        room.power(**{"users": {BOB: 50, CAROL: 50, EVE: 49}, **current})
    return room


def broken(version: str, current: Mapping[str, Any] | None, new: Mapping[str, Any], sender: str = BOB) -> str | None:
    """The rule that `new` breaks; it keeps the users of `a_room` unless it says something else."""
    room = a_room(version, current)
    content = {"users": {BOB: 50, CAROL: 50, EVE: 49}, **new}
    return broken_rule(room, room.event("m.room.power_levels", sender, content, state_key=""))


@pytest.mark.parametrize("version", FROM_10)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("value", ["50", 50.0, None, True, [], {}])
def test_10_1_named_levels_are_integers_from_version_10(version: str, name: str, value: object) -> None:
    assert broken(version, {}, {name: value}) == f"{member_rule(version) + 5}.1"
    assert broken(version, None, {name: value}, ALICE) == f"{member_rule(version) + 5}.1"


@pytest.mark.parametrize("version", FROM_10)
@pytest.mark.parametrize("table", ["events", "notifications"])
@pytest.mark.parametrize("value", [None, 7, [], "x", {"room": "50"}, {"room": None}, {"room": 50.5}])
def test_10_2_tables_hold_integers_from_version_10(version: str, table: str, value: object) -> None:
    assert broken(version, None, {table: value}, ALICE) == f"{member_rule(version) + 5}.2"


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("users", [None, 7, [], {"bob": 1}, {"@bob": 1}, {BOB: None}, {BOB: "x"}, {BOB: True}])
def test_10_1_users_is_an_object_of_user_ids_and_levels(version: str, users: object) -> None:
    assert broken(version, None, {"users": users}, ALICE) == rule(version, USERS)
    assert broken(version, {}, {"users": users}) == rule(version, USERS)


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("level", ["1", " +01 ", 1.5])
def test_10_1_levels_may_be_strings_or_floats_until_version_9(version: str, level: object) -> None:
    expected = None if version in UNTIL_9 else rule(version, USERS)

    assert broken(version, None, {"users": {CAROL: level}}, ALICE) == expected


def test_10_4_creators_cannot_be_listed_in_version_12() -> None:
    room = ARoom("12", create={"additional_creators": [BOB]})
    for creator in (ALICE, BOB):
        levels = room.event("m.room.power_levels", ALICE, {"users": {creator: 100, CAROL: 1}}, state_key="")
        assert broken_rule(room, levels) == "10.4"

    assert broken("11", None, {"users": {ALICE: 100}}, ALICE) is None


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_10_2_the_first_levels_may_be_anything(version: str) -> None:
    content = {"users": {CAROL: 1000}, "ban": 1000, "events": {"x": 1000}, "users_default": -1}

    assert broken(version, None, content, ALICE) is None


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("current", "new", "number"),
    [
        (51, 40, ".1"),
        (51, None, ".1"),
        (50, 51, ".2"),
        (None, 51, ".2"),
        (50, 40, None),
        (None, 50, None),
        (50, None, None),
        (51, 51, None),
        (None, None, None),
    ],
)
def test_10_3_named_levels_change_within_the_senders_power(
    version: str, name: str, current: int | None, new: int | None, number: str | None
) -> None:
    before: dict[str, Any] = {} if current is None else {name: current}
    after: dict[str, Any] = {} if new is None else {name: new}
    if name == "state_default":
        before["events"] = after["events"] = {"m.room.power_levels": 50}

    expected = None if number is None else rule(version, NAMES, number)
    assert broken(version, before, after) == expected


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("table", ["events", "notifications"])
@pytest.mark.parametrize(
    ("current", "new", "number"),
    [
        (51, 40, REMOVED_EVENTS),
        (51, None, REMOVED_EVENTS),
        (50, 51, ADDED_EVENTS),
        (None, 51, ADDED_EVENTS),
        (50, 40, None),
        (None, 50, None),
        (50, None, None),
        (51, 51, None),
    ],
)
def test_10_4_and_5_entries_change_within_the_senders_power(
    version: str, table: str, current: int | None, new: int | None, number: int | None
) -> None:
    before = {} if current is None else {table: {"room": current}}
    after = {} if new is None else {table: {"room": new}}

    is_checked = table == "events" or version not in UNTIL_5
    expected = rule(version, number, ".1") if is_checked and number is not None else None
    assert broken(version, before, after) == expected


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(
    ("users", "number"),
    [
        ({BOB: 50, CAROL: 49, EVE: 49}, REMOVED_USERS),
        ({BOB: 50, EVE: 49}, REMOVED_USERS),
        ({BOB: 50, CAROL: 50, EVE: 51}, ADDED_USERS),
        ({BOB: 50, CAROL: 50, EVE: 49, "@new:x.example": 51}, ADDED_USERS),
        ({BOB: 51, CAROL: 50, EVE: 49}, ADDED_USERS),
        ({BOB: 50, CAROL: 50, EVE: 50}, None),
        ({BOB: 50, CAROL: 50}, None),
        ({BOB: 49, CAROL: 50, EVE: 49}, None),
        ({CAROL: 50, EVE: 49}, None),
        ({BOB: 50, CAROL: 50, EVE: 49, "@new:x.example": 50}, None),
    ],
)
def test_10_6_and_7_users_are_changed_by_who_stands_above_them(
    version: str, users: dict[str, int], number: int | None
) -> None:
    expected = None if number is None else rule(version, number, ".1")

    assert broken(version, {}, {"users": users}) == expected


@pytest.mark.parametrize("version", UNTIL_9)
def test_levels_are_compared_by_what_they_stand_for(version: str) -> None:
    assert broken(version, {"ban": 51, "events": {"x": "51"}}, {"ban": " 51", "events": {"x": 51.9}}) is None


@pytest.mark.parametrize("version", UNTIL_9)
def test_a_change_to_what_is_no_level_is_rejected(version: str) -> None:
    assert broken(version, {}, {"ban": "many"}) == rule(version, NAMES, ".2")
    assert broken(version, {}, {"events": {"x": None}}) == rule(version, ADDED_EVENTS, ".1")
    assert broken(version, {}, {"events": 7}) == rule(version, ADDED_EVENTS, ".1")


@pytest.mark.parametrize("version", UNTIL_9)
def test_levels_that_were_nonsense_can_be_repaired(version: str) -> None:
    assert broken(version, {"ban": "many", "events": [], "users": {BOB: 50}}, {"ban": 50, "events": {"x": 1}}) is None


def test_creators_of_version_12_change_every_level() -> None:
    top = 2**53 - 1
    room = ARoom("12")
    room.power(users={BOB: top}, ban=top, events={"m.room.power_levels": top})
    content = {"users": {CAROL: top}, "ban": 0, "kick": top}

    assert broken_rule(room, room.event("m.room.power_levels", ALICE, content, state_key="")) is None
