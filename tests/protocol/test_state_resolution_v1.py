"""State resolution of room version 1."""

from hashlib import sha1

from federation.protocol.pdu import PDU
from federation.protocol.types import EventID
from tests.protocol.forked_room import ForkedRoom
from tests.protocol.room_builder import ALICE, BOB, CAROL, EVE

TOPIC = ("m.room.topic", "")
LEVELS = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")


def sha1_of(event_id: str) -> str:
    return sha1(event_id.encode(), usedforsecurity=False).hexdigest()


def topic(room: ForkedRoom, sender: str, depth: int, event_id: str | None = None) -> dict[tuple[str, str], EventID]:
    """The state after somebody set the topic, which the room then forgets."""
    base = room.fork()
    room.apply(room.event("m.room.topic", sender, state_key="", depth=depth, event_id=event_id))
    return room.back(base)


def levels(room: ForkedRoom, sender: str, depth: int, **users: int) -> tuple[PDU, dict[tuple[str, str], EventID]]:
    """The state after somebody set the levels, which the room then forgets."""
    base = room.fork()
    content = {"users": room.users(**users), "events": {"m.room.power_levels": 50}}
    pdu = room.apply(room.event("m.room.power_levels", sender, content, state_key="", depth=depth))
    return pdu, room.back(base)


def test_of_other_events_the_deepest_allowed_is_picked() -> None:
    room = ForkedRoom("1")
    states = [topic(room, ALICE, 10), topic(room, BOB, 12), topic(room, ALICE, 11), topic(room, EVE, 13)]

    assert room.resolve(*states)[TOPIC] == states[1][TOPIC]


def test_of_equal_depth_the_smallest_hash_is_picked() -> None:
    room = ForkedRoom("1")
    names = [f"$topic{number}" for number in range(5)]

    resolved = room.resolve(*(topic(room, ALICE, 10, name) for name in names))

    assert resolved[TOPIC] == min(names, key=sha1_of)


def test_if_none_is_allowed_the_least_deep_is_picked() -> None:
    room = ForkedRoom("1")
    states = [topic(room, EVE, 11), topic(room, CAROL, 10), topic(room, EVE, 12)]

    assert room.resolve(*states)[TOPIC] == states[1][TOPIC]


def test_a_key_that_some_states_lack_is_no_conflict() -> None:
    room = ForkedRoom("1")
    base = room.state_ids
    evil = topic(room, EVE, 10)

    assert room.resolve(base, evil)[TOPIC] == evil[TOPIC]


def test_levels_follow_each_other_until_one_is_not_allowed() -> None:
    room = ForkedRoom("1")
    first, one = levels(room, ALICE, 10)
    second, two = levels(room, BOB, 11, carol=40)
    _, three = levels(room, EVE, 12, eve=100)
    _, four = levels(room, ALICE, 13, carol=30)

    assert room.resolve(two, one)[LEVELS] == second.event_id
    assert room.resolve(one, two, three, four)[LEVELS] == second.event_id
    assert room.resolve(one, three)[LEVELS] == first.event_id


def test_the_first_of_the_levels_is_the_least_deep_and_of_those_the_largest_hash() -> None:
    room = ForkedRoom("1")
    content = {"users": {EVE: 100}}
    names = [f"$levels{number}" for number in range(5)]
    base = room.fork()
    states = []
    for name in names:
        room.apply(room.event("m.room.power_levels", EVE, content, state_key="", depth=10, event_id=name, auth=[]))
        states.append(room.back(base))

    assert room.resolve(*states)[LEVELS] == min(names, key=sha1_of), "each is allowed after the one before"
    assert names[0] != min(names, key=sha1_of)


def test_levels_are_settled_before_join_rules_and_those_before_members() -> None:
    room = ForkedRoom("1")
    room.member(EVE, "leave")
    base = room.fork()
    demoting, one = levels(room, ALICE, 20)
    room.state = dict(base)
    promoted, _ = levels(room, ALICE, 21, bob=0)
    room.apply(promoted)
    room.apply(room.event("m.room.join_rules", BOB, {"join_rule": "invite"}, state_key="", depth=22))
    room.apply(room.event("m.room.member", EVE, {"membership": "join"}, state_key=EVE, depth=23))
    two = room.state_ids

    resolved = room.resolve(one, two)

    assert demoting.event_id != promoted.event_id == resolved[LEVELS]
    assert resolved[RULES] == base[RULES].event_id, "Bob had no power"
    assert resolved["m.room.member", EVE] == two["m.room.member", EVE], "so the room is public"


def test_members_are_settled_without_regard_to_each_other() -> None:
    room = ForkedRoom("1")
    base = room.fork()
    ban = room.apply(room.event("m.room.member", BOB, {"membership": "ban"}, state_key=CAROL, depth=20))
    one = room.back(base)
    kick = room.apply(room.event("m.room.member", ALICE, {"membership": "leave"}, state_key=BOB, depth=21))
    two = room.back(base)

    resolved = room.resolve(one, two)

    # Both keys are in conflict, so that neither banner nor banned is in the state that the other is checked against.
    assert resolved["m.room.member", BOB] == kick.event_id
    assert resolved["m.room.member", CAROL] == base["m.room.member", CAROL].event_id != ban.event_id


def test_what_only_one_state_has_stands_before_anything_is_checked() -> None:
    room = ForkedRoom("1")
    dora = "@dora:dora.example"
    room.levels({**room.users(), dora: 50})
    before = room.state_ids
    room.member(dora, "join")
    by_dora = room.levels({**room.users(carol=10), dora: 50}, dora)

    assert room.resolve(before, room.state_ids)[LEVELS] == by_dora.event_id
