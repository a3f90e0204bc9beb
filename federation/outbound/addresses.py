"""Which addresses our own requests may go to (SECURITY, "Outbound requests"). Pure."""

import ipaddress
from collections.abc import Iterable, Iterator

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated


class AddressPolicy:
    """Ranges that no request of ours goes to, and exceptions from them."""

    def __init__(self, denied: Iterable[IPNetwork], allowed: Iterable[IPNetwork] = ()) -> None:
        self._denied = tuple(denied)
        self._allowed = tuple(allowed)

    def permits(self, address: str) -> bool:
        """Whether a connection to this address, with or without an IPv6 scope, may be made; False for what is none.

        An IPv6 address that stands for an IPv4 one is permitted only if the latter is, whatever machine translates it.
        """
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return all(self._permits(each) for each in _meanings(parsed))

    def _permits(self, address: IPAddress) -> bool:
        if any(address in network for network in self._allowed):
            return True
        return not any(address in network for network in self._denied)


def _meanings(address: IPAddress) -> Iterator[IPAddress]:
    """The addresses at which a connection to this one may end."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:  # the kernel speaks IPv4 to these: the IPv6 form means nothing by itself
        yield address.ipv4_mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _TRANSLATED or (address in _COMPATIBLE and int(address) > 1):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
