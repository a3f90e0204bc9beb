"""DNS for the egress client: a host's addresses as the system sees them, and SRV records.

Addresses come from the system's resolver, because /etc/hosts and the like are how operators place their machines.
SRV records it cannot give; dnspython asks the system's name servers for them.
"""

import asyncio
import contextlib
import importlib
import socket
import threading
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from federation.outbound.turns import Places, Turns

MAX_ADDRESSES = 8
"""Of a host that are tried; and of a service's hosts."""

THREADS = 128
"""Lookups under way at once."""
THREADS_OF_DOMAIN = 8
"""Of names that end alike: a name server that is silent holds up no others."""

SECONDS = 10.0
"""For the addresses of a host; SRV records get half of it, as most servers have none."""


class LookupFailed(OSError):
    """DNS gave no answer, or this one: there is no such name."""


class Service(Struct, frozen=True):
    """The place that an SRV record gives."""

    host: str
    port: int


class NameLookup(Protocol):
    """What is asked of DNS."""

    async def addresses(self, host: str) -> Sequence[str]:
        """At least one address of the host; raises LookupFailed."""

    async def services(self, name: str) -> Sequence[Service]:
        """What its SRV records say, in the order to be tried; none if there are none; raises LookupFailed."""


class _Records(Protocol):
    """`service_records.ServiceRecords`, which is imported at the first lookup: dnspython is a tenth of a start."""

    async def find(self, name: str, timeout_seconds: float) -> Sequence[Service]:
        """What the records say, in the order to be tried."""


class SystemNameLookup:
    """By the system's own settings."""

    def __init__(self, nameservers: Sequence[str] | None = None, port: int = 53) -> None:
        """`nameservers`, instead of those of the system, are asked for SRV records."""
        # A thread cannot be ended, so none of them counts as slow.
        alike = THREADS_OF_DOMAIN
        places = Places(prompt=THREADS, prompt_seconds=None, slow=0, per_host=alike, unproven=alike)
        self._turns = Turns(places)
        self._nameservers = nameservers
        self._port = port
        self._records: _Records | None = None

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
        if self._records is None:
            module = await asyncio.to_thread(importlib.import_module, "federation.outbound.service_records")
            self._records = module.ServiceRecords(self._nameservers, self._port)
        found = await self._records.find(name, SECONDS / 2)
        return found[:MAX_ADDRESSES]

    async def _ask_system(self, host: str) -> list[str]:
        """In a thread that nobody waits for: an executor's would keep the process from ending until DNS answers."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def deliver(found: list[str], error: BaseException | None) -> None:
            turn.end()
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

        turn = await self._turns.take(".".join(host.lower().rsplit(".", 2)[-2:]))  # which the thread's end gives back
        threading.Thread(target=ask, name=f"lookup of {host}", daemon=True).start()
        return await answer


def _get_addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))
