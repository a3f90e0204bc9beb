"""The one log: appending entries in batches (`docs/how-it-works.md`).

An `Entry` is what one request changes: all of it is committed in one transaction, or none. One appender per process
writes the entries of all requests in flight as one batch: it takes the row lock of `log_head`, which reserves the
positions, runs each entry's own work, inserts each kind of change in bulk, commits, and tells the other processes.
The lock is held until the commit is visible, so whoever sees position N sees everything below N, in every process.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Protocol

import psycopg
from psycopg.pq import TransactionStatus

from federation.protocol.errors import MatrixError, Unavailable
from storage import log_batches
from storage.announcements import SOMETHING, Announcement, Carrier
from storage.bus import Bus
from storage.database import (
    UNSTORABLE,
    Connection,
    Database,
    Row,
    Statement,
    Tx,
    is_lost,
    is_passing,
    roll_back,
    unavailable,
    unstorable,
    watch,
)
from storage.figures import Figures
from storage.log_batches import Pending
from storage.log_entries import AlreadyWritten, Appended, Batch, Change, Conflict, Entry
from storage.log_figures import LogFigures
from storage.newest import Newest
from storage.spans import Spans

logger = logging.getLogger(__name__)

CHANNEL = "hearth_log"
MAX_BATCH = 256
"""Entries in one transaction, so that no append is ever long."""
_LIMITS = "set lock_timeout = '20s'; set idle_in_transaction_session_timeout = '5s'"
"""A process that hangs, or is stopped, with the log's lock loses it soon: everybody else waits for it."""
_BY_KEY = (
    "set enable_hashjoin = off; set enable_mergejoin = off; set enable_seqscan = off;"
    " set plan_cache_mode = force_generic_plan"
)
"""An append finds a few rows by their keys, whatever the tables hold. Left alone, the planner thinks about each anew,
and reads all of a table that was small when last analysed: state changes took longer with each in a new database."""

_BEGIN: Statement = ("begin", ())
_LOCK: Statement = ("select position from log_head for update", ())
_RESERVE = "update log_head set position = position + %s returning position, listeners::text"
_COMMIT: Statement = ("commit", ())


class Follower(Protocol):
    """The tail of the process that appends."""

    reading: asyncio.Lock
    """Held while the tail looks at what is committed."""

    async def on_commit(self, batch: Batch) -> None:
        """Take the process's own batch; the appender holds `reading` since before the commit."""

    async def catch_up(self) -> bool:
        """Apply all that is committed; whether there was anything new."""


class _MustStandAloneError(Exception):
    """An entry was refused whose work, in the same transaction, is done already."""


class Log:
    """This process's appender."""

    def __init__(
        self,
        database: Database,
        tail: Follower,
        bus: Bus,
        carrier: Carrier | None = None,
        *,
        newest: Newest | None = None,
        spans: Spans | None = None,
    ) -> None:
        """`carrier` writes the entries that the bus takes along; `newest` is shared with this machine's processes."""
        self._spans = spans
        self._database = database
        self._newest = newest or Newest()
        self._tail = tail
        self._bus = bus
        self._carrier = carrier
        self._pending: list[Pending] = []
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._is_uncertain = False
        """Whether something may be committed that the tail was not told of."""
        self._position = 0
        """Of the last batch."""
        self._has_rivals = False
        """Whether another process appended between the last batch and the one before."""
        self._is_locked = False
        """Whether a transaction has begun that holds the log's lock."""
        self._closing = False
        self._counted = LogFigures()

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._counted.read(len(self._pending), self._pending[0].since if self._pending else None)

    async def catch_up(self) -> bool:
        """Hear of what other processes have committed by now; whether there was anything."""
        return await self._tail.catch_up()

    async def append(self, entry: Entry) -> Appended:
        """Commit an entry; returns when it is durable and this process's tail has it.

        Raises what the entry's work or its conditions raised, `Conflict`, or `Unavailable` when the database is
        away; after `Unavailable` the entry may have been written all the same.
        """
        if self._spans is None:
            return await self.enqueue(entry)
        with self._spans.within("append", {"hearth.changes": len(entry.changes)}):
            return await self.enqueue(entry)

    def enqueue(self, entry: Entry) -> asyncio.Future[Appended]:
        """Put an entry behind all those enqueued before it, without waiting."""
        if self._closing:
            raise Unavailable("The server is shutting down")
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._pending.append(Pending(entry, future, tuple(entry.changes)))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Write batches until cancelled; what is pending then is still written by `close`."""
        while True:
            await self._wake.wait()
            await self._drain()

    async def close(self) -> None:
        """Refuse new entries and write those that wait."""
        self._closing = True
        await self._drain()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _drain(self) -> None:
        self._wake.clear()
        while self._pending:
            try:
                await self._connected()
            except Exception as error:  # no use in trying it for each batch
                waiting, self._pending = self._pending, []
                log_batches.fail(waiting, unavailable(error))
                return
            self._counted.writing_since = self._pending[0].since
            batch: list[Pending] = []
            try:
                if self._has_rivals:
                    await self._lock()
                batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
                await self._write(batch)
            except asyncio.CancelledError:
                log_batches.fail(batch, Unavailable("The server is shutting down"))
                raise
            finally:
                self._counted.writing_since = None

    async def _write(self, batch: list[Pending]) -> None:
        """Write a batch; one that fails is split until the bad entry stands alone."""
        try:
            if len(batch) > 1 and any(pending.entry.stands_alone for pending in batch):
                for part in log_batches.split_alone(batch):
                    await self._write(part)
                return
            await self._commit(batch)
        except Exception as error:  # every failure belongs to the entries of this batch
            if is_lost(error):
                self._counted.failures += 1
                await self._forget_connection()
                refusal = unavailable(error)
                await self._look_again()
                log_batches.fail(batch, refusal)
            elif len(batch) == 1 and is_passing(error) and not batch[0].was_retried:
                batch[0].was_retried = True
                await self._write(batch)
            elif len(batch) == 1:
                if isinstance(error, psycopg.errors.IntegrityError):
                    error = AlreadyWritten("The same thing was written before")
                elif is_passing(error):  # a deadlock with somebody who is not in the log, twice
                    error = Conflict("Others change the same at this moment, try again")
                elif isinstance(error, UNSTORABLE):
                    error = unstorable(error)
                elif not isinstance(error, MatrixError):
                    batch[0].context.run(logger.error, "an entry could not be appended", exc_info=error)
                    error = MatrixError("M_UNKNOWN", "The change could not be stored", 500)
                self._counted.note_refused(is_conflict=isinstance(error, Conflict))
                log_batches.fail(batch, error)
            else:
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])

    async def _lock(self) -> None:
        """Wait for others before the batch is made up: what comes meanwhile goes with it. A failure is the batch's."""
        began = time.monotonic()
        connection = await self._connected()
        timer = watch(connection)
        try:
            await self._tx(connection).fetch_each(_BEGIN, _LOCK)
            self._is_locked = True
            self._counted.lock_seconds.add(time.monotonic() - began)
        except Exception as error:  # whatever it is, the batch meets it, too
            logger.debug("the log's lock could not be had: %r", error)
            await self._forget_connection()
        finally:
            timer.cancel()

    async def _reserve(self, tx: Tx, total: int, preloads: Iterable[Statement]) -> tuple[int, bool, list[list[Row]]]:
        """Take so many positions, and the lock, unless that is held: the position that they follow, whether anybody
        else is to be told, and what the statements answer."""
        began = time.monotonic()
        reserving = (_RESERVE, (total,))
        # Begun and ended together with other statements: a lone message costs two round trips.
        if self._is_locked:
            self._is_locked = False
            head, *answers = await tx.fetch_each(reserving, *preloads)
        else:
            _, head, *answers = await tx.fetch_each(_BEGIN, reserving, *preloads)
            self._counted.lock_seconds.add(time.monotonic() - began)
        if not head:
            raise RuntimeError("log_head is empty: the database was not migrated")
        before: int = head[0][0] - total
        self._has_rivals = before != self._position
        return before, self._bus.is_heard(head[0][1]), answers

    async def _commit(self, batch: list[Pending]) -> None:
        began = time.monotonic()
        connection = await self._connected()
        tx = self._tx(connection)
        total = sum(pending.entry.reserved for pending in batch)
        async with contextlib.AsyncExitStack() as held:
            held.callback(watch(connection).cancel)
            try:
                preloads = log_batches.preloads(tx.memory, batch)
                before, is_heard, answers = await self._reserve(tx, total, chain(*preloads.values()))
                position = before + total
                if self._is_uncertain:  # under the log's lock everything below can be seen
                    await self._tell_of_others(before)
                first = before + 1
                for pending in batch:
                    pending.first = first
                    first += pending.entry.reserved
                refused = await self._run_work(connection, tx, batch)
                admitted = [pending for pending in batch if id(pending) not in refused]
                changes = await log_batches.admit(tx, batch, refused, log_batches.by_preload(preloads, answers))
                if len(batch) == 1 and refused:
                    raise refused[id(batch[0])]  # undoes its work, too
                if any(pending.entry.work is not None and id(pending) in refused for pending in admitted):
                    raise _MustStandAloneError
                kinds = 0
                for kind, rows in log_batches.by_kind(changes).items():
                    await kind.insert_many(tx, rows)
                    kinds |= kind.kind
                # Else the tail might read the batch back, as another process's, before it is handed it.
                await held.enter_async_context(self._tail.reading)
                announced = b""
                if is_heard:
                    announced = Announcement(before, position, kinds, self._carried(changes)).to_bytes()
                saying = self._bus.with_commit(CHANNEL, announced) if is_heard else ()
                await tx.fetch_each(*saying, _COMMIT)
            except BaseException:
                await roll_back(connection)
                raise
            self._position = position
            self._newest.tell(position)
            if is_heard:
                self._bus.after_commit(CHANNEL, announced)
            await self._tell(Batch(before, position, changes))
        now = time.monotonic()
        self._counted.batch_entries.add(len(batch) - len(refused))
        self._counted.batch_seconds.add(now - began)
        for pending in batch:
            error = refused.get(id(pending))
            if error is not None:
                self._counted.note_refused(is_conflict=isinstance(error, Conflict))
                log_batches.refuse(pending, error)
            else:
                self._counted.append_seconds.add(now - pending.since)
                log_batches.accept(pending)

    def _carried(self, changes: Sequence[tuple[int, Change]]) -> bytes:
        """The changes as others take them; nothing where they have to read them."""
        limit = self._bus.carried_bytes
        return self._carrier.encode(changes, limit) if limit and self._carrier is not None else b""

    async def _tell(self, batch: Batch) -> None:
        """Hand the tail, whose `reading` is held, what is committed; what it does not take it reads when it can."""
        try:
            await self._tail.on_commit(batch)
            self._is_uncertain = False
        except Exception as error:
            self._is_uncertain = True
            if not isinstance(error, Unavailable):  # that is logged where it arises
                logger.exception("positions up to %d are committed, and the tail did not take them", batch.position)

    async def _tell_of_others(self, position: int) -> None:
        """Have the tail, and other processes, read up to here. The log's lock is held."""
        self._newest.tell(position)
        self._bus.after_commit(CHANNEL, SOMETHING)
        async with self._tail.reading:
            await self._tell(Batch(position, position, ()))

    async def _run_work(self, connection: Connection, tx: Tx, batch: list[Pending]) -> dict[int, Exception]:
        refused: dict[int, Exception] = {}
        for pending in batch:
            if pending.entry.work is None:
                continue
            pending.entry.changes[:] = pending.given  # without what it added in a batch that failed
            savepoint = tx.later("savepoint entry")  # a refusal undoes this entry's work alone
            try:
                pending.result = await pending.entry.work(tx)
                await tx.fetch_each(("release savepoint entry", ()))
            except MatrixError as error:
                tx.forget_waiting()
                if savepoint.rows is not None or connection.pgconn.transaction_status == TransactionStatus.INERROR:
                    await tx.run("rollback to savepoint entry; release savepoint entry")
                refused[id(pending)] = error
        return refused

    async def _look_again(self) -> None:
        """Before anybody is told that their entry may be written: if it is, let the tail know."""
        try:
            connection = await self._connected()
            timer = watch(connection)
            try:
                # Locked, this waits for the transaction whose end we do not know.
                _, head = await self._tx(connection).fetch_each(_BEGIN, _LOCK)
                if head:
                    await self._tell_of_others(head[0][0])
            finally:
                timer.cancel()
                await roll_back(connection)
        except Exception as error:  # the next batch looks again, or the tail does
            if not is_lost(error):
                logger.exception("after a lost connection the log could not be looked at")
            await self._forget_connection()

    def _tx(self, connection: Connection) -> Tx:
        return Tx(connection, self._database.memory)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = await self._database.connect()
            try:
                await connection.execute(f"{_LIMITS}; {_BY_KEY}")
            except BaseException:  # a cancellation, too: nobody else has this connection yet
                await connection.close()
                raise
            self._connection, self._is_locked = connection, False
        return self._connection

    async def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        self._is_uncertain = True
        if connection is not None:
            try:
                await connection.close()
            except psycopg.Error as error:
                logger.debug("closing a lost connection: %s", error)
