"""Push rules: what they say of events, and that counting without evaluating gives the same numbers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.types import JsonObject, UserID
from homeserver.services.push_conditions import Situation
from homeserver.services.push_counting import invited_user, mentioned_users, outcome_for
from homeserver.services.push_rules import Outcome, Ruleset, outcome_of

ALICE, BOB, CAROL = UserID("@alice:example.org"), UserID("@bob:example.org"), UserID("@Carol:example.org")
ROOM = "!Room:example.org"


def an_event(event_type: str = "m.room.message", /, **content: object) -> JsonObject:
    """An event of Bob's; a `state_key` makes it a state event."""
    event: JsonObject = {"type": event_type, "sender": BOB, "room_id": ROOM}
    if "state_key" in content:
        event["state_key"] = content.pop("state_key")
    return {**event, "content": content}


def evaluate(
    event: JsonObject,
    stored: JsonObject | None = None,
    *,
    members: int = 5,
    may_notify: bool = False,
    display_name: str | None = None,
) -> Outcome:
    return Ruleset(ALICE, stored).evaluate(Situation(event, members, lambda _: may_notify), display_name)


def a_rule(*conditions: object, rule_id: str = "mine", enabled: bool = True) -> JsonObject:
    rule = {"rule_id": rule_id, "enabled": enabled, "actions": ["notify"], "conditions": list(conditions)}
    return {"override": [rule]}


@pytest.mark.parametrize(
    ("event", "counts", "sound"),
    [
        (an_event(body="hi"), (True, False), None),
        (an_event("m.room.encrypted"), (True, False), None),
        (an_event("org.example.other"), (False, False), None),
        (an_event(msgtype="m.notice"), (False, False), None),
        (an_event(msgtype="m.notice", **{"m.mentions": {"user_ids": [ALICE]}}), (False, False), None),
        (an_event(**{"m.mentions": {"user_ids": [ALICE]}}), (True, True), "default"),
        (an_event(**{"m.mentions": {"user_ids": ["@alice:EXAMPLE.org"]}}), (True, False), None),
        (an_event(**{"m.mentions": {"user_ids": ALICE}}), (True, False), None),
        (an_event(**{"m.mentions": "x"}), (True, False), None),
        (an_event("m.room.member", state_key=ALICE, membership="invite"), (True, False), "default"),
        (an_event("m.room.member", state_key=CAROL, membership="invite"), (False, False), None),
        (an_event("m.room.tombstone", state_key=""), (True, True), None),
        (an_event("m.room.tombstone"), (False, False), None),
        (an_event("m.reaction"), (False, False), None),
        (an_event("m.room.server_acl", state_key=""), (False, False), None),
        (an_event(**{"m.relates_to": {"rel_type": "m.replace"}}), (False, False), None),
        (an_event("m.call.invite"), (True, False), "ring"),
    ],
)
def test_default_rules(event: JsonObject, counts: tuple[bool, bool], sound: str | None) -> None:
    outcome = evaluate(event)

    assert outcome.counts == counts
    assert outcome.sound == sound


def test_a_room_mention_needs_the_senders_permission() -> None:
    event = an_event(**{"m.mentions": {"room": True}})

    assert evaluate(event, may_notify=True).counts == (True, True)
    assert evaluate(event, may_notify=False).counts == (True, False)


def test_a_message_of_two_makes_a_sound() -> None:
    assert evaluate(an_event(), members=2).sound == "default"
    assert evaluate(an_event("m.room.encrypted"), members=2).sound == "default"
    assert evaluate(an_event(), members=3).sound is None


def test_nobody_is_notified_of_their_own_events() -> None:
    assert evaluate({**an_event(), "sender": ALICE}).counts == (False, False)


def test_the_master_rule_silences_everything() -> None:
    stored = {"defaults": {".m.rule.master": {"enabled": True}}, **a_rule()}

    assert not evaluate(an_event(), stored).notify


def test_own_rules_come_before_the_other_defaults() -> None:
    assert evaluate(an_event(msgtype="m.notice"), a_rule()).notify


def test_a_disabled_rule_never_matches() -> None:
    assert not evaluate(an_event("org.example"), a_rule(enabled=False)).notify


OTHER = "org.example"


@pytest.mark.parametrize(
    ("condition", "event", "expected"),
    [
        ({"kind": "event_match", "key": "type", "pattern": "ORG.*"}, an_event(OTHER), True),
        ({"kind": "event_match", "key": "content.absent", "pattern": "*"}, an_event(OTHER), False),
        ({"kind": "event_match", "key": "content.n", "pattern": "*"}, an_event(OTHER, n=1), False),
        ({"kind": "event_match", "key": "content.body", "pattern": "tea"}, an_event(OTHER, body="Tea, please"), True),
        ({"kind": "event_match", "key": "content.body", "pattern": "tea"}, an_event(OTHER, body="teapot"), False),
        ({"kind": "event_match", "key": "content.a\\.b", "pattern": "x"}, an_event(OTHER, **{"a.b": "x"}), True),
        ({"kind": "event_match", "key": "content.a.b", "pattern": "x"}, an_event(OTHER, **{"a.b": "x"}), False),
        ({"kind": "event_match", "key": "content.a\\\\b", "pattern": "x"}, an_event(OTHER, **{"a\\b": "x"}), True),
        ({"kind": "event_match", "key": "content.a\\x", "pattern": "x"}, an_event(OTHER, **{"a\\x": "x"}), True),
        ({"kind": "event_match", "key": 7, "pattern": "x"}, an_event(OTHER), False),
        ({"kind": "event_match", "key": "type"}, an_event(OTHER), False),
        ({"kind": "event_property_is", "key": "content.v", "value": True}, an_event(OTHER, v=True), True),
        ({"kind": "event_property_is", "key": "content.v", "value": True}, an_event(OTHER, v=1), False),
        ({"kind": "event_property_is", "key": "content.v", "value": 1}, an_event(OTHER, v=True), False),
        ({"kind": "event_property_is", "key": "content.v", "value": None}, an_event(OTHER, v=None), True),
        ({"kind": "event_property_is", "key": "content.v", "value": None}, an_event(OTHER), False),
        ({"kind": "event_property_is", "key": "content.v", "value": []}, an_event(OTHER, v=[]), False),
        ({"kind": "event_property_is", "key": "content.v", "value": 2**53}, an_event(OTHER, v=2**53), False),
        ({"kind": "event_property_is", "key": "content.v"}, an_event(OTHER, v=None), False),
        ({"kind": "event_property_contains", "key": "content.v", "value": "x"}, an_event(OTHER, v=["y", "x"]), True),
        ({"kind": "event_property_contains", "key": "content.v", "value": "x"}, an_event(OTHER, v=["xy"]), False),
        ({"kind": "event_property_contains", "key": "content.v", "value": "x"}, an_event(OTHER, v="x"), False),
        ({"kind": "event_property_contains", "key": "content.v", "value": 1}, an_event(OTHER, v=[True]), False),
        ({"kind": "room_member_count", "is": "5"}, an_event(OTHER), True),
        ({"kind": "room_member_count", "is": "==5"}, an_event(OTHER), True),
        ({"kind": "room_member_count", "is": "<5"}, an_event(OTHER), False),
        ({"kind": "room_member_count", "is": "<=5"}, an_event(OTHER), True),
        ({"kind": "room_member_count", "is": ">4"}, an_event(OTHER), True),
        ({"kind": "room_member_count", "is": ">=6"}, an_event(OTHER), False),
        ({"kind": "room_member_count", "is": "=5"}, an_event(OTHER), False),
        ({"kind": "room_member_count", "is": 5}, an_event(OTHER), False),
        ({"kind": "org.example.unknown"}, an_event(OTHER), False),
        ({"kind": ["event_match"]}, an_event(OTHER), False),
        ("event_match", an_event(OTHER), False),
    ],
)
def test_a_condition_decides(condition: object, event: JsonObject, expected: bool) -> None:
    assert evaluate(event, a_rule(condition)).notify is expected


def test_a_display_name_in_the_body_matches_as_a_word() -> None:
    stored = a_rule({"kind": "contains_display_name"})

    assert evaluate(an_event(OTHER, body="hello ALICE (she)!"), stored, display_name="Alice (she)").notify
    assert not evaluate(an_event(OTHER, body="hello Alices"), stored, display_name="Alice").notify
    assert not evaluate(an_event(OTHER, body="hello"), stored, display_name=None).notify
    assert not evaluate(an_event(OTHER, body="hello"), stored, display_name="*").notify


def test_kinds_are_checked_in_order() -> None:
    sender = {"rule_id": BOB, "enabled": True, "actions": [{"set_tweak": "sound", "value": "s"}, "notify"]}
    room = {"rule_id": ROOM, "enabled": True, "actions": []}
    content = {"rule_id": "c", "enabled": True, "pattern": "tea", "actions": ["notify"]}

    assert evaluate(an_event(), {"sender": [sender]}).sound == "s"
    assert not evaluate(an_event(), {"sender": [sender], "room": [room]}).notify
    assert evaluate(an_event(body="tea"), {"content": [content], "room": [room]}).notify


@pytest.mark.parametrize(
    ("actions", "notify", "highlight", "sound"),
    [
        (["notify", {"set_tweak": "highlight"}], True, True, None),
        (["notify", {"set_tweak": "highlight", "value": False}], True, False, None),
        (["notify", "coalesce", {"unknown": 1}, 7], True, False, None),
        (["dont_notify"], False, False, None),
        ([{"set_tweak": "highlight"}], False, False, None),
        (["notify", {"set_tweak": "sound", "value": 3}], True, False, None),
    ],
)
def test_actions(actions: list[Any], notify: bool, highlight: bool, sound: str | None) -> None:
    outcome = outcome_of(actions)

    assert (outcome.notify, outcome.highlight, outcome.sound) == (notify, highlight, sound)


# --- counting without evaluating

user_ids = st.sampled_from([ALICE, BOB, CAROL, UserID("@carol:example.org"), UserID("@dora:other.example")])
jumble = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["", "x"]), st.just([]), st.just({}))


TYPES = [
    "m.room.message", "m.room.encrypted", "M.Room.Message", "m.call.invite", "m.reaction", "m.room.member",
    "m.room.tombstone", "m.room.server_acl", "m.room.name", "M.ROOM.MEMBER",
]  # fmt: skip

# What a rule looks at, each with values that nearly match: drawn evenly, so that few examples meet them all.
MENTIONS: list[Any] = [
    None, {}, "x", [], {"room": True}, {"room": 1}, {"room": "true"}, {"room": True, "user_ids": [ALICE]},
    {"user_ids": ALICE}, {"user_ids": [ALICE, CAROL]}, {"user_ids": [BOB, None, 7, [ALICE]]}, {"user_ids": {ALICE: 1}},
]  # fmt: skip
contents = st.builds(
    lambda **content: {name.replace("__", "."): value for name, value in content.items() if value is not None},
    msgtype=st.sampled_from([None, None, "m.text", "m.notice", "M.Notice", 7]),
    membership=st.sampled_from([None, "invite", "join", "INVITE", []]),
    m__mentions=st.sampled_from(MENTIONS),
    m__relates_to=st.sampled_from(
        [None, None, {"rel_type": "m.replace"}, {"rel_type": "M.REPLACE"}, {"rel_type": []}, 7]
    ),
    body=jumble,
)
events = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES), "sender": user_ids, "room_id": st.just(ROOM), "content": contents},
    optional={"state_key": st.one_of(st.just(""), user_ids)},
)


@settings(max_examples=2000)
@given(events, user_ids, st.integers(1, 4), st.booleans())
def test_counting_without_evaluating_gives_what_evaluating_gives(
    event: JsonObject, member: UserID, members: int, may_notify: bool
) -> None:
    full = Ruleset(member).evaluate(Situation(event, members, lambda _: may_notify), "alice")

    assert outcome_for(event, member, may_notify_room=may_notify) == full.counts


def test_whom_an_event_names() -> None:
    mention = an_event(**{"m.mentions": {"user_ids": [ALICE, CAROL, 7, None]}})

    assert mentioned_users(mention) == {ALICE, CAROL}
    assert mentioned_users(an_event()) == set()
    assert invited_user(an_event("m.room.member", state_key=ALICE, membership="invite")) == ALICE
    assert invited_user(mention) is None


# --- who has rules of their own

LOUD = {"set_tweak": "sound", "value": "x"}
room_rule = {"rule_id": ROOM, "enabled": True, "actions": []}
mute = a_rule({"kind": "event_match", "key": "room_id", "pattern": ROOM})


@pytest.mark.parametrize(
    ("stored", "here", "elsewhere"),
    [
        ({}, False, False),
        ({"room": [room_rule]}, True, False),
        (mute, True, False),
        ({"room": [{**room_rule, "enabled": False}]}, False, False),
        (a_rule({"kind": "event_match", "key": "room_id", "pattern": "*"}), True, True),
        (a_rule(), True, True),
        ({"content": [{"rule_id": "c", "enabled": True, "pattern": "tea", "actions": []}]}, True, True),
        ({"defaults": {".m.rule.master": {"enabled": True}}}, True, True),
        ({"defaults": {".m.rule.message": {"enabled": True}}}, False, False),
        ({"defaults": {".m.rule.message": {"actions": ["notify", LOUD]}}}, False, False),
        ({"defaults": {".m.rule.message": {"actions": []}}}, True, True),
    ],
)  # fmt: skip
def test_who_is_counted_apart(stored: JsonObject, here: bool, elsewhere: bool) -> None:
    ruleset = Ruleset(ALICE, stored)

    assert ruleset.differs_in(ROOM) is here
    assert ruleset.differs_in("!other:example.org") is elsewhere


room_patterns = st.sampled_from([ROOM, ROOM.lower(), "!other:example.org", "!*", "!R??m:example.org", 7])
conditions = st.one_of(
    st.builds(lambda pattern: {"kind": "event_match", "key": "room_id", "pattern": pattern}, room_patterns),
    st.builds(lambda value: {"kind": "event_property_is", "key": "room_id", "value": value}, room_patterns),
    st.just({"kind": "event_match", "key": "type", "pattern": "m.*"}),
    st.just({"kind": "org.example.unknown"}),
)
actions = st.sampled_from([[], ["notify"], ["notify", {"set_tweak": "highlight"}], ["notify", LOUD]])
own_rules = st.fixed_dictionaries(
    {"rule_id": room_patterns.map(str), "enabled": st.sampled_from([True, True, False]), "actions": actions}
)
rulesets = st.fixed_dictionaries(
    {},
    optional={
        "override": st.lists(
            st.builds(lambda rule, held: {**rule, "conditions": held}, own_rules, st.lists(conditions, max_size=2)),
            max_size=2,
        ),
        "room": st.lists(own_rules, max_size=2),
        "defaults": st.dictionaries(
            st.sampled_from([".m.rule.message", ".m.rule.room_one_to_one", ".m.rule.suppress_edits"]),
            st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "actions": actions}),
            max_size=2,
        ),
    },
)


@settings(max_examples=500)
@given(rulesets, events, st.integers(1, 3), st.booleans())
def test_who_is_not_counted_apart_counts_as_everybody(
    stored: JsonObject, event: JsonObject, members: int, may_notify: bool
) -> None:
    ruleset = Ruleset(ALICE, stored)
    full = ruleset.evaluate(Situation(event, members, lambda _: may_notify))

    if not ruleset.differs_in(ROOM):
        assert full.counts == outcome_for(event, ALICE, may_notify_room=may_notify)
