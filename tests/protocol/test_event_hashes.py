"""`event_hashes`: content and reference hashes; the signed vectors are in `test_signatures`."""

import base64
import hashlib
from collections.abc import Callable

import canonicaljson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import event_hashes
from federation.protocol.errors import InvalidEvent
from federation.protocol.redaction import redact
from federation.protocol.room_versions import get_rules
from tests.protocol.builders import VERSIONS, a_signed_event

EVENT = {
    "type": "m.room.message",
    "content": {"body": "Здравствуй"},
    "signatures": {"h": {"ed25519:1": "x"}},
    "hashes": {"sha256": "y"},
    "unsigned": {"age": 1},
    "depth": 3,
}


def test_the_content_hash_covers_all_but_hashes_signatures_and_unsigned() -> None:
    covered = canonicaljson.encode_canonical_json({key: EVENT[key] for key in ("type", "content", "depth")})

    expected = base64.b64encode(hashlib.sha256(covered).digest()).rstrip(b"=").decode()

    assert event_hashes.content_hash(EVENT) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_the_event_id_is_the_reference_hash_since_version_3(version: str) -> None:
    rules = get_rules(version)
    event = a_signed_event(version)
    covered = {key: value for key, value in redact(event.json, rules).items() if key != "signatures"}
    digest = hashlib.sha256(canonicaljson.encode_canonical_json(covered)).digest()

    event_id = event_hashes.event_id_of({**event.json, "unsigned": {"age": 1}}, rules)

    match version:
        case "1" | "2":
            assert event_id == "$made:example.org"
        case "3":
            assert event_id == "$" + base64.b64encode(digest).decode().rstrip("=")
        case _:
            assert event_id == "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert event_id == event.event_id


def test_an_old_event_without_an_event_id_has_none() -> None:
    with pytest.raises(InvalidEvent, match="event_id"):
        event_hashes.event_id_of({"type": "x", "event_id": 7}, get_rules("1"))


@pytest.mark.parametrize(
    ("claimed", "matches"),
    [
        (lambda right: right, True),
        (lambda right: right + "=", True),
        (lambda right: "A" + right[1:] if right[0] != "A" else "B" + right[1:], False),
        (lambda right: right[:-4], False),
        (lambda right: "é" + right[1:], False),
        (lambda right: "", False),
        (lambda right: None, False),
        (lambda right: [right], False),
    ],
)
def test_a_content_hash_matches_by_its_bytes(claimed: Callable[[str], object], matches: bool) -> None:
    hashes = {"sha256": claimed(event_hashes.content_hash(EVENT))}

    assert event_hashes.content_hash_matches({**EVENT, "hashes": hashes}) is matches


@pytest.mark.parametrize("hashes", [None, [], "x", {}, {"md5": "x"}])
def test_without_a_content_hash_nothing_matches(hashes: object) -> None:
    assert not event_hashes.content_hash_matches({**EVENT, "hashes": hashes})


@given(st.binary())
def test_base64_round_trips_in_either_alphabet_with_and_without_padding(data: bytes) -> None:
    encoded = event_hashes.encode_base64(data)

    assert "=" not in encoded
    assert event_hashes.decode_base64(encoded) == data
    assert event_hashes.decode_base64(base64.b64encode(data).decode()) == data
    assert event_hashes.decode_base64(base64.urlsafe_b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["a", "ab c", "ab\n", "a=b", "é", "!!!!", "\ud800"])
def test_what_is_no_base64_has_no_bytes(text: str) -> None:
    assert event_hashes.decode_base64(text) is None


@given(st.text())
def test_any_text_is_decoded_or_not(text: str) -> None:
    assert isinstance(event_hashes.decode_base64(text), bytes | None)
