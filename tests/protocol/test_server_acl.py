"""Server access control lists."""

from typing import Any

import pytest

from federation.protocol.server_acl import ServerACL, is_allowed

EVERYBODY: dict[str, Any] = {"allow": ["*"]}


@pytest.mark.parametrize(
    ("content", "server_name", "expected"),
    [
        (EVERYBODY, "good.example", True),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com:8448", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com:1234", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "EVIL.com", False),
        ({"allow": ["*"], "deny": ["Evil.COM"]}, "evil.com", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "sub.evil.com", True),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "sub.evil.com", False),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "evil.com", True),
        ({"allow": ["*"], "deny": ["evil.???"]}, "evil.com", False),
        ({"allow": ["*"], "deny": ["evil.???"]}, "evil.info", True),
        ({"allow": ["*"], "deny": ["evil.com:8448"]}, "evil.com:8448", True),
        ({"allow": ["good.*", "better.example"]}, "good.example", True),
        ({"allow": ["good.*", "better.example"]}, "better.example:80", True),
        ({"allow": ["good.*", "better.example"]}, "other.example", False),
        ({"allow": ["evil.com"], "deny": ["evil.com"]}, "evil.com", False),
    ],
)
def test_deny_goes_before_allow_and_ports_and_case_do_not_matter(
    content: dict[str, Any], server_name: str, *, expected: bool
) -> None:
    assert is_allowed(content, server_name) is expected
    assert ServerACL(content).allows(server_name) is expected


@pytest.mark.parametrize("literal", ["1.2.3.4", "1.2.3.4:8448", "[::1]", "[::1]:8448", "[2001:DB8::1]:1"])
def test_ip_literals_are_denied_where_the_list_says_so(literal: str) -> None:
    assert is_allowed(EVERYBODY, literal)
    assert is_allowed({**EVERYBODY, "allow_ip_literals": True}, literal)
    assert not is_allowed({**EVERYBODY, "allow_ip_literals": False}, literal)


@pytest.mark.parametrize("name", ["1.2.3.example", "v1.2.3.4.example", "1.2.3", "1.2.3.4.5"])
def test_names_with_digits_are_no_ip_literals(name: str) -> None:
    assert is_allowed({**EVERYBODY, "allow_ip_literals": False}, name)


@pytest.mark.parametrize("value", ["false", 0, None, [], {}])
def test_literals_are_allowed_unless_the_value_is_false(value: object) -> None:
    assert is_allowed({**EVERYBODY, "allow_ip_literals": value}, "1.2.3.4")


def test_literals_can_be_listed_by_their_text() -> None:
    assert not is_allowed({"allow": ["*"], "deny": ["[2001:db8::*]"]}, "[2001:DB8::1]:8448")
    assert is_allowed({"allow": ["1.2.3.*"]}, "1.2.3.4:80")


@pytest.mark.parametrize("allow", [None, "*", 7, {}, {"*": True}, [], [7, None, ["*"]]])
def test_without_a_proper_list_of_the_allowed_nobody_is(allow: object) -> None:
    assert not is_allowed({"allow": allow}, "good.example")
    assert not is_allowed({}, "good.example")


@pytest.mark.parametrize("deny", [None, "good.example", 7, {"good.example": True}, [7, None, ["*"]]])
def test_without_a_proper_list_of_the_denied_nobody_is(deny: object) -> None:
    assert is_allowed({"allow": ["*"], "deny": deny}, "good.example")


def test_malformed_entries_leave_the_others_standing() -> None:
    assert not is_allowed({"allow": ["*"], "deny": [7, "evil.com", None]}, "evil.com")
