"""`pdu`, `room_versions` and `errors`: what they promise by themselves."""

import pytest

from federation.protocol import errors
from federation.protocol.room_versions import ROOM_VERSIONS, get_rules
from federation.protocol.types import ServerName
from tests.protocol.builders import ALICE, a_signed_event


def test_events_are_equal_when_their_ids_are() -> None:
    event, same, other = a_signed_event("11"), a_signed_event("11"), a_signed_event("11", depth=8)

    assert event == same
    assert len({event, same, other}) == 2
    assert event != other
    assert event != event.event_id


def test_a_state_event_is_current_for_its_type_and_state_key() -> None:
    member = a_signed_event("11", type="m.room.member", state_key=ALICE, content={"membership": "join"})

    assert member.state_pair == ("m.room.member", ALICE)
    assert member.membership == "join"
    with pytest.raises(ValueError, match="not a state event"):
        _ = a_signed_event("11").state_pair


def test_rules_are_found_by_version() -> None:
    assert [get_rules(version).version for version in ROOM_VERSIONS] == list(map(str, range(1, 13)))
    assert [rules.version for rules in ROOM_VERSIONS.values() if not rules.create_in_auth_events] == ["12"]
    with pytest.raises(errors.MatrixError) as raised:
        get_rules("13")
    assert raised.value.errcode == "M_UNSUPPORTED_ROOM_VERSION"


@pytest.mark.parametrize(
    ("error", "errcode", "status", "fields"),
    [
        (errors.InvalidInput("x"), "M_INVALID_PARAM", 400, {}),
        (errors.Unauthorized("x"), "M_UNKNOWN_TOKEN", 401, {}),
        (errors.Unauthorized("x", soft_logout=True), "M_UNKNOWN_TOKEN", 401, {"soft_logout": True}),
        (errors.Forbidden("x"), "M_FORBIDDEN", 403, {}),
        (errors.NotFound("x"), "M_NOT_FOUND", 404, {}),
        (errors.LimitExceeded(5), "M_LIMIT_EXCEEDED", 429, {"retry_after_ms": 5}),
        (errors.AuthRuleViolated("5.3", "x"), "M_FORBIDDEN", 403, {}),
        (errors.InvalidEvent("x"), "M_BAD_JSON", 400, {}),
        (errors.TooLarge("x"), "M_TOO_LARGE", 413, {}),
        (errors.Unavailable("x"), "M_UNKNOWN", 503, {"retry_after_ms": 1000}),
        (errors.RemoteServerError("x", is_transient=True), "M_UNKNOWN", 502, {}),
        (errors.PeerUnreachable(ServerName("far.test"), "10.0.0.1 is denied"), "M_UNKNOWN", 502, {}),
        (errors.PeerRefused(ServerName("far.test"), 403, "M_FORBIDDEN", "no"), "M_FORBIDDEN", 502, {}),
    ],
)
def test_errors_have_a_code_and_a_status(
    error: errors.MatrixError, errcode: str, status: int, fields: dict[str, object]
) -> None:
    assert (error.errcode, error.http_status, error.fields) == (errcode, status, fields)
