"""Who may see an event, as a user and as a server."""

import pytest

from federation.protocol.history_visibility import (
    HistoryVisibility,
    get_visibility,
    may_see,
    may_server_see,
    may_user_see,
)
from federation.protocol.types import ServerName
from tests.protocol.room_builder import ALICE, BOB, CAROL, ARoom

VISIBILITIES: tuple[HistoryVisibility, ...] = ("world_readable", "shared", "invited", "joined")
MEMBERSHIPS = (None, "invite", "join", "knock", "leave", "ban")
BOBS = ServerName("bob.example")


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_the_visibility_is_read_from_the_event(visibility: HistoryVisibility) -> None:
    assert get_visibility({"history_visibility": visibility}) == visibility


@pytest.mark.parametrize("value", ["", "default", "Joined", None, 7, ["joined"], {}])
def test_what_is_not_understood_is_shared(value: object) -> None:
    assert get_visibility({"history_visibility": value}) == "shared"
    assert get_visibility({}) == get_visibility(None) == "shared"


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_rules_1_to_5(visibility: HistoryVisibility, membership: str | None) -> None:
    always = visibility == "world_readable" or membership == "join" or (visibility, membership) == ("invited", "invite")

    assert may_see(visibility, membership, joins_later=False) is always
    assert may_see(visibility, membership, joins_later=True) is (always or visibility == "shared")


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_a_message_is_seen_by_these_rules(visibility: HistoryVisibility, membership: str | None) -> None:
    message = ARoom("11").event("m.room.message", ALICE)
    for joins_later in (False, True):
        expected = may_see(visibility, membership, joins_later=joins_later)

        assert may_user_see(message, BOB, visibility, membership, joins_later=joins_later) is expected
        assert may_server_see(message, BOBS, visibility, [membership], joins_later=joins_later) is expected


@pytest.mark.parametrize("before", VISIBILITIES)
@pytest.mark.parametrize("after", VISIBILITIES)
def test_a_change_of_visibility_is_seen_by_the_more_open_of_both(
    before: HistoryVisibility, after: HistoryVisibility
) -> None:
    room = ARoom("11")
    change = room.event("m.room.history_visibility", ALICE, {"history_visibility": after}, state_key="")
    other = room.event("m.room.history_visibility", ALICE, {"history_visibility": after}, state_key="x")

    assert may_user_see(change, BOB, before, None, joins_later=False) is ("world_readable" in (before, after))
    assert may_user_see(change, BOB, before, "invite", joins_later=False) is (
        before in ("world_readable", "invited") or after in ("world_readable", "invited")
    )
    assert may_server_see(change, BOBS, before, [], joins_later=False) is ("world_readable" in (before, after))
    assert may_user_see(other, BOB, before, None, joins_later=False) is (before == "world_readable")


@pytest.mark.parametrize("before", MEMBERSHIPS)
@pytest.mark.parametrize("after", ["invite", "join", "leave", "ban", "knock"])
def test_a_users_own_membership_is_seen_from_before_or_after(before: str | None, after: str) -> None:
    room = ARoom("11")
    change = room.change(BOB, after, ALICE)

    for visibility, seeing in (("joined", {"join"}), ("invited", {"join", "invite"})):
        expected = before in seeing or after in seeing
        assert (
            may_user_see(change, BOB, get_visibility({"history_visibility": visibility}), before, joins_later=False)
            is expected
        )
        assert may_user_see(change, CAROL, "joined", None, joins_later=False) is False


@pytest.mark.parametrize("membership", [7, None, ["join"]])
def test_a_membership_that_is_no_text_opens_nothing(membership: object) -> None:
    change = ARoom("11").event("m.room.member", ALICE, {"membership": membership}, state_key=BOB)

    assert not may_user_see(change, BOB, "joined", "leave", joins_later=False)
    assert not may_server_see(change, BOBS, "joined", [], joins_later=False)


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_a_server_sees_what_any_of_its_users_may_see(visibility: HistoryVisibility) -> None:
    message = ARoom("11").event("m.room.message", ALICE)

    assert may_server_see(message, BOBS, visibility, ["ban", "join", "leave"], joins_later=False)
    assert may_server_see(message, BOBS, visibility, ["ban", "leave"], joins_later=False) is (
        visibility == "world_readable"
    )
    assert may_server_see(message, BOBS, visibility, ["leave", "invite"], joins_later=False) is (
        visibility in ("world_readable", "invited")
    )
    assert may_server_see(message, BOBS, visibility, [], joins_later=True) is (
        visibility in ("world_readable", "shared")
    )


def test_a_server_sees_its_own_users_join_and_not_others() -> None:
    room = ARoom("11")

    assert may_server_see(room.change(BOB, "join"), BOBS, "joined", [], joins_later=False)
    assert not may_server_see(room.change(CAROL, "join"), BOBS, "joined", [], joins_later=False)
    assert not may_server_see(
        room.event("m.room.member", BOB, {"membership": "join"}), BOBS, "joined", [], joins_later=False
    )
