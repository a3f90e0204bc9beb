"""`policy_server`: whom a room names, and what its signature allows (Server-Server API v1.18, "Policy Servers")."""

import pytest

from federation.protocol import event_format, policy_server, signatures
from federation.protocol.errors import Forbidden, InvalidEvent, TooLarge
from federation.protocol.event_format import MAX_EVENT_BYTES
from federation.protocol.event_hashes import encode_base64
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.policy_server import PolicyServer
from federation.protocol.signatures import POLICY_SERVER_KEY, SigningKey, VerifyKey
from federation.protocol.types import JsonObject, KeyID, ServerName
from tests.protocol.builders import HOME, KEY_RING, OTHER_KEY, VERSIONS, a_signed_event

NAME = ServerName("policy.example")
KEY = SigningKey.from_seed("policy_server", b"p" * 32)
POLICY = PolicyServer(NAME, KEY.public_key)
CONTENT = {"via": NAME, "public_keys": {"ed25519": encode_base64(KEY.public_key)}}


def recommendation(event: VerifiedPDU, key: SigningKey = KEY) -> JsonObject:
    """What the policy server answers."""
    signed = signatures.sign_event(dict(event.json), event.rules, NAME, key)
    return {NAME: {POLICY_SERVER_KEY: signed["signatures"][NAME][key.key_id]}}


def test_its_key_has_the_id_that_the_specification_gives_it() -> None:
    assert KeyID("ed25519:policy_server") == POLICY_SERVER_KEY


def test_a_room_names_a_server_and_its_key() -> None:
    assert policy_server.read(CONTENT) == POLICY


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"via": NAME},
        {"public_keys": CONTENT["public_keys"]},
        {**CONTENT, "via": 1},
        {**CONTENT, "public_keys": []},
        {**CONTENT, "public_keys": {}},
        {**CONTENT, "public_keys": {"ed25519": 1}},
    ],
)
def test_other_content_names_none(content: JsonObject) -> None:
    assert policy_server.read(content) is None


def test_with_what_is_no_key_nothing_is_endorsed() -> None:
    policy = policy_server.read({**CONTENT, "public_keys": {"ed25519": "!"}})
    assert policy == PolicyServer(NAME, b"")
    event = a_signed_event()
    with pytest.raises(Forbidden):
        policy_server.endorsed(event, policy, recommendation(event))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_that_it_signed_is_endorsed(version: str) -> None:
    event = a_signed_event(version)
    assert not policy_server.is_endorsed(event, POLICY)

    endorsed = policy_server.endorsed(event, POLICY, {**recommendation(event), "elsewhere": {"ed25519:1": "x"}})

    assert policy_server.is_endorsed(endorsed, POLICY)
    assert endorsed.event_id == event.event_id
    assert endorsed.json["signatures"] == {**event.json["signatures"], **recommendation(event)}
    assert not policy_server.is_endorsed(event, POLICY)


def test_the_policy_itself_needs_no_signature() -> None:
    assert policy_server.is_endorsed(a_signed_event(type="m.room.policy", state_key="", content=CONTENT), POLICY)
    for other in (
        a_signed_event(type="m.room.policy", state_key="other", content=CONTENT),
        a_signed_event(type="m.room.policy", content=CONTENT),
    ):
        assert not policy_server.is_endorsed(other, POLICY)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {NAME: []},
        {NAME: {}},
        {NAME: {POLICY_SERVER_KEY: 1}},
        {NAME: {"ed25519:other": "A" * 86}},
        {"elsewhere": {POLICY_SERVER_KEY: "A" * 86}},
        {NAME: {POLICY_SERVER_KEY: "A" * 86}},
        {NAME: {POLICY_SERVER_KEY: "!"}},
        recommendation(a_signed_event(depth=8)),
        recommendation(a_signed_event(), OTHER_KEY),
    ],
)
def test_an_answer_without_a_signature_that_holds_forbids_the_event(answer: JsonObject) -> None:
    with pytest.raises(Forbidden):
        policy_server.endorsed(a_signed_event(), POLICY, answer)


def test_an_event_that_has_no_room_for_the_signature_is_too_large() -> None:
    small = a_signed_event(content={"body": ""})
    event = a_signed_event(content={"body": "x" * (MAX_EVENT_BYTES - len(small.canonical))})
    assert len(event.canonical) == MAX_EVENT_BYTES
    with pytest.raises(TooLarge):
        policy_server.endorsed(event, POLICY, recommendation(event))


def test_its_signature_stands_for_none_of_the_senders_server() -> None:
    event = a_signed_event()
    named_so = SigningKey.from_seed("policy_server", b"h" * 32)
    json = signatures.sign_event({**event.json, "signatures": {}}, event.rules, HOME, named_so)
    keys = {**KEY_RING, (HOME, POLICY_SERVER_KEY): VerifyKey(public_key=named_so.public_key)}

    with pytest.raises(InvalidEvent):
        signatures.verify(event_format.parse(json, event.rules), keys)
    both = {**json, "signatures": {HOME: {**event.json["signatures"][HOME], **json["signatures"][HOME]}}}
    assert signatures.verify(event_format.parse(both, event.rules), keys).event_id == event.event_id
