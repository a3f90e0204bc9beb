"""What one process finds out of other servers, all know, and it outlives them (`destinations`).

Entries of the log say of which server something is new; the row says what. Few are written: a server that fails is
tried rarely.
"""

import asyncio
import logging
import time

from federation.outbound.availability import Availability, BackOff
from federation.protocol.errors import MatrixError
from federation.protocol.types import ServerName, UserID
from storage import destinations
from storage.database import Database, Tx
from storage.destinations import Failing
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry

logger = logging.getLogger(__name__)

AT_ONCE = 100
"""Servers in one entry of the log."""
PAUSE_SECONDS = 1.0


class SharedAvailability:
    """Keeps an `Availability` in step with those of other processes."""

    def __init__(self, database: Database, log: Log, availability: Availability) -> None:
        self._database = database
        self._log = log
        self._availability = availability
        self._to_write: dict[ServerName, None] = {}
        self._to_read: dict[ServerName, None] = {}
        self._has_news = asyncio.Event()
        availability.on_news = self._note

    def _note(self, server: ServerName) -> None:
        self._to_write[server] = None
        self._has_news.set()

    def on_change(self, _position: int, change: Change) -> None:
        """A view of the tail."""
        if isinstance(change, Invalidated) and change.kind_of is Kind.DESTINATION:
            self._to_read[ServerName(change.detail)] = None
            self._has_news.set()

    async def start(self) -> None:
        """Learn what was known before."""
        async with self._database.read() as tx:
            for failing in await destinations.list_failing(tx):
                self._availability.learn(failing.server, _back_off(failing, self._database.now_ms()))

    async def run(self) -> None:
        """Tell and learn until cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            try:
                await self._write()
                await self._read()
            except MatrixError:  # logged where it arose
                self._has_news.set()
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:
                logger.exception("what is known of other servers' availability could not be shared")
                await asyncio.sleep(PAUSE_SECONDS)

    async def _write(self) -> None:
        while self._to_write:
            servers = list(self._to_write)[:AT_ONCE]
            for server in servers:
                del self._to_write[server]
            found = {server: self._availability.find(server) for server in servers}
            now_ts = self._database.now_ms()
            failing = [_failing(server, back_off, now_ts) for server, back_off in found.items() if back_off is not None]
            alive = [server for server, back_off in found.items() if back_off is None]

            async def work(tx: Tx, failing: list[Failing] = failing, alive: list[ServerName] = alive) -> None:
                await destinations.put_failing(tx, failing)
                await destinations.forget_failing(tx, alive)

            try:
                await self._log.append(Entry(list(map(news_of, servers)), work))
            except MatrixError:
                self._to_write = dict.fromkeys(servers) | self._to_write
                raise

    async def _read(self) -> None:
        servers = list(self._to_read)
        self._to_read.clear()
        try:
            async with self._database.read() as tx:
                found = {failing.server: failing for failing in await destinations.list_failing(tx, servers)}
        except MatrixError:
            self._to_read = dict.fromkeys(servers) | self._to_read
            raise
        for server in servers:
            if server in self._to_write:
                continue  # what we found out since is newer
            failing, known = found.get(server), self._availability.find(server)
            if failing is None:
                self._availability.learn(server, None)
            elif known is None or known.failures != failing.failures or known.since_ts != failing.since_ts:
                self._availability.learn(server, _back_off(failing, self._database.now_ms()))


def news_of(server: ServerName) -> Invalidated:
    """What to log when the row of a server has changed."""
    return Invalidated(Kind.DESTINATION, UserID(""), server)


def _back_off(failing: Failing, now_ts: int) -> BackOff:
    seconds = (failing.retry_ts - now_ts) / 1000
    return BackOff(time.monotonic() + seconds, failing.failures, failing.since_ts, failing.reason)


def _failing(server: ServerName, back_off: BackOff, now_ts: int) -> Failing:
    retry_ts = now_ts + int((back_off.until - time.monotonic()) * 1000)
    return Failing(server, back_off.since_ts, retry_ts, back_off.failures, back_off.reason)
