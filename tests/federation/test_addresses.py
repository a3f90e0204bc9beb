"""Which addresses the default policy lets requests go to."""

from ipaddress import ip_network

import pytest

from federation.outbound.addresses import AddressPolicy
from homeserver.config import Federation
from tests.federation.https_servers import loopback_policy

DEFAULT = AddressPolicy(Federation().denied_ranges)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  # refused
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",  # mapped
        "::ffff:10.0.0.1",
        "::ffff:0.0.0.0",
        "::127.0.0.1",  # compatible
        "2002:7f00:1::",  # 6to4
        "2002:c0a8:101::1",
        "64:ff9b::7f00:1",  # NAT64
        "64:ff9b:1::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # Teredo
        "not an address",
        "",
        "127.1",
        "2130706433",
    ],
)
def test_an_address_that_is_not_public_is_denied(address: str) -> None:
    assert not DEFAULT.permits(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "2a00::1%eth0"])
def test_a_public_address_is_permitted(address: str) -> None:
    assert DEFAULT.permits(address)


def test_exceptions_win() -> None:
    policy = loopback_policy(["10.1.0.0/16"])

    assert policy.permits("10.1.2.3")
    assert policy.permits("::ffff:10.1.2.3")
    assert not policy.permits("10.2.0.1")


def test_who_allows_translated_addresses_does_not_allow_what_they_stand_for() -> None:
    policy = loopback_policy(["64:ff9b::/96", "2002::/16"])

    assert policy.permits("64:ff9b::101:101")
    assert not policy.permits("64:ff9b::a00:1")
    assert not policy.permits("2002:a00:1::")


def test_without_denied_ranges_everything_is_permitted() -> None:
    assert AddressPolicy([]).permits("127.0.0.1")
    assert not AddressPolicy([ip_network("127.0.0.0/8")]).permits("::ffff:127.0.0.1")
