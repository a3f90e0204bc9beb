"""Auth events selection (Server-Server API, "Auth events selection")."""

from typing import Any

import pytest

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.room_versions import get_rules
from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL

LEVELS = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")


def member(user_id: str) -> tuple[str, str]:
    return ("m.room.member", user_id)


def keys(version: str, event_type: str, state_key: str | None, content: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return auth_keys_for(event_type, ALICE, state_key, content, get_rules(version))


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_create_event_is_authorised_by_nothing(version: str) -> None:
    assert keys(version, "m.room.create", "", {}) == ()


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_events_cite_the_create_event_until_version_11(version: str) -> None:
    base = (LEVELS, member(ALICE))
    expected = base if version == "12" else (("m.room.create", ""), *base)

    assert keys(version, "m.room.message", None, {}) == expected
    assert keys(version, "m.room.topic", "", {}) == expected


@pytest.mark.parametrize(
    ("state_key", "content", "expected"),
    [
        (ALICE, {"membership": "join"}, (RULES,)),
        (ALICE, {"membership": "knock"}, (RULES,)),
        (ALICE, {"membership": "leave"}, ()),
        (BOB, {"membership": "leave"}, (member(BOB),)),
        (BOB, {"membership": "ban"}, (member(BOB),)),
        (BOB, {"membership": "invite"}, (member(BOB), RULES)),
        (
            BOB,
            {"membership": "invite", "third_party_invite": {"signed": {"token": "t"}}},
            (member(BOB), RULES, ("m.room.third_party_invite", "t")),
        ),
        (BOB, {"membership": "invite", "third_party_invite": {"signed": {"token": 1}}}, (member(BOB), RULES)),
        (BOB, {"membership": "invite", "third_party_invite": {"signed": 1}}, (member(BOB), RULES)),
        (BOB, {"membership": "invite", "third_party_invite": 1}, (member(BOB), RULES)),
        (ALICE, {"membership": "join", "third_party_invite": {"signed": {"token": "t"}}}, (RULES,)),
        (None, {"membership": "join"}, (RULES,)),
        (ALICE, {"membership": ["join"]}, ()),
        (ALICE, {}, ()),
    ],
)
def test_a_membership_also_cites_target_join_rules_and_third_party_invite(
    state_key: str | None, content: dict[str, Any], expected: tuple[tuple[str, str], ...]
) -> None:
    assert keys("12", "m.room.member", state_key, content) == (LEVELS, member(ALICE), *expected)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_restricted_join_cites_who_authorised_it_since_version_8(version: str) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": CAROL}

    assert (member(CAROL) in keys(version, "m.room.member", ALICE, content)) == (int(version) >= 8)


@pytest.mark.parametrize("authoriser", [ALICE, 7, None])
def test_no_key_is_selected_twice_or_for_what_is_no_user(authoriser: object) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": authoriser}

    assert keys("12", "m.room.member", ALICE, content) == (LEVELS, member(ALICE), RULES)
