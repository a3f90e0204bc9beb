"""SRV records, by dnspython, which asks the system's name servers."""

import random
from collections.abc import Sequence

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from federation.outbound.name_lookup import LookupFailed, Service


class ServiceRecords:
    """Where a domain offers a service."""

    def __init__(self, nameservers: Sequence[str] | None, port: int) -> None:
        """`nameservers`, on this port, are asked instead of those of the system."""
        self._resolver = dns.asyncresolver.Resolver(configure=nameservers is None)
        self._resolver.cache = dns.resolver.LRUCache(1000)
        if nameservers is not None:
            self._resolver.nameservers = list(nameservers)
            self._resolver.port = port

    async def find(self, name: str, timeout_seconds: float) -> Sequence[Service]:
        """What the records say, in the order to be tried; none if there are none.

        Raises LookupFailed where DNS gives no answer, or the name offers the service nowhere.
        """
        try:
            absolute = dns.name.from_text(name)
            answer = await self._resolver.resolve(absolute, "SRV", lifetime=timeout_seconds)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookupFailed(f"looking up {name} failed: {type(error).__name__}") from None
        records = [record for record in answer if isinstance(record, SRV)]
        if len(records) == 1 and records[0].target == dns.name.root:
            raise LookupFailed(f"{name} says that there is no such service")
        return [Service(str(each.target).rstrip("."), each.port) for each in _in_order(records)]


def _in_order(records: Sequence[SRV]) -> list[SRV]:
    """By priority; of the same priority at random, by weight (RFC 2782)."""
    # Exponential variates with the weights as rates: the smallest comes first with the probability of its weight.
    return sorted(records, key=lambda record: (record.priority, random.expovariate(1) / (record.weight + 0.01)))
