"""`event_builder`: what we make passes the door that everybody's events pass."""

import pytest

from federation.protocol import event_format, event_hashes, signatures
from tests.protocol.builders import KEY_RING, VERSIONS, a_room


@pytest.mark.parametrize("version", VERSIONS)
def test_a_built_event_passes_our_own_door_and_signature_check(version: str) -> None:
    for built in a_room(version).events:
        parsed = event_format.parse(built.json, built.rules)
        verified = signatures.verify(parsed, KEY_RING)

        for name in type(built).__dataclass_fields__:
            assert getattr(verified, name) == getattr(built, name), name
        assert event_hashes.event_id_of(built.json, built.rules) == built.event_id
        assert event_format.from_stored(built.canonical, built.event_id, built.room_id, built.rules).json == built.json
