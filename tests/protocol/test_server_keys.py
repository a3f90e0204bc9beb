"""`server_keys`: what a server publishes, and what is made of what others do."""

from typing import Any

import pytest
from hypothesis import given

from federation.protocol import server_keys, signatures
from federation.protocol.errors import InvalidInput
from federation.protocol.event_hashes import encode_base64
from federation.protocol.server_keys import MAX_KEYS, MAX_VALIDITY_MS, OldKey, ServerKeys
from federation.protocol.signatures import SigningKey, VerifyKey
from federation.protocol.types import JsonObject
from tests.protocol.builders import HOME, HOME_KEY, NOW, OTHER, OTHER_KEY
from tests.protocol.strategies import ANY_JSON

SECOND_KEY = SigningKey.from_seed("second", b"s" * 32)
OLD_KEY = SigningKey.from_seed("old", b"l" * 32)
HOUR_MS = 3_600_000
NO_POINT = encode_base64(b"\x00" * 32)
"""With a key of a small order, any signature may hold."""


def published(**changes: Any) -> JsonObject:
    """What HOME publishes, some members changed (None removes one), signed with its key."""
    old = OldKey(key_id=OLD_KEY.key_id, public_key=OLD_KEY.public_key, expired_ts=NOW - HOUR_MS)
    json = server_keys.make(HOME, HOME_KEY, {old.key_id: old}, NOW + HOUR_MS)
    changed = {name: value for name, value in {**json, **changes}.items() if value is not None}
    return signatures.sign_json({**changed, "signatures": {}}, HOME, HOME_KEY)


def parse(json: JsonObject) -> ServerKeys:
    return server_keys.parse(json, HOME, NOW)


def listed(*keys: SigningKey) -> JsonObject:
    return {key.key_id: {"key": encode_base64(key.public_key)} for key in keys}


def test_what_is_published_is_read() -> None:
    keys = parse(published())
    assert (keys.server_name, keys.valid_until_ts, keys.read_ts) == (HOME, NOW + HOUR_MS, NOW)
    assert keys.keys == {
        HOME_KEY.key_id: VerifyKey(public_key=HOME_KEY.public_key, valid_until_ts=NOW + HOUR_MS),
        OLD_KEY.key_id: VerifyKey(
            public_key=OLD_KEY.public_key, valid_until_ts=NOW + HOUR_MS, expired_ts=NOW - HOUR_MS
        ),
    }
    assert keys.json == published()


def test_nothing_is_good_for_more_than_a_week_and_no_key_expires_in_the_future() -> None:
    later = {OLD_KEY.key_id: {"key": encode_base64(OLD_KEY.public_key), "expired_ts": NOW + HOUR_MS}}
    keys = parse(published(valid_until_ts=NOW + 2 * MAX_VALIDITY_MS, old_verify_keys=later))
    assert keys.valid_until_ts == NOW + MAX_VALIDITY_MS
    assert keys.keys[HOME_KEY.key_id].valid_until_ts == NOW + MAX_VALIDITY_MS
    assert keys.keys[OLD_KEY.key_id].expired_ts == NOW


def test_old_keys_need_not_be_named() -> None:
    assert list(parse(published(old_verify_keys=None)).keys) == [HOME_KEY.key_id]


def test_the_signatures_of_others_are_left_out_and_all_of_its_own_kept() -> None:
    json = published(verify_keys=listed(HOME_KEY, SECOND_KEY))
    json = signatures.sign_json(json, HOME, SECOND_KEY)
    keys = parse(signatures.sign_json(json, OTHER, OTHER_KEY))
    assert keys.json == json
    assert set(keys.json["signatures"][HOME]) == {HOME_KEY.key_id, SECOND_KEY.key_id}


def test_one_of_its_keys_may_have_signed() -> None:
    assert set(parse(published(verify_keys=listed(HOME_KEY, SECOND_KEY), old_verify_keys={})).keys) == {
        HOME_KEY.key_id,
        SECOND_KEY.key_id,
    }


@pytest.mark.parametrize(
    "entries",
    [
        {"ed448:other": {"key": encode_base64(b"o" * 57)}},
        {"ed25519:not a version": {"key": encode_base64(SECOND_KEY.public_key)}},
        {"nothing": {"key": encode_base64(SECOND_KEY.public_key)}},
        {"ed25519:second": encode_base64(SECOND_KEY.public_key)},
        {"ed25519:second": {}},
        {"ed25519:second": {"key": 1}},
        {"ed25519:second": {"key": "!"}},
        {"ed25519:second": {"key": encode_base64(b"short")}},
        {"ed25519:second": {"key": NO_POINT}},
    ],
)
def test_what_is_no_key_that_we_know_is_passed_over(entries: JsonObject) -> None:
    assert list(parse(published(verify_keys={**listed(HOME_KEY), **entries}, old_verify_keys={})).keys) == [
        HOME_KEY.key_id
    ]


@pytest.mark.parametrize("expired_ts", [None, "1", 1.5, True, -1, 2**53])
def test_an_old_key_without_a_time_is_passed_over(expired_ts: object) -> None:
    entry = {"key": encode_base64(OLD_KEY.public_key), "expired_ts": expired_ts}
    assert list(parse(published(old_verify_keys={OLD_KEY.key_id: entry})).keys) == [HOME_KEY.key_id]


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": OTHER},
        {"server_name": None},
        {"valid_until_ts": None},
        {"valid_until_ts": "1"},
        {"valid_until_ts": -1},
        {"valid_until_ts": 2**53},
        {"valid_until_ts": True},
        {"verify_keys": None},
        {"verify_keys": []},
        {"verify_keys": {}},
        {"verify_keys": listed(SECOND_KEY)},
        {"verify_keys": {**listed(HOME_KEY), **{f"ed25519:{each}": {} for each in range(MAX_KEYS)}}},
        {"old_verify_keys": []},
        {"old_verify_keys": {f"ed25519:{each}": {} for each in range(MAX_KEYS + 1)}},
    ],
)
def test_an_answer_that_is_not_its_keys_is_refused(changes: JsonObject) -> None:
    with pytest.raises(InvalidInput):
        parse(published(**changes))


@pytest.mark.parametrize(
    "signed",
    [
        None,
        [],
        {},
        {HOME: []},
        {HOME: {}},
        {HOME: {HOME_KEY.key_id: 1}},
        {HOME: {HOME_KEY.key_id: "A" * 86}},
        {OTHER: published()["signatures"][HOME]},
    ],
)
def test_an_answer_without_a_signature_of_its_own_that_holds_is_refused(signed: object) -> None:
    with pytest.raises(InvalidInput):
        parse({**published(), "signatures": signed})


def test_one_wrong_signature_among_its_own_is_one_too_many() -> None:
    json = published(verify_keys=listed(HOME_KEY, SECOND_KEY))
    wrong = signatures.sign_json({"something": "else"}, HOME, SECOND_KEY)["signatures"][HOME][SECOND_KEY.key_id]
    json["signatures"][HOME][SECOND_KEY.key_id] = wrong
    with pytest.raises(InvalidInput, match="second is wrong"):
        parse(json)


def test_what_was_changed_after_it_was_signed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is wrong"):
        parse({**published(), "valid_until_ts": NOW + 2 * HOUR_MS})


@given(ANY_JSON)
def test_any_keys_are_read_or_refused(value: Any) -> None:
    for name in ("verify_keys", "old_verify_keys", "valid_until_ts", "signatures"):
        try:
            keys = parse({**published(), name: value})
        except InvalidInput:
            continue
        assert keys.server_name == HOME
