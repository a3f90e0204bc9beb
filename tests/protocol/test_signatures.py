"""`signatures`: the specification's vectors, signedjson as the reference, and who must have signed what."""

from typing import Any

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from federation.protocol import event_format, event_hashes, signatures
from federation.protocol.errors import InvalidEvent, InvalidInput
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.room_versions import get_rules
from federation.protocol.signatures import SigningKey, VerifyKey
from federation.protocol.types import JsonObject, KeyID
from tests.protocol.builders import (
    ALICE,
    BOB,
    EVE,
    HOME,
    HOME_KEY,
    KEY_RING,
    NOW,
    OTHER,
    OTHER_KEY,
    VERSIONS,
    a_room,
    a_signed_event,
    resigned,
)
from tests.protocol.strategies import ANY_JSON, TEXT

SPECIFICATION_SEED = event_hashes.decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1") or b""
SPECIFICATION_KEY = SigningKey.from_seed("1", SPECIFICATION_SEED)


def hash_and_sign(event: JsonObject) -> JsonObject:
    hashed = {**event, "hashes": {"sha256": event_hashes.content_hash(event)}}
    return signatures.sign_event(hashed, get_rules("1"), "domain", SPECIFICATION_KEY)


@pytest.mark.parametrize(
    ("json", "signature"),
    [
        ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_the_specifications_json_is_signed_as_it_says(json: JsonObject, signature: str) -> None:
    signed = signatures.sign_json(json, "domain", SPECIFICATION_KEY)

    assert signed == {**json, "signatures": {"domain": {"ed25519:1": signature}}}
    assert signatures.verify_json(signed, "domain", "ed25519:1", SPECIFICATION_KEY.public_key)


def test_the_specifications_minimal_event_is_signed_as_it_says() -> None:
    event = {
        "room_id": "!x:domain",
        "sender": "@a:domain",
        "origin": "domain",
        "origin_server_ts": 1000000,
        "signatures": {},
        "hashes": {},
        "type": "X",
        "content": {},
        "prev_events": [],
        "auth_events": [],
        "depth": 3,
        "unsigned": {"age_ts": 1000000},
    }

    signed = hash_and_sign(event)

    assert signed["hashes"] == {"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}
    assert signed["signatures"]["domain"] == {
        "ed25519:1": "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"
    }
    assert signed["unsigned"] == {"age_ts": 1000000}


def test_the_specifications_event_with_redactable_content_is_signed_as_it_says() -> None:
    event = {
        "content": {"body": "Here is the message content"},
        "event_id": "$0:domain",
        "origin": "domain",
        "origin_server_ts": 1000000,
        "type": "m.room.message",
        "room_id": "!r:domain",
        "sender": "@u:domain",
        "signatures": {},
        "unsigned": {"age_ts": 1000000},
    }

    signed = hash_and_sign(event)

    assert signed["hashes"] == {"sha256": "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"}
    assert signed["signatures"]["domain"] == {
        "ed25519:1": "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"
    }


@given(st.dictionaries(TEXT, ANY_JSON).map(lambda json: {k: v for k, v in json.items() if k != "signatures"}))
def test_json_is_signed_as_signedjson_does(json: JsonObject) -> None:
    reference_key = signedjson.key.decode_signing_key_base64(
        "ed25519", "home", event_hashes.encode_base64(HOME_KEY.seed)
    )

    signed = signatures.sign_json({**json, "unsigned": {"a": 1}}, HOME, HOME_KEY)

    assert signed == signedjson.sign.sign_json({**json, "unsigned": {"a": 1}}, HOME, reference_key)
    signedjson.sign.verify_signed_json(
        signed, HOME, signedjson.key.decode_verify_key_bytes(HOME_KEY.key_id, HOME_KEY.public_key)
    )
    assert signatures.verify_json(signed, HOME, HOME_KEY.key_id, HOME_KEY.public_key)
    assert not signatures.verify_json({**signed, "changed": 1}, HOME, HOME_KEY.key_id, HOME_KEY.public_key)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_is_signed_as_signedjson_signs_its_redacted_form(version: str) -> None:
    event = a_signed_event(version, content={"body": "x", "float" if version == "1" else "int": 1})
    redacted = {key: value for key, value in redact(event.json, event.rules).items() if key != "signatures"}
    reference_key = signedjson.key.decode_signing_key_base64(
        "ed25519", "home", event_hashes.encode_base64(HOME_KEY.seed)
    )

    assert event.json["signatures"] == signedjson.sign.sign_json(redacted, HOME, reference_key)["signatures"]


def test_a_key_does_not_show_its_secret() -> None:
    key = SigningKey.from_seed("a_1", b"s" * 32)

    assert key.key_id == "ed25519:a_1"
    assert "ssss" not in repr(key)
    assert "secret" not in repr(key)


@pytest.mark.parametrize(("version", "seed"), [("1", b""), ("1", b"x" * 31), ("", b"x" * 32), ("a b", b"x" * 32)])
def test_a_key_has_32_bytes_and_a_version(version: str, seed: bytes) -> None:
    with pytest.raises(InvalidInput):
        SigningKey.from_seed(version, seed)


def test_signatures_of_others_are_kept() -> None:
    signed = signatures.sign_json({"a": 1}, HOME, HOME_KEY)

    both = signatures.sign_json(signed, OTHER, OTHER_KEY)

    assert both["signatures"][HOME] == signed["signatures"][HOME]
    assert set(signed["signatures"]) == {HOME}
    assert signatures.verify_json(both, OTHER, OTHER_KEY.key_id, OTHER_KEY.public_key)


GOOD = HOME_KEY.sign(b"message")


@pytest.mark.parametrize(
    "signature", [None, 1, [], {}, "", "x", GOOD[:-4], GOOD + "AAAA", "A" * 86, "é" * 86, "\ud800"]
)
def test_what_is_no_signature_does_not_hold(signature: object) -> None:
    assert signatures.is_signature_of(GOOD, b"message", HOME_KEY.public_key)
    assert not signatures.is_signature_of(signature, b"message", HOME_KEY.public_key)


@pytest.mark.parametrize("public_key", [b"", b"x" * 31, b"\0" * 32, b"\xff" * 32, OTHER_KEY.public_key])
def test_what_is_not_the_key_does_not_hold(public_key: bytes) -> None:
    assert not signatures.is_signature_of(GOOD, b"message", public_key)


@given(ANY_JSON)
def test_any_signatures_hold_or_not(value: Any) -> None:
    for json in ({"signatures": value}, {"signatures": {HOME: value}}, {"signatures": {HOME: {"ed25519:home": value}}}):
        assert not signatures.verify_json(json, HOME, "ed25519:home", HOME_KEY.public_key)


def parsed(event: PDU, json: JsonObject | None = None) -> PDU:
    return event_format.parse(event.json if json is None else json, event.rules)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_signed_event_is_verified(version: str) -> None:
    event = a_signed_event(version)

    verified = signatures.verify(parsed(event), KEY_RING)

    assert isinstance(verified, VerifiedPDU)
    assert (verified.canonical, verified.content) == (event.canonical, event.content)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_whose_content_hash_does_not_match_is_verified_redacted(version: str) -> None:
    target = a_signed_event(version).event_id
    event = a_signed_event(version, type="m.room.redaction", content={"body": "x"}, redacts=target)
    tampered = parsed(event, {**event.json, "content": {**event.content, "body": "y"}, "extra": 1})

    verified = signatures.verify(tampered, KEY_RING)

    assert verified.event_id == event.event_id
    assert verified.json == redact(event.json, event.rules)
    assert verified.content == ({"redacts": target} if version in {"11", "12"} else {})
    assert verified.redacts == (target if version in {"11", "12"} else None)
    assert event_format.from_stored(verified.canonical, event.event_id, event.room_id, event.rules) == verified
    assert signatures.verify(parsed(verified), KEY_RING).canonical == verified.canonical


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "changes",
    [{"depth": 8}, {"origin_server_ts": 1}, {"sender": BOB}, {"type": "x"}, {"state_key": ""}, {"prev_events": []}],
)
def test_an_event_whose_signed_part_was_changed_is_dropped(version: str, changes: JsonObject) -> None:
    event = a_signed_event(version)

    with pytest.raises(InvalidEvent, match="wrong"):
        signatures.verify(parsed(event, {**event.json, **changes}), KEY_RING)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {HOME: {}},
        {OTHER: {HOME_KEY.key_id: "x"}},
        {HOME: {"ed25519:unknown": "x"}},
        {HOME: {"rsa:home": "x"}},
    ],
)
def test_an_event_without_a_signature_of_its_senders_server_is_dropped(made: JsonObject) -> None:
    event = a_signed_event("11")
    keys = {**KEY_RING, (HOME, KeyID("rsa:home")): KEY_RING[HOME, HOME_KEY.key_id]}

    with pytest.raises(InvalidEvent, match="not signed"):
        signatures.verify(parsed(event, {**event.json, "signatures": made}), keys)


def test_one_wrong_signature_among_known_keys_is_one_too_many() -> None:
    event = a_signed_event("11")
    second = SigningKey.from_seed("second", b"2" * 32)
    keys = {**KEY_RING, (HOME, second.key_id): VerifyKey(public_key=second.public_key)}
    twice = signatures.sign_event(event.json, event.rules, HOME, second)
    wrong = {**event.json["signatures"][HOME], second.key_id: "A" * 86}

    signatures.verify(parsed(event, twice), keys)
    signatures.verify(parsed(event, {**event.json, "signatures": {HOME: {**wrong}}}), KEY_RING)
    with pytest.raises(InvalidEvent, match="wrong"):
        signatures.verify(parsed(event, {**event.json, "signatures": {HOME: wrong}}), keys)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("limits", "holds_since_5", "holds_before"),
    [
        ({}, True, True),
        ({"valid_until_ts": NOW}, True, True),
        ({"valid_until_ts": NOW - 1}, False, True),
        ({"expired_ts": NOW}, True, True),
        ({"expired_ts": NOW - 1}, False, False),
        ({"valid_until_ts": NOW - 1, "expired_ts": NOW}, True, True),
    ],
)
def test_a_key_must_be_valid_when_the_event_was_made(
    version: str, limits: dict[str, int], holds_since_5: bool, holds_before: bool
) -> None:
    event = a_signed_event(version)
    keys = {(HOME, HOME_KEY.key_id): VerifyKey(public_key=HOME_KEY.public_key, **limits)}

    if holds_since_5 if int(version) >= 5 else holds_before:
        signatures.verify(parsed(event), keys)
    else:
        with pytest.raises(InvalidEvent, match="valid key"):
            signatures.verify(parsed(event), keys)


def test_the_expired_key_is_passed_over_beside_a_valid_one() -> None:
    event = a_signed_event("11")
    old = SigningKey.from_seed("old", b"0" * 32)
    json = signatures.sign_event(event.json, event.rules, HOME, old)
    keys = {**KEY_RING, (HOME, old.key_id): VerifyKey(public_key=OTHER_KEY.public_key, expired_ts=1)}

    assert signatures.verify(parsed(event, json), keys).event_id == event.event_id


@pytest.mark.parametrize("version", VERSIONS)
def test_old_events_are_signed_by_the_server_of_their_id_too(version: str) -> None:
    event = a_signed_event(version)
    if version not in {"1", "2"}:
        assert signatures.required_signers(event) == {HOME}
        return
    json = resigned(event.json, event.rules, event_id="$made:other.example")

    pdu = parsed(event, json)

    assert signatures.required_signers(pdu) == {HOME, OTHER}
    with pytest.raises(InvalidEvent, match=r"other\.example"):
        signatures.verify(pdu, KEY_RING)
    both = signatures.sign_event(json, event.rules, OTHER, OTHER_KEY)
    assert signatures.verify(parsed(event, both), KEY_RING).event_id == "$made:other.example"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_restricted_join_is_signed_by_the_authorising_users_server_since_version_8(version: str) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": EVE}
    event = a_signed_event(version, type="m.room.member", state_key=ALICE, content=content)

    if int(version) < 8:
        assert signatures.required_signers(event) == {HOME}
        return
    assert signatures.required_signers(event) == {HOME, OTHER}
    with pytest.raises(InvalidEvent, match=r"other\.example"):
        signatures.verify(parsed(event), KEY_RING)
    signed = signatures.add_signature(event, OTHER, OTHER_KEY)
    assert signed.event_id == event.event_id
    assert signatures.verify(parsed(signed), KEY_RING).canonical == signed.canonical


@pytest.mark.parametrize("authoriser", [1, "", "alice", []])
def test_an_authorising_user_is_a_user(authoriser: object) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": authoriser}
    event = a_signed_event("11", type="m.room.member", state_key=ALICE, content=content)

    with pytest.raises(InvalidEvent, match="user ID"):
        signatures.verify(parsed(event), KEY_RING)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("content", "needs_sender"),
    [
        ({"membership": "invite", "third_party_invite": {}}, False),
        ({"membership": "join", "third_party_invite": {}}, True),
        ({"membership": "invite"}, True),
    ],
)
def test_a_third_party_invite_needs_no_signature_of_its_sender(
    version: str, content: JsonObject, needs_sender: bool
) -> None:
    event = a_signed_event(version, type="m.room.member", state_key=BOB, content=content)
    of_event_id = {HOME} if version in {"1", "2"} else set()

    assert signatures.required_signers(event) == ({HOME} if needs_sender else set()) | of_event_id


def test_an_event_id_that_is_a_hash_names_no_signer() -> None:
    event = replace(a_signed_event("1"), event_id=a_signed_event("11").event_id)

    assert signatures.required_signers(event) == {HOME}


def test_the_keys_to_fetch_are_those_of_the_required_signers() -> None:
    event = a_signed_event("11")
    made = {HOME: {"ed25519:a": "x", "ed25519:b": "y", "rsa:c": "z", "ed25519:d e": "z"}, OTHER: {"ed25519:f": "x"}}

    pdu = parsed(event, {**event.json, "signatures": made})

    assert signatures.required_keys(pdu) == {(HOME, "ed25519:a"), (HOME, "ed25519:b")}


def test_any_other_signature_can_be_asked_for() -> None:
    event = a_signed_event("11")
    signed = signatures.add_signature(event, OTHER, OTHER_KEY)

    assert signatures.is_signed_with(signed, OTHER, OTHER_KEY.key_id, OTHER_KEY.public_key)
    assert not signatures.is_signed_with(signed, OTHER, OTHER_KEY.key_id, HOME_KEY.public_key)
    assert not signatures.is_signed_with(event, OTHER, OTHER_KEY.key_id, OTHER_KEY.public_key)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_whole_room_is_verified(version: str) -> None:
    room = a_room(version)

    assert [signatures.verify(parsed(event), KEY_RING).canonical for event in room.events] == [
        event.canonical for event in room.events
    ]
