"""`edu`: each kind, and that a server speaks for its own users only."""

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import edu
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from tests.protocol.builders import ALICE, BOB, EVE, HOME, NOW
from tests.protocol.strategies import ANY_JSON, mutated

ROOM = "!room:example.org"
EVENT = "$" + "e" * 43
MISSING = object()


def parse(edu_type: object, content: object) -> Any:
    return edu.parse({"edu_type": edu_type, "content": content}, HOME)


def changed(content: Mapping[str, object], **changes: object) -> JsonObject:
    return {key: value for key, value in {**content, **changes}.items() if value is not MISSING}


def check_is_refused(edu_type: str, content: object) -> None:
    with pytest.raises(InvalidInput):
        parse(edu_type, content)


TYPING = {"room_id": ROOM, "user_id": ALICE, "typing": True}
DEVICE_LIST_UPDATE = {
    "user_id": ALICE,
    "device_id": "PHONE",
    "stream_id": 6,
    "prev_id": [4, 5],
    "deleted": False,
    "device_display_name": "Mobile",
    "keys": {"user_id": ALICE, "device_id": "PHONE", "keys": {}},
}
SIGNING_KEY_UPDATE = {
    "user_id": ALICE,
    "master_key": {"user_id": ALICE},
    "self_signing_key": {"user_id": ALICE, "k": 1},
}
DIRECT_TO_DEVICE = {
    "sender": ALICE,
    "type": "m.room_key_request",
    "message_id": "hiezohf6Hoo7kaev",
    "messages": {EVE: {"PHONE": {"a": 1}, "*": {}}, BOB: {}},
}
RECEIPT = {"event_ids": [EVENT], "data": {"ts": NOW}}
PRESENCE = {
    "user_id": ALICE,
    "presence": "online",
    "last_active_ago": 5000,
    "currently_active": True,
    "status_msg": "hi",
}
GOOD: dict[str, JsonObject] = {
    "m.typing": TYPING,
    "m.presence": {"push": [PRESENCE]},
    "m.receipt": {ROOM: {"m.read": {ALICE: RECEIPT}}},
    "m.device_list_update": DEVICE_LIST_UPDATE,
    "m.signing_key_update": SIGNING_KEY_UPDATE,
    "m.direct_to_device": DIRECT_TO_DEVICE,
}
NAMES_THE_USER = [
    ("m.typing", "user_id"),
    ("m.device_list_update", "user_id"),
    ("m.signing_key_update", "user_id"),
    ("m.direct_to_device", "sender"),
]


@pytest.mark.parametrize("json", [None, [], "x", {}, {"edu_type": "m.typing"}, {"edu_type": "x", "content": []}])
def test_an_edu_is_an_object_with_content(json: object) -> None:
    with pytest.raises(InvalidInput):
        edu.parse(json, HOME)


@pytest.mark.parametrize("edu_type", ["org.example.kind", None, 7, []])
def test_a_kind_that_we_do_not_know_is_nothing(edu_type: object) -> None:
    assert parse(edu_type, {}) is None


@pytest.mark.parametrize(("edu_type", "key"), NAMES_THE_USER)
@pytest.mark.parametrize("user_id", [EVE, "@alice:example.org:80", "alice", "", None, 1, MISSING, "@ a:example.org"])
def test_nobody_speaks_for_a_user_of_another_server(edu_type: str, key: str, user_id: object) -> None:
    check_is_refused(edu_type, changed(GOOD[edu_type], **{key: user_id}))


def test_typing() -> None:
    assert parse("m.typing", TYPING) == edu.Typing(room_id=ROOM, user_id=ALICE, typing=True)  # type: ignore[arg-type] # a room ID


@pytest.mark.parametrize("changes", [{"room_id": "x"}, {"room_id": MISSING}, {"typing": 1}, {"typing": MISSING}])
def test_malformed_typing_is_refused(changes: JsonObject) -> None:
    check_is_refused("m.typing", changed(TYPING, **changes))


def test_presence_of_several_users_of_whom_only_the_senders_count() -> None:
    least = {"user_id": BOB, "presence": "offline"}

    presence = parse("m.presence", {"push": [PRESENCE, {**PRESENCE, "user_id": EVE}, "x", least]})

    assert presence.updates == (
        edu.UserPresence(
            user_id=ALICE, presence="online", status_msg="hi", last_active_ago=5000, currently_active=True
        ),
        edu.UserPresence(user_id=BOB, presence="offline", status_msg=None, last_active_ago=0, currently_active=False),
    )


@pytest.mark.parametrize("changes", [{"presence": "busy"}, {"presence": []}, {"user_id": 1}, {"user_id": MISSING}])
def test_a_malformed_presence_is_left_out(changes: JsonObject) -> None:
    assert parse("m.presence", {"push": [changed(PRESENCE, **changes)]}).updates == ()


def test_long_texts_about_a_user_are_cut_off() -> None:
    long = "é" * 5000

    presence = parse("m.presence", {"push": [{**PRESENCE, "status_msg": long}]})
    update = parse("m.device_list_update", {**DEVICE_LIST_UPDATE, "device_display_name": long})

    assert presence.updates[0].status_msg == update.device_display_name == "é" * 1000


@pytest.mark.parametrize(
    ("edu_type", "key"),
    [
        ("m.device_list_update", "keys"),
        ("m.signing_key_update", "master_key"),
        ("m.signing_key_update", "self_signing_key"),
    ],
)
def test_keys_that_are_huge_are_refused(edu_type: str, key: str) -> None:
    keys = {"user_id": ALICE, "device_id": "PHONE", "padding": "x" * 66_000}

    check_is_refused(edu_type, {**GOOD[edu_type], key: keys})


@pytest.mark.parametrize("push", [None, {}, "x"])
def test_presence_is_a_list(push: object) -> None:
    check_is_refused("m.presence", {"push": push})


@pytest.mark.parametrize("ago", [-5, None, "1", 1.5, 2**70, True])
def test_how_long_ago_is_never_negative(ago: object) -> None:
    assert parse("m.presence", {"push": [{**PRESENCE, "last_active_ago": ago}]}).updates[0].last_active_ago == 0


def test_receipts_of_several_rooms_and_users_of_whom_only_the_senders_count() -> None:
    threaded = {"event_ids": [EVENT], "data": {"ts": NOW, "thread_id": "main"}}
    of_thread = {"event_ids": [EVENT], "data": {"ts": NOW, "thread_id": EVENT}}
    other_room = "!" + "r" * 43

    receipts = parse(
        "m.receipt",
        {ROOM: {"m.read": {ALICE: RECEIPT, EVE: RECEIPT, BOB: threaded}}, other_room: {"m.other": {ALICE: of_thread}}},
    ).receipts

    assert [(r.room_id, r.receipt_type, r.user_id, r.event_id, r.ts, r.thread_id) for r in receipts] == [
        (ROOM, "m.read", ALICE, EVENT, NOW, None),
        (ROOM, "m.read", BOB, EVENT, NOW, "main"),
        (other_room, "m.other", ALICE, EVENT, NOW, EVENT),
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"room": {"m.read": {ALICE: RECEIPT}}},
        {ROOM: []},
        {ROOM: {"m.read": []}},
        {ROOM: {"": {ALICE: RECEIPT}}},
        {ROOM: {"x" * 256: {ALICE: RECEIPT}}},
        *(
            {ROOM: {"m.read": {ALICE: receipt}}}
            for receipt in [
                [],
                {},
                {"event_ids": [EVENT]},
                {"event_ids": EVENT, "data": {"ts": 1}},
                {"event_ids": [], "data": {"ts": 1}},
                {"event_ids": [EVENT, EVENT], "data": {"ts": 1}},
                {"event_ids": ["x"], "data": {"ts": 1}},
                {"event_ids": [EVENT], "data": []},
                {"event_ids": [EVENT], "data": {}},
                {"event_ids": [EVENT], "data": {"ts": 1.5}},
                {"event_ids": [EVENT], "data": {"ts": -1}},
                {"event_ids": [EVENT], "data": {"ts": 2**53}},
                {"event_ids": [EVENT], "data": {"ts": 1, "thread_id": 1}},
                {"event_ids": [EVENT], "data": {"ts": 1, "thread_id": "x"}},
            ]
        ),
    ],
)
def test_a_malformed_receipt_is_left_out(content: JsonObject) -> None:
    assert parse("m.receipt", content).receipts == ()


def test_device_list_update() -> None:
    update = parse("m.device_list_update", DEVICE_LIST_UPDATE)

    assert (update.user_id, update.device_id, update.stream_id, update.prev_ids) == (ALICE, "PHONE", 6, (4, 5))
    assert (update.deleted, update.device_display_name) == (False, "Mobile")
    assert update.keys == DEVICE_LIST_UPDATE["keys"]


def test_the_least_device_list_update() -> None:
    update = parse("m.device_list_update", {"user_id": ALICE, "device_id": "X", "stream_id": 1, "prev_id": None})

    assert (update.prev_ids, update.deleted, update.device_display_name, update.keys) == ((), False, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": MISSING},
        {"device_id": ""},
        {"stream_id": MISSING},
        {"stream_id": "6"},
        {"stream_id": 2**63},
        {"prev_id": 5},
        {"prev_id": {"a": 1}},
        {"prev_id": [1, "2"]},
        {"keys": []},
        {"keys": {}},
        {"keys": {"user_id": BOB, "device_id": "PHONE"}},
        {"keys": {"user_id": ALICE, "device_id": "OTHER"}},
    ],
)
def test_a_malformed_device_list_update_is_refused(changes: JsonObject) -> None:
    check_is_refused("m.device_list_update", changed(DEVICE_LIST_UPDATE, **changes))


@pytest.mark.parametrize("edu_type", ["m.signing_key_update", "org.matrix.signing_key_update"])
def test_signing_key_update(edu_type: str) -> None:
    update = parse(edu_type, SIGNING_KEY_UPDATE)

    assert (update.user_id, update.master_key) == (ALICE, {"user_id": ALICE})
    assert update.self_signing_key == {"user_id": ALICE, "k": 1}
    assert parse(edu_type, {"user_id": ALICE}).master_key is None


@pytest.mark.parametrize("key", ["master_key", "self_signing_key"])
@pytest.mark.parametrize("value", [[], "x", {}, {"user_id": EVE}])
def test_a_malformed_signing_key_update_is_refused(key: str, value: object) -> None:
    check_is_refused("m.signing_key_update", {**SIGNING_KEY_UPDATE, key: value})


def test_direct_to_device() -> None:
    message = parse("m.direct_to_device", DIRECT_TO_DEVICE)

    assert (message.sender, message.type, message.message_id) == (ALICE, "m.room_key_request", "hiezohf6Hoo7kaev")
    assert message.messages == DIRECT_TO_DEVICE["messages"]


@pytest.mark.parametrize(
    "changes",
    [
        {"type": MISSING},
        {"type": "a\0"},
        {"type": ""},
        {"message_id": 1},
        {"message_id": "x" * 256},
        {"messages": []},
        {"messages": {"eve": {}}},
        {"messages": {EVE: []}},
        {"messages": {EVE: {"PHONE": "x"}}},
        {"messages": {EVE: {"": {}}}},
    ],
)
def test_a_malformed_message_to_devices_is_refused(changes: JsonObject) -> None:
    check_is_refused("m.direct_to_device", changed(DIRECT_TO_DEVICE, **changes))


def test_what_is_nested_too_deeply_is_refused() -> None:
    message: JsonObject = {}
    for _ in range(96):
        message = {"a": message}

    assert parse("m.direct_to_device", {**DIRECT_TO_DEVICE, "messages": {EVE: {"PHONE": message}}}) is not None
    for _ in range(5):
        message = {"a": message}
    check_is_refused("m.direct_to_device", {**DIRECT_TO_DEVICE, "messages": {EVE: {"PHONE": message}}})


@given(st.sampled_from(sorted(GOOD)).flatmap(lambda kind: st.tuples(st.just(kind), mutated(GOOD[kind]) | ANY_JSON)))
def test_any_json_is_an_edu_or_is_refused(case: tuple[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        parse(*case)
