"""Followers: consumers of the log, each with a stored cursor, run by one process at a time.

A follower is told of everything that is appended, in order, from where it was told last. Every process has the same
followers and builds one `Followers` of them; each is run by the process that its row names while that one's lease
(`follower_processes`) is valid. When a process dies, others run what it ran within `LEASE_MS` and a second, from where
it was. Processes share the followers evenly, by a hash that all compute alike: work that one process could not do alone
is split into several followers (`push/0`, `push/1`, ...), each of which passes over what is the others'.

All times are the database's. A process that does not run a follower does nothing for it but to look, once a second for
all of them, who does; who runs it reads the tail's window, and the database where it is further behind than that.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from federation.protocol.errors import MatrixError, Unavailable
from storage import background
from storage.database import Database, Tx, wait_before_retry
from storage.figures import Figures
from storage.log_entries import Change
from storage.shares import share_of
from storage.tail import Tail

logger = logging.getLogger(__name__)

LEASE_MS = 3_500
"""A process that has not renewed for so long has died; others look every second."""
TICK_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
"""Followers are woken by what is appended."""
MAX_CHANGES = 1_000
"""Of which a follower is told at once."""
SCANNED = 500
"""Positions of the log that are read at once from the database: twice as many each time that nothing is there, as
holes for history are large (`storage/history.py`)."""
MAX_SCANNED = 65_536
MAX_READ = 500
"""Room events that are read at once from the database."""
MAX_ATTEMPTS = 5
"""To act on one change; then it is passed over."""
MAX_LEAVING_SECONDS = 10.0
"""That another process waits for what is under way here for a follower that it is to run."""
LAST_SECONDS = 2.5
"""The same where this process ends, which renews its lease no more."""

_NOW = "(extract(epoch from clock_timestamp()) * 1000)::bigint"

Work = Callable[[Tx], Awaitable[Callable[[], None] | None]]
"""What it returns is called once that is committed."""


class Follower(Protocol):
    """What follows the log. `begin` and `act` are never called at the same time, and by one process of all."""

    @property
    def name(self) -> str:
        """Under which its cursor is stored: never change it."""

    @property
    def kinds(self) -> Collection[type[Change]]:
        """The changes that it wants to be told of."""

    @property
    def gathers_seconds(self) -> float:
        """How long to wait, once there is news, for more of it to be told of at once; 0 for not at all."""

    async def begin(self, position: int) -> None:
        """This process runs it from now on, and changes after this position come: what it remembers from an earlier
        time is out of date. Where it raises, it is called again."""

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        """Do what is to be done about the next changes, which are all of its kinds up to this position; maybe none.

        What it returns is run in the transaction that moves the cursor: what that writes happens exactly once. Without
        it the cursor is stored within about a second, and after a crash the last changes come again; so they do where
        this raises. Then fewer come at once, until the one that cannot be acted on stands alone; after a few
        attempts it is logged and passed over. Unavailable alone is waited out. It may be cancelled anywhere: when the
        server stops, or another process is to run it.
        """


class _Lost(Exception):
    """Another process runs the follower by now."""


# --- statements


class _Row(Struct, frozen=True):
    position: int
    process: str | None
    is_held: bool
    """Whether that process's lease is valid."""


async def _prepare(tx: Tx, names: Collection[str]) -> None:
    await tx.execute(
        "insert into followers (name, position) select name, position from unnest(%s::text[]) as name, log_head"
        " on conflict do nothing",
        (list(names),),
    )


async def _renew(tx: Tx, process: str, names: Collection[str]) -> tuple[list[str], dict[str, _Row]]:
    """Keep this process's lease alive; all processes that live, and how the followers stand."""
    rows = await tx.fetch(
        "with renewed as (insert into follower_processes (process, expires_ts)"
        f" values (%s, {_NOW} + %s) on conflict (process) do update set expires_ts = excluded.expires_ts),"
        f" gone as (delete from follower_processes where expires_ts < {_NOW} - 60000 and process <> %s)"
        f" select name, position, followers.process, coalesce(expires_ts > {_NOW}, false),"
        f" array(select process from follower_processes where expires_ts > {_NOW}),"
        " set_config('synchronous_commit', 'off', true)"
        " from followers left join follower_processes on follower_processes.process = followers.process"
        " where name = any(%s::text[])",
        (process, LEASE_MS, process, list(names)),
    )
    live = {process, *(rows[0][4] if rows else ())}
    return sorted(live), {name: _Row(position, holder, is_held) for name, position, holder, is_held, *_ in rows}


async def _take(tx: Tx, process: str, names: Collection[str]) -> dict[str, int]:
    """Take those of these followers that nobody runs: name -> cursor."""
    rows = await tx.fetch(
        "update followers set process = %s where name = any(%s::text[]) and (process is null or process = %s"
        " or not exists (select from follower_processes held where held.process = followers.process"
        f"  and expires_ts > {_NOW})) returning name, position",
        (process, list(names), process),
    )
    return {name: position for name, position in rows}


def _save(tx: Tx, process: str, positions: Mapping[str, int]) -> None:
    """Move cursors, later; of what another process runs by now nothing is noted."""
    tx.later(
        "update followers set position = given.position from unnest(%s::text[], %s::bigint[]) as given (name, position)"
        " where followers.name = given.name and process = %s and followers.position < given.position",
        (list(positions), list(positions.values()), process),
    )


async def _move(tx: Tx, process: str, name: str, position: int) -> None:
    """Move one cursor, of which nobody can take hold before this transaction ends; raises _Lost."""
    moved = await tx.execute(
        "update followers set position = %s where name = %s and process = %s", (position, name, process)
    )
    if not moved:
        raise _Lost


async def _release(tx: Tx, process: str, names: Collection[str]) -> None:
    await tx.execute(
        "update followers set process = null where process = %s and name = any(%s::text[])", (process, list(names))
    )


async def _resign(tx: Tx, process: str) -> None:
    await tx.execute("delete from follower_processes where process = %s", (process,))


async def _nearer(tx: Tx, after: int, upto: int) -> int:
    """As far as `upto`, or less: there are at most `MAX_READ` room events."""
    row = await tx.fetch_one(
        "select position from events where position > %s and position <= %s order by position offset %s limit 1",
        (after, upto, MAX_READ - 1),
    )
    return upto if row is None else int(row[0])


async def hold(tx: Tx, name: str, *, wait: bool = True) -> bool:
    """Have nobody move a follower's cursor until this transaction ends, and so nobody write what is written with that;
    whether this succeeded, and there is a follower of this name."""
    row = await tx.fetch_one(
        f"select 1 from followers where name = %s for update{'' if wait else ' skip locked'}", (name,)
    )
    return row is not None


async def forget(tx: Tx, name: str) -> None:
    """Forget a cursor: if there is such a follower again, it begins at the log's end."""
    await tx.execute("delete from followers where name = %s", (name,))


# --- running them


class _Running(Struct):
    """A follower that this process runs."""

    follower: Follower
    position: int
    saved: int
    task: "asyncio.Task[None]"
    scanned: int = SCANNED
    leaving_since: float | None = None
    """Since when another process is to run it, which waits until nothing is under way for it here."""


class Followers:
    """This process's share of all followers."""

    def __init__(
        self,
        database: Database,
        tail: Tail,
        followers: Sequence[Follower],
        *,
        is_busy: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        """`is_busy` says of a follower whether something is under way for it beside `act` that another process, were it
        to run it now, would do once more. Nothing new may begin where `runs` is False."""
        self._database = database
        self._tail = tail
        self._is_busy = is_busy
        self._followers = {follower.name: follower for follower in followers}
        self._process = secrets.token_urlsafe(9)
        self._running: dict[str, _Running] = {}
        self._lease_until = 0.0
        self._failures = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"followers_run": len(self._running), "follower_failures_total": self._failures}

    def runs(self, name: str) -> bool:
        """Whether this process runs a follower as far as it knows, for who acts on what that found. Where it no longer
        does, `begin` comes before it does again."""
        running = self._running.get(name)
        return running is not None and running.leaving_since is None

    def position_of(self, name: str) -> int | None:
        """Up to where a follower has acted on everything, if this process runs it; what is stored is a little less."""
        running = self._running.get(name)
        return None if running is None else running.position

    async def start(self) -> None:
        """Give followers that are new a cursor: they are told of what is appended from now on."""
        async with self._database.transaction() as tx:
            await _prepare(tx, self._followers)

    async def run(self) -> None:
        """Run this process's share until cancelled."""
        try:
            while True:
                try:
                    await self._tick()
                except Unavailable:  # logged where it arose
                    pass
                except Exception:
                    logger.exception("the followers' leases could not be renewed; the next turn tries again")
                if self._running and time.monotonic() > self._lease_until:
                    logger.warning("the lease was not renewed in time: others may run the followers of this process")
                    await self._stop(list(self._running))
                await asyncio.sleep(TICK_SECONDS)
        finally:
            await self._end()
            try:
                async with self._database.transaction() as tx:
                    await _resign(tx, self._process)
            except MatrixError:  # logged where it arose; the lease ends by itself
                pass

    async def _tick(self) -> None:
        began = time.monotonic()
        async with self._database.write() as tx:
            processes, rows = await _renew(tx, self._process, self._followers)
        self._lease_until = began + LEASE_MS / 1000
        wanted = share_of(self._process, tuple(processes), tuple(sorted(rows)))
        leaving = {name for name, running in self._running.items() if running.leaving_since is not None}
        ended = {name for name, running in self._running.items() if running.task.done()} - leaving
        lost = {name for name in self._running if name not in rows or rows[name].process != self._process}
        await self._stop(lost | ended)
        await self._leave(self._running.keys() - wanted | leaving - lost)
        await self._save(self._running)
        missing = {
            name
            for name in wanted - self._running.keys()
            if not rows[name].is_held or rows[name].process == self._process
        }
        if missing:
            async with self._database.transaction() as tx:
                taken = await _take(tx, self._process, missing)
            for name, position in taken.items():
                self._start(name, position)

    def _start(self, name: str, position: int) -> None:
        task = asyncio.get_running_loop().create_task(self._follow(name), name=f"follower {name}")
        self._running[name] = _Running(self._followers[name], position, position, task)

    async def _leave(self, names: Collection[str]) -> None:
        """Run these no longer, and let others have those for which nothing is under way here any more."""
        now, left = time.monotonic(), []
        for name in names:
            running = self._running[name]
            since = running.leaving_since = running.leaving_since or now
            if now - since > MAX_LEAVING_SECONDS:
                left.append(name)
        await background.end(self._running[name].task for name in names)
        await self._stop([name for name in names if name in left or not self._is_busy(name)])

    async def _end(self) -> None:
        """Run none any longer."""
        ends_at = time.monotonic() + LAST_SECONDS
        await self._leave(list(self._running))
        while self._running and time.monotonic() < ends_at:
            await asyncio.sleep(LAST_SECONDS / 50)
            await self._leave(list(self._running))
        await self._stop(list(self._running))

    async def _stop(self, names: Collection[str]) -> None:
        """Run these no longer, and let others have them at once."""
        if not names:
            return
        await background.end(self._running[name].task for name in names)
        try:
            await self._save(names)
            async with self._database.transaction() as tx:
                await _release(tx, self._process, names)
        except MatrixError:  # logged where it arose; who runs them next is told again of what was not noted
            pass
        for name in names:
            del self._running[name]

    async def _save(self, names: Collection[str]) -> None:
        moved = {name: self._running[name].position for name in names}
        moved = {name: position for name, position in moved.items() if position > self._running[name].saved}
        if not moved:
            return
        async with self._database.transaction() as tx:
            tx.later("set local synchronous_commit to off")
            _save(tx, self._process, moved)
        for name, position in moved.items():
            self._running[name].saved = max(self._running[name].saved, position)

    async def _follow(self, name: str) -> None:
        """Tell one follower of everything, until cancelled or until another process does."""
        running = self._running[name]
        follower, limit, attempts, unavailable, has_begun = running.follower, MAX_CHANGES, 0, 0, False
        while True:
            changes: Sequence[tuple[int, Change]] = ()
            upto = running.position
            try:
                if not has_begun:
                    await follower.begin(running.position)
                    has_begun = True
                if not await self._tail.wait_beyond(running.position, LONGEST_WAIT_SECONDS):
                    continue
                if follower.gathers_seconds:
                    await asyncio.sleep(follower.gathers_seconds)
                changes, upto = await self._read(running, limit)
                await self._act(running, changes, upto)
                limit, attempts, unavailable = min(2 * limit, MAX_CHANGES), 0, 0
            except Unavailable:  # logged where it arose
                await wait_before_retry(unavailable)
                unavailable += 1
            except _Lost:
                return
            except Exception:
                self._failures += 1
                logger.exception("follower %s failed within what comes after %d", name, running.position)
                attempts += 1
                if len(changes) > 1:
                    limit, attempts = len(changes) // 2, 0
                elif attempts >= MAX_ATTEMPTS and has_begun:
                    logger.critical("follower %s passes over what is in the log up to %d", name, upto)
                    running.position, limit, attempts = upto, MAX_CHANGES, 0
                await wait_before_retry(attempts)

    async def _act(self, running: _Running, changes: Sequence[tuple[int, Change]], upto: int) -> None:
        work = await running.follower.act(changes, upto)
        if work is not None:
            async with self._database.transaction() as tx:
                await _move(tx, self._process, running.follower.name, upto)
                when_committed = await work(tx)
            running.saved = upto
            if when_committed is not None:
                when_committed()
        running.position = upto

    async def _read(self, running: _Running, limit: int) -> tuple[Sequence[tuple[int, Change]], int]:
        """At most so many changes after the follower's position, and up to where these are all."""
        kinds, after = frozenset(running.follower.kinds), running.position
        if after >= self._tail.floor:
            upto = self._tail.position
            changes = [pair for pair in self._tail.since(after) if type(pair[1]) in kinds]
        else:
            upto = min(after + running.scanned, self._tail.floor)
            changes = []
            async with self._database.read() as tx:
                upto = await _nearer(tx, after, upto)
                for kind in kinds:
                    changes.extend(await kind.read_range(tx, after, upto))
            changes.sort(key=lambda pair: pair[0])
            running.scanned = SCANNED if changes else min(2 * running.scanned, MAX_SCANNED)
        if len(changes) > limit:
            changes = changes[:limit]
            upto = changes[-1][0] + changes[-1][1].width - 1
        return changes, upto
