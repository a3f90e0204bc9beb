"""SRV records from a real DNS server on loopback, addresses from the system."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from federation.outbound.name_lookup import THREADS_OF_DOMAIN, LookupFailed, Service, SystemNameLookup

ROOT = Path(__file__).parents[2]
NAME = "_matrix-fed._tcp.far.test"
Answer = Callable[[dns.message.Message], bytes]


class _NameServer(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(self._answer(dns.message.from_wire(data)), addr)


@asynccontextmanager
async def a_lookup(answer: Answer) -> AsyncIterator[SystemNameLookup]:
    """A lookup whose name server answers so."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _NameServer(answer), ("127.0.0.1", 0))
    lookup = SystemNameLookup(["127.0.0.1"], transport.get_extra_info("sockname")[1])
    try:
        yield lookup
    finally:
        transport.close()


def records(*texts: str) -> Answer:
    """These SRV records for every question."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "SRV", *texts))
        return response.to_wire()

    return answer


def failure(code: dns.rcode.Rcode) -> Answer:
    """No records."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return response.to_wire()

    return answer


async def test_services_come_by_priority() -> None:
    async with a_lookup(records("20 0 3 c.test.", "10 0 1 a.test.", "15 0 2 b.test.")) as lookup:
        assert await lookup.services(NAME) == [Service("a.test", 1), Service("b.test", 2), Service("c.test", 3)]


async def test_of_one_priority_the_heavier_mostly_comes_first() -> None:
    async with a_lookup(records("10 90 1 heavy.test.", "10 10 2 light.test.")) as lookup:
        first = [(await lookup.services(NAME))[0].host for _ in range(200)]
    assert 150 < first.count("heavy.test") < 200


@pytest.mark.parametrize("answer", [failure(dns.rcode.NXDOMAIN), failure(dns.rcode.NOERROR)])
async def test_a_name_without_records_has_no_services(answer: Answer) -> None:
    async with a_lookup(answer) as lookup:
        assert await lookup.services(NAME) == []


@pytest.mark.parametrize(
    "answer", [failure(dns.rcode.SERVFAIL), failure(dns.rcode.REFUSED), records("0 0 0 ."), lambda _query: b"garbage"]
)
async def test_what_is_no_answer_fails(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.outbound.name_lookup.SECONDS", 0.5)
    async with a_lookup(answer) as lookup:
        with pytest.raises(LookupFailed):
            await lookup.services(NAME)


@pytest.mark.parametrize(
    "name", ["_matrix._tcp.a..test", "_matrix._tcp." + "a" * 70 + ".test", "_matrix._tcp." + "a." * 200]
)
async def test_a_name_that_dns_cannot_have_fails(name: str) -> None:
    async with a_lookup(failure(dns.rcode.NXDOMAIN)) as lookup:
        with pytest.raises(LookupFailed):
            await lookup.services(name)


async def test_the_system_knows_its_own_addresses() -> None:
    async with a_lookup(failure(dns.rcode.NXDOMAIN)) as lookup:
        assert "127.0.0.1" in await lookup.addresses("localhost")
        for name in ("nowhere.test", "a..test", "a" * 70 + ".test", "x" * 300):
            with pytest.raises(LookupFailed):
                await lookup.addresses(name)


async def test_lookups_that_hang_are_given_up_and_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    asked: list[str] = []
    names = [f"h{n}.silent.test" for n in range(40)]
    look_up = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **options: Any) -> Any:
        if host not in names:  # others in this process look names up, too
            return look_up(host, *arguments, **options)
        asked.append(host)
        go_on.wait(60)
        raise OSError("too late")

    monkeypatch.setattr("federation.outbound.name_lookup.SECONDS", 0.3)
    monkeypatch.setattr("socket.getaddrinfo", hang)
    async with a_lookup(failure(dns.rcode.NXDOMAIN)) as lookup:
        found = await asyncio.gather(*(lookup.addresses(name) for name in names), return_exceptions=True)
        assert all(isinstance(each, LookupFailed) for each in found)
        assert len(asked) == THREADS_OF_DOMAIN  # and no more while they hang
        assert "127.0.0.1" in await lookup.addresses("localhost")
        go_on.set()


def test_a_process_ends_although_a_lookup_hangs() -> None:
    program = """
import asyncio, socket, time
from federation.outbound.name_lookup import SystemNameLookup
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
async def main():
    asyncio.create_task(SystemNameLookup().addresses("far.test"))
    await asyncio.sleep(0.2)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, cwd=ROOT)
