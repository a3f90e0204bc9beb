"""What `m.relates_to` says (Client-Server API, "Forming relationships between events")."""

from typing import Any

import pytest

from federation.protocol.relations import Relation, holds_replacement, related_event, thread_of
from federation.protocol.types import EventID

PARENT = EventID("$" + "a" * 43)


def relating(rel_type: Any, event_id: Any = PARENT, **more: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id, **more}}


@pytest.mark.parametrize(
    ("content", "relation"),
    [
        (relating("m.thread"), Relation("m.thread", PARENT, None)),
        (relating("m.annotation", key="+1"), Relation("m.annotation", PARENT, "+1")),
        (relating("m.annotation", key=1), Relation("m.annotation", PARENT, None)),
        (relating("m.annotation", key="\0"), Relation("m.annotation", PARENT, None)),
        (relating("m.reference", key="+1"), Relation("m.reference", PARENT, None)),
        (relating("org.example", "$a:example.org"), Relation("org.example", EventID("$a:example.org"), None)),
    ],
)
def test_an_event_relates_to_another(content: dict[str, Any], relation: Relation) -> None:
    assert related_event(content) == relation


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"m.relates_to": None},
        {"m.relates_to": [PARENT]},
        {"m.relates_to": {"m.in_reply_to": {"event_id": PARENT}}},
        relating(None),
        relating("x" * 256),
        relating("x\0"),
        relating("m.thread", None),
        relating("m.thread", "no event"),
        relating("m.thread", ["$a"]),
    ],
)
def test_what_cannot_be_followed_is_no_relation(content: dict[str, Any]) -> None:
    assert related_event(content) is None


def test_a_message_belongs_to_a_thread_and_state_does_not() -> None:
    assert thread_of({"content": relating("m.thread")}) == PARENT
    assert thread_of({"content": relating("m.reference")}) is None
    assert thread_of({"content": {}}) is None
    assert thread_of({"content": relating("m.thread"), "state_key": ""}) is None


@pytest.mark.parametrize(
    ("event", "holds"),
    [
        ({"type": "m.room.message", "content": {"m.new_content": {}}}, True),
        ({"type": "m.room.message", "content": {"m.new_content": "x"}}, False),
        ({"type": "m.room.message", "content": {}}, False),
        ({"type": "m.room.encrypted", "content": {}}, True),
        ({"type": "m.room.message", "content": {"m.new_content": {}}, "state_key": ""}, False),
    ],
)
def test_an_edit_holds_what_replaces(event: dict[str, Any], holds: bool) -> None:
    assert holds_replacement(event) is holds
