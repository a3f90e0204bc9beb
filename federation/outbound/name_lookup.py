"""DNS for the egress client: a host's addresses as the system sees them, and SRV records.

Addresses come from the system's resolver, because /etc/hosts and the like are how operators place their machines.
SRV records it cannot give; dnspython asks the system's name servers for them.
"""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

MAX_ADDRESSES = 8
"""Of a host that are tried; and of a service's hosts."""

_THREADS = 16
"""Lookups under way at once: one name server that is silent holds up few others."""

SECONDS = 10.0
"""For the addresses of a host; SRV records get half of it, as most servers have none."""


class LookupFailed(OSError):
    """DNS gave no answer, or this one: there is no such name."""


@dataclass(frozen=True, slots=True)
class Service:
    """The place that an SRV record gives."""

    host: str
    port: int


class NameLookup(Protocol):
    """What is asked of DNS."""

    async def addresses(self, host: str) -> Sequence[str]:
        """At least one address of the host; raises LookupFailed."""

    async def services(self, name: str) -> Sequence[Service]:
        """What its SRV records say, in the order to be tried; none if there are none; raises LookupFailed."""


class SystemNameLookup:
    """By the system's own settings."""

    def __init__(self, nameservers: Sequence[str] | None = None, port: int = 53) -> None:
        """`nameservers`, instead of those of the system, are asked for SRV records."""
        self._slots = asyncio.Semaphore(_THREADS)
        self._nameservers = nameservers
        self._port = port
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def addresses(self, host: str) -> Sequence[str]:
        """As NameLookup says."""
        try:
            async with asyncio.timeout(SECONDS):
                found = await self._ask_system(host)
        except TimeoutError:
            raise LookupFailed(f"looking up {host} takes too long") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: of a label that is empty or too long
            raise LookupFailed(f"{host} has no address: {error}") from None
        return found[:MAX_ADDRESSES]

    async def services(self, name: str) -> Sequence[Service]:
        """As NameLookup says; raises LookupFailed, too, where the name offers the service nowhere."""
        try:
            absolute = dns.name.from_text(name)
            answer = await self._dns().resolve(absolute, "SRV", lifetime=SECONDS / 2)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookupFailed(f"looking up {name} failed: {type(error).__name__}") from None
        records = [record for record in answer if isinstance(record, SRV)]
        if len(records) == 1 and records[0].target == dns.name.root:
            raise LookupFailed(f"{name} says that there is no such service")
        return [Service(str(each.target).rstrip("."), each.port) for each in _in_order(records)][:MAX_ADDRESSES]

    async def _ask_system(self, host: str) -> list[str]:
        """In a thread that nobody waits for: an executor's would keep the process from ending until DNS answers."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def deliver(found: list[str], error: BaseException | None) -> None:
            self._slots.release()
            if answer.done():  # it took too long
                return
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        def ask() -> None:
            found: list[str] = []
            failure = None
            try:
                found = _get_addresses(host)
            except (OSError, UnicodeError) as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, found, failure)

        await self._slots.acquire()  # given back by the thread's end
        threading.Thread(target=ask, name=f"lookup of {host}", daemon=True).start()
        return await answer

    def _dns(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver(configure=self._nameservers is None)
            self._resolver.cache = dns.resolver.LRUCache(1000)
            if self._nameservers is not None:
                self._resolver.nameservers = list(self._nameservers)
                self._resolver.port = self._port
        return self._resolver


def _get_addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


def _in_order(records: Sequence[SRV]) -> list[SRV]:
    """By priority; of the same priority at random, by weight (RFC 2782)."""
    # Exponential variates with the weights as rates: the smallest comes first with the probability of its weight.
    return sorted(records, key=lambda record: (record.priority, random.expovariate(1) / (record.weight + 0.01)))
