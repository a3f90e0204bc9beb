"""`identifiers`: the grammars, by table."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import identifiers
from federation.protocol.errors import InvalidInput
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, RoomAlias, RoomID, ServerName, UserID
from tests.processor import cpu_within
from tests.protocol.strategies import ANY_JSON

NOT_STRINGS: list[object] = [None, 1, True, 1.5, [], {}, b"@a:b"]
HASH = "Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"
STANDARD_HASH = "Nhcu5BS+UMnFX7hBVfVSoXiD7OgH6iRT/xyIuqDnpYQ"

SERVER_NAMES = [
    "matrix.org",
    "matrix.org:8888",
    "1.2.3.4",
    "1.2.3.4:1234",
    "255.255.255.255",
    "[1234:5678::abcd]",
    "[1234:5678::abcd]:5678",
    "[::ffff:1.2.3.4]",
    "localhost",
    "EXAMPLE.org",
    "a-b.c",
    "1.2.3",
    "1.2.3.4.5",
    "h:65535",
    "h:0",
    "x" * 255,
]
NO_SERVER_NAMES = [
    "",
    ":80",
    "a b",
    "a_b",
    "a/b",
    "é.org",
    "a:b",
    "a:",
    "a:123456",
    "a:65536",
    "a:8080:1",
    "256.1.1.1",
    "1.2.3.999:80",
    "[1:2:3]",
    "[gg::1]",
    "[::1",
    "::1",
    "[]",
    "[fe80::1%eth0]",
    "a\n",
    "a\0",
    "１.2.3.4",
    "a:８０",
    "x" * 256,
]


@pytest.mark.parametrize("name", SERVER_NAMES)
def test_server_names(name: str) -> None:
    assert identifiers.is_server_name(name)
    assert identifiers.check_server_name(name) == name


@pytest.mark.parametrize("name", [*NO_SERVER_NAMES, *NOT_STRINGS])
def test_no_server_names(name: object) -> None:
    assert not identifiers.is_server_name(name)
    with pytest.raises(InvalidInput, match="server name"):
        identifiers.check_server_name(name)


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("matrix.org", "matrix.org", None),
        ("matrix.org:8448", "matrix.org", 8448),
        ("1.2.3.4:80", "1.2.3.4", 80),
        ("[::1]", "::1", None),
        ("[::1]:443", "::1", 443),
    ],
)
def test_a_server_name_is_a_host_and_a_port(name: str, host: str, port: int | None) -> None:
    assert identifiers.split_server_name(ServerName(name)) == (host, port)


def test_what_is_no_server_name_is_not_split() -> None:
    with pytest.raises(InvalidInput):
        identifiers.split_server_name(ServerName("a b"))


STRICT_USER_IDS = ["@alice:example.org", "@a.b_c=d-e/f+0:[::1]:80", "@1:h"]
PRINTABLE_USER_IDS = ["@Alice:example.org", "@a!b{}:example.org", "@a@b:h"]
OTHER_HISTORICAL_USER_IDS = ["@:example.org", "@a b:example.org", "@é:example.org", "@\n\x7f:h", "@😀:h"]
NO_USER_IDS = [
    "",
    "@",
    "@alice",
    "alice:example.org",
    "!alice:example.org",
    "@alice:",
    "@alice:exa mple",
    "@a\0:example.org",
    "@a:b:c:d",
    "@\ud800:h",
    "@" + "a" * 253 + ":h",
    "@" + "é" * 127 + ":h",
]


@pytest.mark.parametrize("user_id", [*STRICT_USER_IDS, *PRINTABLE_USER_IDS, *OTHER_HISTORICAL_USER_IDS])
def test_user_ids_of_the_historical_grammar(user_id: str) -> None:
    assert identifiers.is_user_id(user_id)
    assert identifiers.check_user_id(user_id) == user_id
    assert identifiers.server_name_of(UserID(user_id)) == user_id.partition(":")[2]


@pytest.mark.parametrize("user_id", [*NO_USER_IDS, *NOT_STRINGS])
def test_no_user_ids(user_id: object) -> None:
    assert not identifiers.is_user_id(user_id)
    assert not identifiers.is_compliant_user_id(user_id)
    with pytest.raises(InvalidInput, match="user ID"):
        identifiers.check_user_id(user_id)


def test_which_user_ids_may_be_spoken_of() -> None:
    everyone = [*STRICT_USER_IDS, *PRINTABLE_USER_IDS, *OTHER_HISTORICAL_USER_IDS]

    assert [user_id for user_id in everyone if identifiers.is_compliant_user_id(user_id)] == [
        *STRICT_USER_IDS,
        *PRINTABLE_USER_IDS,
    ]


def test_a_user_id_may_have_255_bytes() -> None:
    assert identifiers.is_user_id("@" + "a" * 252 + ":h")
    assert identifiers.is_user_id("@" + "é" * 126 + ":h")


@pytest.mark.parametrize("localpart", ["alice", "a.b_c=d-e/f+0", "_bridge_x", "1"])
def test_a_localpart_makes_a_user_id(localpart: str) -> None:
    assert identifiers.check_localpart(localpart, ServerName("h.org")) == f"@{localpart}:h.org"


@pytest.mark.parametrize("localpart", ["", "Alice", "a b", "é", "a:b", "a\n", "@a", "a" * 249, *NOT_STRINGS])
def test_a_new_account_needs_a_localpart_of_the_strict_grammar(localpart: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        identifiers.check_localpart(localpart, ServerName("h.org"))

    assert raised.value.errcode == "M_INVALID_USERNAME"


ROOMS_WITH_DOMAIN = ["!opaque:example.org", "!a b\n:h", "!é:h:80", "!" + "a" * 252 + ":h"]
NO_ROOMS = [
    "",
    "!",
    "!a",
    "!:h",
    "a:h",
    "#a:h",
    "!a\0:h",
    "!a:",
    "!a:b c",
    f"!{HASH}=",
    f"${HASH}",
    "!" + "a" * 253 + ":h",
]


@pytest.mark.parametrize("room_id", [*ROOMS_WITH_DOMAIN, f"!{HASH}"])
def test_room_ids(room_id: str) -> None:
    assert identifiers.is_room_id(room_id)
    assert identifiers.check_room_id(room_id) == room_id


@pytest.mark.parametrize("room_id", [*NO_ROOMS, *NOT_STRINGS])
def test_no_room_ids(room_id: object) -> None:
    assert not identifiers.is_room_id(room_id)
    assert not identifiers.is_room_id_of(room_id, get_rules("1"))
    assert not identifiers.is_room_id_of(room_id, get_rules("12"))
    with pytest.raises(InvalidInput, match="room ID"):
        identifiers.check_room_id(room_id)


def test_the_room_version_decides_whether_a_room_id_has_a_domain() -> None:
    assert identifiers.is_room_id_of("!a:h", get_rules("11"))
    assert not identifiers.is_room_id_of(f"!{HASH}", get_rules("11"))
    assert not identifiers.is_room_id_of("!a:h", get_rules("12"))
    assert identifiers.is_room_id_of(f"!{HASH}", get_rules("12"))
    assert not identifiers.is_room_id_of(f"!{STANDARD_HASH}", get_rules("12"))
    assert identifiers.server_of_room_id(RoomID("!a:h:80")) == "h:80"
    assert identifiers.server_of_room_id(RoomID(f"!{HASH}")) is None


@pytest.mark.parametrize("alias", ["#a:h", "#a b/é:example.org:80", "#" + "a" * 252 + ":h"])
def test_room_aliases(alias: str) -> None:
    assert identifiers.is_room_alias(alias)
    assert identifiers.check_room_alias(alias) == alias
    assert identifiers.server_of_alias(RoomAlias(alias)) == alias.partition(":")[2]


@pytest.mark.parametrize("alias", ["", "#", "#a", "#:h", "a:h", "!a:h", "#a\0:h", "#a:", f"#{HASH}", *NOT_STRINGS])
def test_no_room_aliases(alias: object) -> None:
    assert not identifiers.is_room_alias(alias)
    with pytest.raises(InvalidInput, match="alias"):
        identifiers.check_room_alias(alias)


@pytest.mark.parametrize(
    ("event_id", "versions"),
    [("$a:h", {"1", "2"}), (f"${STANDARD_HASH}", {"3"}), (f"${HASH}", {"4", "12"}), ("$" + "a" * 43, {"3", "4", "12"})],
)
def test_event_ids_have_the_form_of_their_room_version(event_id: str, versions: set[str]) -> None:
    assert identifiers.is_event_id(event_id)
    fitting = {
        version for version in ("1", "2", "3", "4", "12") if identifiers.is_event_id_of(event_id, get_rules(version))
    }
    assert fitting == versions


@pytest.mark.parametrize(
    "event_id", ["", "$", "$a", "$:h", "a:h", "!a:h", "$a:", "$" + "a" * 42, "$" + "a" * 44, f"!{HASH}", *NOT_STRINGS]
)
def test_no_event_ids(event_id: object) -> None:
    assert not identifiers.is_event_id(event_id)
    assert not any(identifiers.is_event_id_of(event_id, get_rules(version)) for version in ("1", "3", "12"))


def test_old_event_ids_name_a_server() -> None:
    assert identifiers.server_of_event_id(EventID("$a:h:80")) == "h:80"
    assert identifiers.server_of_event_id(EventID(f"${HASH}")) is None


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (identifiers.is_device_id, ["ABCDEF", "*", "a b/é", "x" * 255], ["", "a\0", "x" * 256, "\ud800"]),
        (
            identifiers.is_key_id,
            ["ed25519:auto", "curve25519:A B", "signed_curve25519:AAAAHQ", "org.example.key:A", "ed25519:" + "d" * 255],
            ["", "a", ":a", "a:", "a b:c", "a:\0", "ed25519:" + "d" * 256, "x" * 65 + ":a"],
        ),
        (
            identifiers.is_server_key_id,
            ["ed25519:auto", "ed25519:a_1"],
            ["ed25519:", "ed25519:a b", "a", "ed25519:a:b"],
        ),
        (identifiers.is_media_id, ["AbC_-9"], ["", "../x", "a/b", "a.b", "x" * 256]),
    ],
)
def test_other_identifiers(check: Callable[[object], bool], good: list[str], bad: list[str]) -> None:
    assert all(map(check, good))
    assert not any(map(check, [*bad, *NOT_STRINGS]))


def test_a_device_id_is_checked() -> None:
    assert identifiers.check_device_id("ABC") == "ABC"
    with pytest.raises(InvalidInput, match="device ID"):
        identifiers.check_device_id("")


def test_mxc_uris_have_a_server_and_a_media_id() -> None:
    assert identifiers.parse_mxc("mxc://example.org:80/AbC_-9") == ("example.org:80", "AbC_-9")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "mxc://",
        "mxc://example.org",
        "mxc://example.org/",
        "mxc:///a",
        "http://example.org/a",
        "MXC://example.org/a",
        "mxc://127.0.0.1/../../../some_service/etc/passwd",
        "mxc://example.org/a/b",
        "mxc://example.org/a?b",
        *NOT_STRINGS,
    ],
)
def test_other_uris_are_not_media(uri: object) -> None:
    with pytest.raises(InvalidInput, match="mxc"):
        identifiers.parse_mxc(uri)


EVERY_CHECK: list[Callable[[object], bool]] = [
    identifiers.is_server_name,
    identifiers.is_user_id,
    identifiers.is_compliant_user_id,
    identifiers.is_room_id,
    identifiers.is_room_alias,
    identifiers.is_event_id,
    identifiers.is_device_id,
    identifiers.is_key_id,
    identifiers.is_server_key_id,
    identifiers.is_media_id,
    lambda value: identifiers.is_room_id_of(value, get_rules("12")),
    lambda value: identifiers.is_event_id_of(value, get_rules("1")),
]


@given(ANY_JSON | st.text("@!$#:[].\0aé1\ud800/ ", max_size=20))
def test_every_check_answers_for_every_value(value: object) -> None:
    for check in EVERY_CHECK:
        assert check(value) in {True, False}


@pytest.mark.parametrize("piece", ["a", "1.", ":", "@", "[:", "é", "a:1", "$"])
@pytest.mark.parametrize("sigil", ["", "@", "!", "#", "$", "mxc://", "["])
def test_long_identifiers_are_refused_quickly(sigil: str, piece: str) -> None:
    hostile = sigil + piece * 300_000

    with cpu_within(0.5):
        assert not any(check(hostile) for check in EVERY_CHECK)
