"""The authorisation rules for `m.room.member`, by room version and rule number."""

from collections.abc import Mapping
from typing import Any

import pytest

from federation.protocol.event_hashes import encode_base64
from federation.protocol.signatures import SigningKey, sign_json
from federation.protocol.types import JsonObject
from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL, EVE, ARoom, broken_rule, member_rule

FROM_7, FROM_8, FROM_10 = ALL_VERSIONS[6:], ALL_VERSIONS[7:], ALL_VERSIONS[9:]
UNTIL_6, UNTIL_7 = ALL_VERSIONS[:6], ALL_VERSIONS[:7]
MEMBERSHIPS = (None, "invite", "join", "leave", "ban", "knock")

JOIN, INVITE, LEAVE, BAN, KNOCK = range(5)


def rule(version: str, branch: int, number: str) -> str:
    """A number within the branch for one membership; version 8 put a rule before the first."""
    return f"{member_rule(version)}.{branch + (3 if version in FROM_8 else 2)}.{number}"


def a_room(version: str, join_rule: str | None = None, **members: str | None) -> ARoom:
    """A room where Alice has all power, with the memberships of `bob`, `carol` and `eve`."""
    room = ARoom(version)
    room.power(users={} if version == "12" else {ALICE: 100})
    if join_rule is not None:
        room.join_rule(join_rule)
    for user_id, name in ((BOB, "bob"), (CAROL, "carol"), (EVE, "eve")):
        membership = members.get(name)
        if membership is not None:
            room.member(user_id, membership, ALICE)
    return room


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_1_a_membership_event_has_a_state_key_and_a_membership(version: str) -> None:
    room = a_room(version, "public")

    assert broken_rule(room, room.event("m.room.member", BOB, {"membership": "join"})) == f"{member_rule(version)}.1"
    assert broken_rule(room, room.event("m.room.member", BOB, {}, state_key=BOB)) == f"{member_rule(version)}.1"


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", ["", "Join", "left", None, 7, ["join"], {"join": True}])
def test_5_8_other_memberships_are_rejected(version: str, membership: Any) -> None:
    room = a_room(version, "public")
    last = 8 if version in FROM_8 else 7 if version == "7" else 6

    assert broken_rule(room, room.change(BOB, membership)) == f"{member_rule(version)}.{last}"


@pytest.mark.parametrize("version", UNTIL_6)
def test_5_6_knocking_is_no_membership_until_version_6(version: str) -> None:
    room = a_room(version, "knock")

    assert broken_rule(room, room.change(BOB, "knock")) == f"{member_rule(version)}.6"


# Rule .2 since version 8: the authorising server's signature


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(
    ("authoriser", "signatures"),
    [
        (ALICE, {}),
        (ALICE, {"bob.example": {"ed25519:1": "x"}}),
        (ALICE, {"alice.example": {}}),
        (ALICE, []),
        ("alice.example", {"alice.example": {"ed25519:1": "x"}}),
        (None, {"alice.example": {"ed25519:1": "x"}}),
    ],
)
def test_5_2_the_authorising_server_signs_since_version_8(version: str, authoriser: object, signatures: object) -> None:
    room = a_room(version, "public")
    join = room.event(
        "m.room.member",
        BOB,
        {"membership": "join", "join_authorised_via_users_server": authoriser},
        state_key=BOB,
        json={"signatures": signatures},
    )

    assert broken_rule(room, join) == (f"{member_rule(version)}.2.1" if version in FROM_8 else None)


# Joins


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_3_1_the_creator_joins_right_after_the_create_event(version: str) -> None:
    room = ARoom(version)
    room.state = {("m.room.create", ""): room.create}

    def joins(user_id: str, *prev: str) -> str | None:
        join = room.event("m.room.member", user_id, {"membership": "join"}, state_key=user_id, prev=prev)
        return broken_rule(room, join)

    otherwise = rule(version, JOIN, "7" if version in FROM_8 else "6")
    assert joins(ALICE, "$create") is None
    assert joins(ALICE, "$create", "$event1") == otherwise
    assert joins(ALICE, "$event1") == otherwise
    assert joins(BOB, "$create") == otherwise


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_3_1_until_version_10_the_creator_is_who_the_content_names(version: str) -> None:
    room = ARoom(version, create={"creator": BOB})
    room.state = {("m.room.create", ""): room.create}
    alice, bob = (
        broken_rule(room, room.event("m.room.member", each, {"membership": "join"}, state_key=each, prev=["$create"]))
        for each in (ALICE, BOB)
    )

    assert (alice is None, bob is None) == ((False, True) if int(version) < 11 else (True, False))


def test_5_3_1_additional_creators_need_an_invite() -> None:
    room = ARoom("12", create={"additional_creators": [BOB]})
    join = room.event("m.room.member", BOB, {"membership": "join"}, state_key=BOB, prev=["$create"])

    assert broken_rule(room, join) == "5.3.7"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_3_2_nobody_joins_somebody_else(version: str) -> None:
    room = a_room(version, "public", bob="invite")

    assert broken_rule(room, room.change(BOB, "join", ALICE)) == rule(version, JOIN, "2")


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("join_rule", ["public", "invite", "knock", "restricted", "knock_restricted"])
def test_5_3_3_a_banned_user_cannot_rejoin(version: str, join_rule: str) -> None:
    room = a_room(version, join_rule, bob="ban")

    assert broken_rule(room, room.change(BOB, "join")) == rule(version, JOIN, "3")


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("join_rule", [None, "invite", "knock", "private", "restricted", "knock_restricted", "public"])
def test_5_3_4_to_7_the_join_rule_decides(version: str, membership: str | None, join_rule: str | None) -> None:
    room = a_room(version, join_rule, bob=membership)
    asked_suffices = {None, "invite"}
    if version in FROM_7:
        asked_suffices.add("knock")
    restricted = {"restricted"} if version in FROM_8 else set()
    if version in FROM_10:
        restricted.add("knock_restricted")

    if membership == "ban":
        expected: str | None = rule(version, JOIN, "3")
    elif join_rule == "public" or (membership in ("invite", "join") and join_rule in asked_suffices | restricted):
        expected = None
    elif join_rule in restricted:
        expected = rule(version, JOIN, "5.2")
    else:
        expected = rule(version, JOIN, "7" if version in FROM_8 else "6")
    assert broken_rule(room, room.change(BOB, "join")) == expected


@pytest.mark.parametrize("version", FROM_8)
@pytest.mark.parametrize(
    ("authoriser", "membership", "is_allowed"),
    [
        (CAROL, "join", True),
        (EVE, "join", False),
        (CAROL, "invite", False),
        (CAROL, "leave", False),
        (CAROL, None, False),
    ],
)
def test_5_3_5_a_member_who_may_invite_authorises_a_restricted_join(
    version: str, authoriser: str, membership: str | None, is_allowed: bool
) -> None:
    room = a_room(version, "restricted", carol=membership, eve=membership)
    room.power(invite=30, users={CAROL: 30, EVE: 29})
    join = room.event(
        "m.room.member",
        BOB,
        {"membership": "join", "join_authorised_via_users_server": authoriser},
        state_key=BOB,
        json={"signatures": {authoriser.partition(":")[2]: {"ed25519:1": "x"}}},
    )

    assert broken_rule(room, join) == (None if is_allowed else rule(version, JOIN, "5.2"))


# Invites


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_5_4_2_who_is_not_in_the_room_invites_nobody(version: str, membership: str | None) -> None:
    room = a_room(version, "public", bob=membership)

    expected = None if membership == "join" else rule(version, INVITE, "2")
    assert broken_rule(room, room.change(CAROL, "invite", BOB)) == expected


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_5_4_3_who_is_joined_or_banned_is_not_invited(version: str, membership: str | None) -> None:
    room = a_room(version, "public", bob=membership)

    expected = rule(version, INVITE, "3") if membership in ("join", "ban") else None
    assert broken_rule(room, room.change(BOB, "invite", ALICE)) == expected


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_4_5_inviting_needs_the_invite_level(version: str) -> None:
    room = a_room(version, bob="join", carol="join")
    room.power(invite=10, users={BOB: 10, CAROL: 9})

    assert broken_rule(room, room.change(EVE, "invite", BOB)) is None
    assert broken_rule(room, room.change(EVE, "invite", CAROL)) == rule(version, INVITE, "5")


KEY = SigningKey.from_seed("1", b"k" * 32)
WRONG_KEY = SigningKey.from_seed("1", b"w" * 32)
PUBLIC_KEY, WRONG_PUBLIC_KEY = encode_base64(KEY.public_key), encode_base64(WRONG_KEY.public_key)


def a_signed(mxid: str = BOB, token: str = "t", key: SigningKey = KEY) -> JsonObject:
    """What an identity server hands out when the address is bound."""
    return sign_json({"mxid": mxid, "token": token}, "identity.example", key)


def third_party_rule(
    version: str,
    third_party_invite: object,
    promise: Mapping[str, Any] | None,
    *,
    sender: str = ALICE,
    membership: str | None = None,
) -> str | None:
    room = a_room(version, bob=membership, carol="join")
    if promise is not None:
        room.add("m.room.third_party_invite", ALICE, promise, state_key="t")
    invite = room.change(BOB, "invite", sender, third_party_invite=third_party_invite)
    return broken_rule(room, invite)


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(
    "promise",
    [
        {"public_key": PUBLIC_KEY},
        {"public_key": WRONG_PUBLIC_KEY, "public_keys": [{"public_key": PUBLIC_KEY}]},
        {"public_keys": [7, {}, {"public_key": 7}, {"public_key": "?"}, {"public_key": PUBLIC_KEY}]},
        {"public_key": PUBLIC_KEY.replace("+", "-").replace("/", "_")},
    ],
)
@pytest.mark.parametrize("membership", [None, "leave", "join", "invite"])
def test_5_4_1_7_a_signature_by_any_key_of_the_promise_invites(
    version: str, promise: dict[str, Any], membership: str | None
) -> None:
    assert third_party_rule(version, {"signed": a_signed()}, promise, membership=membership) is None


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_4_1_1_a_third_party_invite_does_not_lift_a_ban(version: str) -> None:
    found = third_party_rule(version, {"signed": a_signed()}, {"public_key": PUBLIC_KEY}, membership="ban")

    assert found == rule(version, INVITE, "1.1")


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(
    ("third_party_invite", "number"),
    [
        (None, "1.2"),
        ({}, "1.2"),
        ({"signed": 7}, "1.2"),
        ({"signed": {}}, "1.3"),
        ({"signed": {"mxid": BOB}}, "1.3"),
        ({"signed": {"token": "t"}}, "1.3"),
        ({"signed": {"mxid": BOB, "token": 7}}, "1.3"),
        ({"signed": a_signed(mxid=CAROL)}, "1.4"),
        ({"signed": {"mxid": [BOB], "token": "t"}}, "1.4"),
        ({"signed": a_signed(token="other")}, "1.5"),
        ({"signed": {"mxid": BOB, "token": "t"}}, "1.8"),
        ({"signed": a_signed(key=WRONG_KEY)}, "1.8"),
        ({"signed": {**a_signed(), "more": 1}}, "1.8"),
        ({"signed": {**a_signed(), "more": float("nan")}}, "1.8"),
        ({"signed": {"mxid": BOB, "token": "t", "signatures": []}}, "1.8"),
        ({"signed": {"mxid": BOB, "token": "t", "signatures": {"i": 7}}}, "1.8"),
        ({"signed": {"mxid": BOB, "token": "t", "signatures": {"i": {"ed25519:1": 7, "rsa:1": "x"}}}}, "1.8"),
    ],
)
def test_5_4_1_what_a_third_party_invite_must_hold(version: str, third_party_invite: object, number: str) -> None:
    found = third_party_rule(version, third_party_invite, {"public_key": PUBLIC_KEY})

    assert found == rule(version, INVITE, number)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_4_1_5_and_6_the_promise_stands_in_the_room_and_is_the_senders(version: str) -> None:
    invite = {"signed": a_signed()}

    assert third_party_rule(version, invite, None) == rule(version, INVITE, "1.5")
    found = third_party_rule(version, invite, {"public_key": PUBLIC_KEY}, sender=CAROL)
    assert found == rule(version, INVITE, "1.6")


@pytest.mark.parametrize(
    "promise", [{}, {"public_keys": 7}, {"public_key": "AAAA"}, {"public_key": WRONG_PUBLIC_KEY, "public_keys": {}}]
)
def test_5_4_1_8_a_promise_without_the_key_invites_nobody(promise: dict[str, Any]) -> None:
    assert third_party_rule("11", {"signed": a_signed()}, promise) == rule("11", INVITE, "1.8")


def test_5_4_1_7_a_flood_of_keys_and_signatures_is_cut() -> None:
    flood = [{"public_key": WRONG_PUBLIC_KEY}] * 16

    assert (
        third_party_rule("11", {"signed": a_signed()}, {"public_keys": [*flood[1:], {"public_key": PUBLIC_KEY}]})
        is None
    )
    found = third_party_rule("11", {"signed": a_signed()}, {"public_keys": [*flood, {"public_key": PUBLIC_KEY}]})
    assert found == rule("11", INVITE, "1.8")


# Leaving and being removed


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_5_5_1_who_is_invited_joined_or_knocking_may_leave(version: str, membership: str | None) -> None:
    room = a_room(version, bob=membership)
    may = membership in ("invite", "join") or (membership == "knock" and version in FROM_7)

    assert broken_rule(room, room.change(BOB, "leave")) == (None if may else rule(version, LEAVE, "1"))


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(("branch", "membership", "number"), [(LEAVE, "leave", "2"), (BAN, "ban", "1")])
def test_5_5_2_and_5_6_1_who_is_not_in_the_room_removes_nobody(
    version: str, branch: int, membership: str, number: str
) -> None:
    room = a_room(version, bob="leave", carol="join")
    room.power(users={BOB: 100})

    assert broken_rule(room, room.change(CAROL, membership, BOB)) == rule(version, branch, number)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_5_5_3_lifting_a_ban_needs_both_levels(version: str) -> None:
    room = a_room(version, bob="join", carol="join", eve="ban")
    room.power(ban=60, kick=50, users={BOB: 60, CAROL: 59})

    assert broken_rule(room, room.change(EVE, "leave", BOB)) is None
    assert broken_rule(room, room.change(EVE, "leave", CAROL)) == rule(version, LEAVE, "3")
    room.power(ban=50, kick=60, users={BOB: 60, CAROL: 59})
    assert broken_rule(room, room.change(EVE, "leave", BOB)) is None
    assert broken_rule(room, room.change(EVE, "leave", CAROL)) == rule(version, LEAVE, "5")


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize(("membership", "branch"), [("leave", LEAVE), ("ban", BAN)])
@pytest.mark.parametrize("current", [None, "join", "invite", "knock", "leave"])
@pytest.mark.parametrize(
    ("level", "target_level", "is_allowed"), [(50, 49, True), (50, 50, False), (49, 0, False), (100, 99, True)]
)
def test_5_5_5_and_5_6_3_removing_needs_the_level_and_more_power_than_the_target(
    version: str,
    membership: str,
    branch: int,
    current: str | None,
    *,
    level: int,
    target_level: int,
    is_allowed: bool,
) -> None:
    room = a_room(version, bob="join", carol=current)
    room.power(users={BOB: level, CAROL: target_level})

    expected = None if is_allowed else rule(version, branch, "3" if membership == "ban" else "5")
    assert broken_rule(room, room.change(CAROL, membership, BOB)) == expected


def test_creators_of_version_12_remove_everybody_but_each_other() -> None:
    room = ARoom("12", create={"additional_creators": [BOB]})
    for user_id in (BOB, CAROL):
        room.member(user_id, "join")
    room.power(users={CAROL: 2**53 - 1}, ban=2**53 - 1)

    assert broken_rule(room, room.change(CAROL, "ban", BOB)) is None
    assert broken_rule(room, room.change(BOB, "ban", CAROL)) == "5.6.3"
    assert broken_rule(room, room.change(BOB, "ban", ALICE)) == "5.6.3"
    assert broken_rule(room, room.change(ALICE, "leave", BOB)) == "5.5.5"


# Knocking, since version 7


@pytest.mark.parametrize("version", FROM_7)
@pytest.mark.parametrize("join_rule", [None, "public", "invite", "restricted", "knock", "knock_restricted"])
def test_5_7_1_only_some_rooms_can_be_knocked_on(version: str, join_rule: str | None) -> None:
    room = a_room(version, join_rule)
    may = join_rule == "knock" or (join_rule == "knock_restricted" and version in FROM_10)

    assert broken_rule(room, room.change(BOB, "knock")) == (None if may else rule(version, KNOCK, "1"))


@pytest.mark.parametrize("version", FROM_7)
def test_5_7_2_nobody_knocks_for_somebody_else(version: str) -> None:
    room = a_room(version, "knock")

    assert broken_rule(room, room.change(BOB, "knock", ALICE)) == rule(version, KNOCK, "2")


@pytest.mark.parametrize("version", FROM_7)
@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_5_7_4_who_is_banned_invited_or_joined_does_not_knock(version: str, membership: str | None) -> None:
    room = a_room(version, "knock", bob=membership)

    expected = rule(version, KNOCK, "4") if membership in ("ban", "invite", "join") else None
    assert broken_rule(room, room.change(BOB, "knock")) == expected
