"""Reading power levels in every room version."""

from typing import Any

import pytest

from federation.protocol.power_levels import INFINITE_LEVEL, PowerLevels, get_creators, parse_level
from federation.protocol.room_versions import get_rules
from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL, ARoom

UNTIL_9 = ALL_VERSIONS[:9]
FROM_10 = ALL_VERSIONS[9:]


def levels(version: str, content: dict[str, Any] | None, create: dict[str, Any] | None = None) -> PowerLevels:
    room = ARoom(version, create=create)
    return PowerLevels.from_state(None if content is None else room.power(**content), room.create)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_without_an_event_the_creator_has_100_and_from_version_12_infinite_power(version: str) -> None:
    found = levels(version, None)

    assert found.of_user(ALICE) == (INFINITE_LEVEL if version == "12" else 100)
    assert found.of_user(BOB) == 0


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("content", [None, {}])
def test_every_level_has_a_default(version: str, content: dict[str, Any] | None) -> None:
    found = levels(version, content)

    assert (found.ban, found.kick, found.redact, found.invite) == (50, 50, 50, 0)
    assert found.to_send("m.room.topic", is_state=True) == 50
    assert found.to_send("m.room.message", is_state=False) == 0
    assert found.notification("room") == 50


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_an_event_replaces_the_defaults(version: str) -> None:
    found = levels(
        version,
        {
            "ban": 1,
            "kick": 2,
            "redact": 3,
            "invite": 4,
            "users_default": 5,
            "state_default": 6,
            "events_default": 7,
            "users": {BOB: -8},
            "events": {"m.room.topic": 9},
            "notifications": {"room": 10},
        },
    )

    assert (found.ban, found.kick, found.redact, found.invite) == (1, 2, 3, 4)
    assert (found.of_user(CAROL), found.of_user(BOB)) == (5, -8)
    assert found.of_user(ALICE) == (INFINITE_LEVEL if version == "12" else 5)
    assert found.to_send("m.room.name", is_state=True) == 6
    assert found.to_send("m.room.message", is_state=False) == 7
    assert found.to_send("m.room.topic", is_state=True) == found.to_send("m.room.topic", is_state=False) == 9
    assert found.notification("room") == 10


def test_additional_creators_have_infinite_power_from_version_12() -> None:
    create = {"additional_creators": [BOB, 7]}

    assert levels("12", {"users_default": 3}, create).of_user(BOB) == INFINITE_LEVEL
    assert levels("12", {"users_default": 3}, create).of_user(CAROL) == 3
    assert levels("11", {"users_default": 3}, create).of_user(BOB) == 3
    assert INFINITE_LEVEL > 2**53


def test_the_creator_is_in_the_content_until_version_10_and_the_sender_afterwards() -> None:
    create = {"creator": BOB}

    assert get_creators(ARoom("10", create=create).create) == {BOB}
    assert get_creators(ARoom("11", create=create).create) == {ALICE}
    assert get_creators(ARoom("12", create=create).create) == {ALICE}
    assert get_creators(ARoom("1", create={"creator": 7}).create) == set()


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("100", 100),
        ("000100", 100),
        ("+100", 100),
        ("-100", -100),
        (" \t00100 \n", 100),
        ("0", 0),
        ("000", 0),
        (50.57, 50),
        (-50.57, -50),
        (5.114698e4, 51146),
        ("9" * 308, int("9" * 308)),
    ],
)
def test_until_version_9_a_level_may_be_a_string_or_a_float(value: object, level: int) -> None:
    assert [parse_level(value, get_rules(version)) for version in UNTIL_9] == [level] * 9
    assert [parse_level(value, get_rules(version)) for version in FROM_10] == [None] * 3


@pytest.mark.parametrize(
    "value",
    ["", "+", "1.5", "1e3", "0x1", "1_0", "١", "- 1", "9" * 309, "9" * 60_000, "x", True, None, [], {}, float("inf")],
)
@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_what_is_no_level_is_none(version: str, value: object) -> None:
    assert parse_level(value, get_rules(version)) is None


def test_numbers_that_no_double_can_hold_are_no_levels_in_old_versions() -> None:
    assert parse_level(1 << 1024, get_rules("1")) is None
    assert parse_level(-(1 << 1024), get_rules("1")) is None
    assert parse_level(float("nan"), get_rules("1")) is None
    assert parse_level(1 << 100, get_rules("1")) == 1 << 100


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_stored_event_that_is_nonsense_counts_as_empty(version: str) -> None:
    found = levels(
        version,
        {"ban": "many", "users": [BOB], "events": {"m.room.topic": None}, "notifications": 7, "users_default": {}},
    )

    assert found.ban == 50
    assert found.of_user(BOB) == 0
    assert found.to_send("m.room.topic", is_state=True) == 50
    assert found.notification("room") == 50
