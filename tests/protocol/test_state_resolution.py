"""State resolution: stories with a known end, for the versions that share an algorithm."""

import pytest

from federation.protocol.room_versions import get_rules
from federation.protocol.state_resolution import Conflict, list_keys, list_missing, resolve, split
from federation.protocol.types import EventID
from tests.protocol.forked_room import ForkedRoom
from tests.protocol.room_builder import ALICE, ALL_VERSIONS, BOB, CAROL, EVE

TOPIC = ("m.room.topic", "")
LEVELS = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")
FROM_2 = ALL_VERSIONS[1:]
V2 = ALL_VERSIONS[1:11]


def member(user_id: str) -> tuple[str, str]:
    return ("m.room.member", user_id)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_one_state_and_equal_states_resolve_to_themselves(version: str) -> None:
    room = ForkedRoom(version)

    assert room.resolve(room.state_ids) == room.state_ids
    assert room.resolve(room.state_ids, room.state_ids) == room.state_ids
    assert room.resolve({}, {}) == {}


def test_a_key_is_in_conflict_unless_all_states_have_the_same_event() -> None:
    a, b = EventID("$a"), EventID("$b")
    states = [{TOPIC: a, RULES: a, LEVELS: a}, {TOPIC: a, RULES: b}]

    assert split(states) == ({TOPIC: a}, {RULES: {a, b}, LEVELS: {a}})


@pytest.mark.parametrize("version", FROM_2)
def test_of_two_topics_the_later_stays_and_of_equal_times_the_larger_id(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    later = room.add("m.room.topic", BOB, {"topic": "1"}, ts=200)
    first = room.back(base)
    room.add("m.room.topic", ALICE, {"topic": "2"}, ts=100)
    second = room.back(base)
    larger = room.add("m.room.topic", EVE, {"topic": "3"}, ts=200, event_id="$x")
    third = room.back(base)

    assert room.resolve(first, second)[TOPIC] == later.event_id
    assert room.resolve(first, third)[TOPIC] == later.event_id, "Eve may not set topics"
    room.add("m.room.topic", ALICE, {"topic": "4"}, ts=200, event_id="$y")
    assert larger.event_id < "$y"
    assert room.resolve(first, second, room.state_ids)[TOPIC] == "$y"


@pytest.mark.parametrize("version", FROM_2)
def test_a_topic_under_newer_power_levels_beats_a_later_one_under_older(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    room.add("m.room.topic", BOB, {"topic": "old levels"}, ts=1000)
    first = room.back(base)
    room.levels(room.users(carol=10))
    newer = room.add("m.room.topic", BOB, {"topic": "new levels"}, ts=500)

    assert room.resolve(first, room.state_ids)[TOPIC] == newer.event_id


@pytest.mark.parametrize("version", FROM_2)
def test_a_ban_beats_what_the_banned_user_did_meanwhile(version: str) -> None:
    room = ForkedRoom(version)
    room.levels(room.users(eve=50))
    room.add("m.room.topic", ALICE, {"topic": "good"})
    base = room.fork()
    ban = room.member(EVE, "ban", ALICE)
    first = room.back(base)
    room.add("m.room.topic", EVE, {"topic": "evil"}, ts=10_000)

    resolved = room.resolve(first, room.state_ids)

    assert resolved[member(EVE)] == ban.event_id
    assert resolved[TOPIC] == base[TOPIC].event_id


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_who_is_demoted_bans_nobody_meanwhile(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    demoted = room.levels({ALICE: 100, BOB: 0} if version != "12" else {BOB: 0})
    first = room.back(base)
    room.member(CAROL, "ban", BOB)

    resolved = room.resolve(first, room.state_ids)

    assert resolved[LEVELS] == demoted.event_id
    assert resolved[member(CAROL)] == base[member(CAROL)].event_id


@pytest.mark.parametrize("version", FROM_2)
def test_of_two_changes_of_levels_the_more_powerful_senders_goes_first(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    by_bob = room.levels(room.users(carol=40), BOB)
    first = room.back(base)
    by_alice = room.levels(room.users(carol=60))
    second = room.back(base)
    room.levels({**room.users(), BOB: 20})
    third = room.back(base)

    assert room.resolve(first, second)[LEVELS] == by_alice.event_id, "Bob cannot lower Carol's 60"
    assert room.resolve(first, third)[LEVELS] != by_bob.event_id, "Bob has lost his 50"


@pytest.mark.parametrize("version", FROM_2)
def test_who_joined_while_the_room_was_closed_is_out(version: str) -> None:
    room = ForkedRoom(version)
    room.member(EVE, "leave")
    base = room.fork()
    closed = room.join_rule("invite")
    first = room.back(base)
    room.member(EVE, "join")

    resolved = room.resolve(first, room.state_ids)

    assert resolved[RULES] == closed.event_id
    assert resolved[member(EVE)] == base[member(EVE)].event_id


@pytest.mark.parametrize("version", FROM_2)
def test_the_joined_and_the_invited_keep_their_own_events(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    renamed = room.member(CAROL, "join", displayname="C")
    first = room.back(base)
    kicked = room.member(EVE, "leave", BOB)

    resolved = room.resolve(first, room.state_ids)

    assert (resolved[member(CAROL)], resolved[member(EVE)]) == (renamed.event_id, kicked.event_id)


# What version 2.1 mends: "state resets"


@pytest.mark.parametrize("version", FROM_2)
def test_state_by_somebody_who_left_since_is_kept_only_by_version_12(version: str) -> None:
    room = ForkedRoom(version)
    old = room.add("m.room.topic", ALICE, {"topic": "old"}, ts=1)
    without = room.fork()
    new = room.add("m.room.topic", BOB, {"topic": "new"}, ts=2)
    left = room.member(BOB, "leave")
    behind = {**room.back(without), TOPIC: old.event_id}
    ahead = {**behind, TOPIC: new.event_id}

    resolved = room.resolve(behind, ahead)

    assert resolved[member(BOB)] == left.event_id
    assert resolved[TOPIC] == (new.event_id if version == "12" else old.event_id)


@pytest.mark.parametrize("version", FROM_2)
def test_levels_between_two_in_conflict_are_replayed_only_by_version_12(version: str) -> None:
    room = ForkedRoom(version)
    first = room.state[LEVELS]
    room.levels(room.users(carol=100))
    carol = room.member(CAROL, "join", displayname="cites the second levels")
    third = room.power(CAROL, users=room.users(carol=100, eve=60), events={"m.room.power_levels": 50})
    ahead = room.state_ids
    behind = {**ahead, LEVELS: first.event_id}
    assert carol.event_id in behind.values()

    assert room.resolve(behind, ahead)[LEVELS] == (third.event_id if version == "12" else first.event_id)


@pytest.mark.parametrize("version", FROM_2)
def test_a_rejected_event_authorises_nothing_by_being_cited(version: str) -> None:
    room = ForkedRoom(version)
    room.power(users=room.users(), state_default=0)
    topic = room.add("m.room.topic", EVE, {"topic": "x"})
    unconflicted = {key: each for key, each in room.state_ids.items() if key not in (TOPIC, member(EVE))}

    def resolved(*rejected: EventID) -> dict[tuple[str, str], EventID | None]:
        conflict = Conflict(conflicted={TOPIC: {topic.event_id}}, unconflicted=unconflicted, rejected=rejected)
        return resolve(room.rules, conflict, room.events)

    assert resolved() == {TOPIC: topic.event_id}
    assert resolved(room.state[member(EVE)].event_id) == {TOPIC: None}


@pytest.mark.parametrize("version", V2)
def test_state_that_only_the_auth_difference_knows_comes_back(version: str) -> None:
    room = ForkedRoom(version)
    room.add("m.room.topic", BOB, {"topic": "1"})
    ahead = room.state_ids
    without_bob = {key: each for key, each in ahead.items() if key not in (member(BOB), TOPIC)}
    only_topic = {**without_bob, TOPIC: ahead[TOPIC]}

    resolved = room.resolve(without_bob, only_topic)

    assert resolved[member(BOB)] == ahead[member(BOB)]
    assert resolved[TOPIC] == ahead[TOPIC]


def test_what_nobody_may_send_resolves_to_nothing() -> None:
    room = ForkedRoom("11")
    base = room.state_ids
    room.add("m.room.topic", EVE, {"topic": "evil"})

    conflict = Conflict(conflicted={TOPIC: {room.state_ids[TOPIC]}}, unconflicted=base)
    assert resolve(room.rules, conflict, room.events) == {TOPIC: None}
    assert room.resolve(base, room.state_ids) == base


@pytest.mark.parametrize("version", FROM_2)
def test_cycles_end_and_give_nobody_power(version: str) -> None:
    room = ForkedRoom(version)
    base = room.state_ids
    fixed = [
        base[key] for key in (("m.room.create", ""), member(ALICE)) if key[0] != "m.room.create" or version != "12"
    ]
    for one, other in (("$p1", "$p2"), ("$p2", "$p1")):
        room.apply(room.event("m.room.power_levels", ALICE, state_key="", event_id=one, auth=[*fixed, other]))
    room.apply(room.event("m.room.topic", ALICE, state_key="", event_id="$t", auth=[*fixed, "$p1"]))

    resolved = room.resolve(base, room.state_ids)

    assert resolved[LEVELS] == base[LEVELS]
    assert resolved[TOPIC] == "$t"


@pytest.mark.parametrize("version", FROM_2)
def test_what_cites_no_create_event_or_cites_messages_does_not_break_the_order(version: str) -> None:
    room = ForkedRoom(version)
    base = room.state_ids
    message = room.apply(room.event("m.room.message", ALICE))
    auth = [message.event_id, base[member(ALICE)]]
    room.apply(room.event("m.room.power_levels", ALICE, state_key="", event_id="$p", auth=auth))
    room.apply(room.event("m.room.join_rules", ALICE, state_key="", event_id="$j", auth=auth))

    resolved = room.resolve(base, room.state_ids)

    assert set(resolved) == set(base)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_resolve_says_what_it_needs_and_misses_it(version: str) -> None:
    room = ForkedRoom(version)
    base = room.fork()
    room.levels(room.users(carol=10))
    room.add("m.room.topic", BOB, {"topic": "1"})
    first = room.back(base)
    room.add("m.room.topic", ALICE, {"topic": "2"})
    unconflicted, conflicted = split([first, room.state_ids])
    conflict = Conflict(conflicted=conflicted, unconflicted=unconflicted)

    with pytest.raises(KeyError):
        resolve(get_rules(version), conflict, {})
    missing = list_missing(get_rules(version), room.room_id, conflict, {})
    assert set().union(*conflicted.values()) <= missing
    assert list_missing(get_rules(version), room.room_id, conflict, room.events) == set()


def test_what_may_authorise_an_event_is_asked_for_with_what_it_sets() -> None:
    room = ForkedRoom("11")
    topic = room.add("m.room.topic", ALICE)
    message = room.apply(room.event("m.room.message", BOB))
    create = ("m.room.create", "")

    assert list_keys([topic.event_id], room.events) == {create, LEVELS, member(ALICE), TOPIC}
    assert list_keys([message.event_id], room.events) == {create, LEVELS, member(BOB)}
