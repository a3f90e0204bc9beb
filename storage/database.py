"""The connection pool and transactions (psycopg 3, asynchronous).

Every statement in `storage` is text sent by psycopg itself: a one-row statement costs about 25 us of CPU there
and 84 us through SQLAlchemy Core. SQLAlchemy owns the schema and its migrations.

Storage functions take a `Tx`, never commit, and never wait for anything but the database.
"""

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.array import ListBinaryDumper
from psycopg_pool import PoolTimeout, TooManyRequests

from federation.protocol.errors import InvalidInput, Unavailable
from storage import arrays
from storage.figures import Figures
from storage.pool import Pool
from storage.statements import Connection as Connection
from storage.statements import Row as Row
from storage.statements import Statement as Statement
from storage.transaction import Later as Later
from storage.transaction import Memory as Memory
from storage.transaction import Part
from storage.transaction import Tx as Tx

logger = logging.getLogger(__name__)

_LOST = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    TooManyRequests,
    pg.ReadOnlySqlTransaction,  # the connection leads to a standby, after a failover
    pg.IdleInTransactionSessionTimeout,
)
"""The database is away, full or shutting down. Nothing was committed, or we cannot know (see `Log`)."""

UNSTORABLE = (psycopg.DataError, pg.ProgramLimitExceeded)
"""The value is at fault: a NUL in a text, a number out of range, a text longer than its index takes."""

_QUIET_SECONDS = 5.0
_logged_at: dict[str, float] = {}

_RETRIED = (pg.SerializationFailure, pg.DeadlockDetected)


_ADAPTERS = psycopg.adapt.AdaptersMap(psycopg.adapters)
_ADAPTERS.register_dumper(list, ListBinaryDumper)  # arrays as text cost 5 times the CPU, arrays of bytes 500 times
arrays.register(_ADAPTERS)
_SETTINGS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 2, "context": _ADAPTERS}
_NETWORK = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""A machine that vanished is noticed within half a minute, not after hours; the operator's own values win."""

_PATIENCE_SECONDS = 10.0
"""For how long a request waits for a connection of the pool."""
_PATIENCE_WHILE_AWAY_SECONDS = 1.0
_IDLE_SECONDS = 30.0
"""One connection is closed each time that all were not needed at once for so long."""
_RECONNECT_SECONDS = 2.0
"""After which the pool gives up a connection and makes one when it is asked for: its pauses double, ours must not."""
OPEN_SECONDS = 30.0
"""For how long a process that starts waits for the database."""

_REPLICA_PATIENCE_SECONDS = 0.05
"""For how long a read waits for a replica to have all that the primary had."""
_REPLICA_LOOK_SECONDS = 0.005
_REPLICA_CONNECT_SECONDS = 0.2
_REPLICA_AVOIDED_SECONDS = 5.0
"""A replica that was behind or away is not asked again for so long."""

_TOLERATED_SECONDS = 0.5
"""An answer that took longer does not tell the time."""

STUCK_SECONDS = 30.0
"""A connection that is in use for so long is given up: its disk, or its machine, does not answer."""


def watch(connection: Connection) -> asyncio.TimerHandle:
    """Cut the connection unless the timer is cancelled in time; who uses it then finds it lost."""
    return asyncio.get_running_loop().call_later(STUCK_SECONDS, _cut, connection)


def _cut(connection: Connection) -> None:
    if connection.closed:
        return
    logger.error("PostgreSQL has not answered for %d seconds: the connection is given up", STUCK_SECONDS)
    # Cancelling would wait for an answer, too.
    with socket.socket(fileno=os.dup(connection.fileno())) as same, suppress(OSError):
        same.shutdown(socket.SHUT_RDWR)


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def roll_back(connection: Connection) -> None:
    """Undo what is not committed; a connection that cannot is closed, which does the same."""
    if connection.pgconn.transaction_status == TransactionStatus.IDLE:
        return
    try:
        await connection.run_script("rollback")  # what is prepared stays so, unlike by psycopg's
    except psycopg.Error:
        await connection.close()


async def _limit(connection: Connection) -> None:
    """A process that hangs, or is stopped, within a transaction loses what it has locked."""
    await connection.execute("set idle_in_transaction_session_timeout = '15s'")


class Clock:
    """What time it is, as the database says: the same in all processes, whatever the clocks of their machines say."""

    def __init__(self) -> None:
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000
        """Of what counts the time since the machine was started; that one runs evenly, and nobody sets it."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    async def set(self, tx: Tx) -> None:
        """Ask the database; a slow answer is not used."""
        before = time.monotonic()
        row = await tx.fetch_one("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
        after = time.monotonic()
        if row is not None and after - before < _TOLERATED_SECONDS:
            self._ahead_ms = row[0] - (before + after) * 500


class _Reading(AbstractAsyncContextManager[Tx]):
    """A connection of the pool, while a block lasts."""

    __slots__ = ("_connection", "_database", "_since", "_timer", "_tx")

    def __init__(self, database: "Database") -> None:
        self._database = database

    async def __aenter__(self) -> Tx:
        connection = self._database.pool.take()
        if connection is None:
            connection = await self._wait()
        self._connection, self._since = connection, time.monotonic()
        self._timer = watch(connection)
        self._tx = Tx(connection, self._database.memory)
        return self._tx

    async def _wait(self) -> Connection:
        before = _cancellations()
        try:
            connection = await self._database.pool.getconn(self._database.patience)
        except _LOST as error:
            raise unavailable(error) from error
        if _cancellations() > before:
            # The pool waits by `asyncio.wait_for`, which in Python 3.11 loses a cancellation that comes when a
            # connection has just come.
            await self._database.pool.putconn(connection)
            raise asyncio.CancelledError
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._database.is_away = self._connection.closed
        await self._database.pool.give_back(self._connection, self._since)
        if isinstance(error, UNSTORABLE):
            raise unstorable(error) from error
        if isinstance(error, _LOST):
            raise unavailable(error) from error
        if self._tx.forget_waiting() and error is None:
            raise RuntimeError("a statement waited for others that never came")


class Database:
    """The pool of connections of this process."""

    def __init__(self, conninfo: str, *, max_connections: int = 10, replicas: Sequence[str] = ()) -> None:
        """`replicas` are standbys by streaming replication; each has a pool of its own, as large."""
        self._replica_reads = 0
        self._replicas = [_Replica(each, self, max_connections) for each in replicas]
        self.conninfo = make_conninfo(conninfo, **{**_NETWORK, **conninfo_to_dict(conninfo)})
        self.memory = Memory()
        self._clock = Clock()
        self._patience_seconds = _PATIENCE_SECONDS
        self.is_away = False
        """Whether the last connection that was used was lost, or none could be made."""
        self.pool = Pool(
            self.conninfo,
            min_size=1,
            max_size=max_connections,
            max_idle=_IDLE_SECONDS,
            open=False,
            max_waiting=20_000,  # a server that was just started is asked by every client at once
            reconnect_timeout=_RECONNECT_SECONDS,
            configure=_limit,
            connection_class=Connection,
            kwargs=_SETTINGS,
        )

    async def open(self) -> None:
        """Connect; raises Unavailable when the database is not reached within `OPEN_SECONDS`."""
        await self.pool.open()
        # Until it is known to be there nobody waits long: the pool gives up soon, and is asked anew.
        self.is_away = True
        deadline = time.monotonic() + OPEN_SECONDS
        for attempt in itertools.count():
            try:
                await self.set_clock()
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await wait_before_retry(attempt)
        for replica in self._replicas:
            await replica.open()

    async def open_when_there(self) -> None:
        """Connect in the background; nobody ever waits long."""
        self._patience_seconds = _REPLICA_CONNECT_SECONDS
        await self.pool.open(wait=False)

    def now_ms(self) -> int:
        """The time by the database's clock: what others will compare with theirs is counted by this."""
        return self._clock.now_ms()

    async def set_clock(self) -> None:
        """Look at the database's clock; raises Unavailable."""
        async with self.read() as tx:
            await self._clock.set(tx)

    async def close(self) -> None:
        """Give every connection back to the server."""
        for replica in self._replicas:
            await replica.close()
        await self.pool.close(timeout=5)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        found = self.pool.get_stats()
        return {
            "database_replica_reads_total": self._replica_reads,
            "database_connections": found.get("pool_size", 0),
            "database_connections_idle": found.get("pool_available", 0),
            "database_connections_limit": self.pool.max_size,
            "database_waiting": found.get("requests_waiting", 0),
            "database_requests_total": found.get("requests_num", 0),
            "database_wait_seconds_total": found.get("requests_wait_ms", 0) / 1000,
            "database_use_seconds_total": self.pool.used_seconds,
            "database_refused_total": found.get("requests_errors", 0),
            "database_connects_total": found.get("connections_num", 0),
            "database_connect_failures_total": found.get("connections_errors", 0),
            "database_lost_total": found.get("connections_lost", 0),
        }

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """Several statements, committed together when the block ends without an exception."""
        async with self.read() as tx:
            tx.later("begin")
            try:
                yield tx
                await tx.fetch_each(("commit", ()))
            except BaseException:
                await roll_back(tx.connection)
                raise

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """Statements that each see the newest commits; nothing is written."""
        return _Reading(self)

    def write(self) -> AbstractAsyncContextManager[Tx]:
        """Statements that each commit by themselves: bookkeeping that nobody hears about, at a third of the cost."""
        return _Reading(self)

    @property
    def patience(self) -> float:
        """For how many seconds a connection of the pool is waited for."""
        return min(self._patience_seconds, _PATIENCE_WHILE_AWAY_SECONDS) if self.is_away else self._patience_seconds

    async def read_history(self, tx: Tx, work: Callable[[Tx], Awaitable[Part]]) -> Part:
        """What `work` returns, by a replica that has all that `tx` sees now, or by `tx` itself where none has.

        Who may read at all has to be decided by `tx`. Where a replica fails, `work` begins anew.
        """
        for replica in sorted(self._replicas, key=lambda each: each.in_use):
            if replica.avoided_until > time.monotonic():
                continue
            row = await tx.fetch_one(
                "select case when not pg_is_in_recovery() then pg_current_wal_flush_lsn()::text end"
            )
            if row is None or row[0] is None:
                break
            try:
                async with replica.caught_up_with(row[0]) as there:
                    if there is not None:
                        answer = await work(there)
                        self._replica_reads += 1
                        return answer
            except (Unavailable, *_RETRIED):  # it is away, or recovery has taken from it what was being read
                logger.warning("a replica cannot be used: for a while history is read from the primary")
                replica.avoid()
        return await work(tx)

    async def connect(self) -> Connection:
        """A connection of one's own, outside the pool, for who keeps it: the appender and the tail.

        While this fails, nobody waits long for a connection of the pool either.
        """
        try:
            connection = await Connection.connect(self.conninfo, **_SETTINGS)
        except psycopg.Error:
            self.is_away = True
            raise
        self.is_away = False
        return connection

    async def drop_lost(self) -> None:
        """A connection of one's own was lost: have the pool try its idle ones, so that nobody is handed a dead one."""
        self.is_away = True
        await self.pool.check()


class _Replica:
    """A standby, which is asked only while it is hardly behind."""

    def __init__(self, conninfo: str, primary: Database, max_connections: int) -> None:
        self._database = Database(conninfo, max_connections=max_connections)
        self._primary = primary
        self.in_use = 0
        self.avoided_until = 0.0

    async def open(self) -> None:
        """Begin to connect; it need not be there."""
        self._database.memory = self._primary.memory  # it is the same database
        await self._database.open_when_there()

    async def close(self) -> None:
        """Give every connection back to the server."""
        await self._database.close()

    def avoid(self) -> None:
        """Ask it no more for a while."""
        self.avoided_until = time.monotonic() + _REPLICA_AVOIDED_SECONDS

    @asynccontextmanager
    async def caught_up_with(self, lsn: str) -> AsyncIterator[Tx | None]:
        """Statements that see at least what the primary had written up to there; None if that takes too long."""
        self.in_use += 1
        try:
            async with self._database.read() as tx:
                deadline = time.monotonic() + _REPLICA_PATIENCE_SECONDS
                while not (found := await tx.fetch_one(_HAS_REPLAYED, (lsn,))) or not found[0]:
                    if time.monotonic() > deadline:
                        self.avoid()
                        break
                    await asyncio.sleep(_REPLICA_LOOK_SECONDS)
                yield tx if found and found[0] else None
        finally:
            self.in_use -= 1


_HAS_REPLAYED = "select pg_is_in_recovery() and pg_last_wal_replay_lsn() >= %s::text::pg_lsn"
"""False, too, for a former standby that has become a primary: it goes its own way."""


def unavailable(error: Exception) -> Unavailable:
    """What a client is told when the database is away: 503 with a retry hint. The log has each reason now and then."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    now = time.monotonic()
    if now - _logged_at.get(reason, -_QUIET_SECONDS) >= _QUIET_SECONDS:
        if len(_logged_at) > 100:
            _logged_at.clear()
        _logged_at[reason] = now
        logger.warning("database unavailable: %s", reason)
    return Unavailable("The database is not available at the moment, try again", retry_after_ms=2000)


def unstorable(error: psycopg.Error) -> InvalidInput:
    """What a client is told of a value that no column holds: a NUL in a text, a number out of range."""
    logger.warning("unstorable value: %s %s", type(error).__name__, error.sqlstate)  # not its text, which has the value
    return InvalidInput("A value in the request cannot be stored")


def is_lost(error: BaseException) -> bool:
    """Whether the database went away, rather than the statement being at fault."""
    return isinstance(error, _LOST) and not isinstance(error, (*_RETRIED, *UNSTORABLE))


def is_passing(error: BaseException) -> bool:
    """Whether the same statements may succeed when they are tried again at once."""
    return isinstance(error, _RETRIED)


async def wait_before_retry(attempt: int) -> None:
    """Capped back-off between attempts to reach the database again."""
    await asyncio.sleep(min(0.1 * 2 ** min(attempt, 5), 3))
