"""`hearth federation`: how sending to other servers and joining their rooms goes, and trying again at once."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from federation.outbound.shared_availability import news_of
from federation.protocol.errors import NotFound
from federation.protocol.identifiers import check_server_name
from federation.protocol.types import ServerName
from federation.rooms.joining import LEASE_SECONDS
from storage import destinations, outbox_leases, remote_joins
from storage.bus import PostgresBus
from storage.database import Database, Tx
from storage.destinations import Status
from storage.log import Log
from storage.log_entries import Batch, Entry
from storage.remote_joins import Progress

SHOWN = 1_000


class _NobodyFollows:
    """In place of a tail: this process ends with its entry."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()

    async def on_commit(self, batch: Batch) -> None:
        """Nothing to do."""

    async def catch_up(self) -> bool:
        """Nothing is new to nobody."""
        return False


async def status(database: Database, show: Callable[[str], None]) -> None:
    """Say which servers lack something, and why, and which joins to rooms of theirs are under way."""
    async with database.read() as tx:
        joins = await remote_joins.listed(tx, SHOWN)
        found = await destinations.list_status(tx, SHOWN)
        head = await outbox_leases.head(tx)
        processes = await outbox_leases.count_processes(tx)
    if not processes:
        show("No process sends at the moment.")
    if not found:
        show("Every server has everything.")
    for each in found:
        show(f"{each.server}: {'; '.join(_described(each, head))}")
    if len(found) == SHOWN:
        show("There are more.")
    for join in joins:
        show(f"{join.user_id} joins {join.room_id}: {'; '.join(_joining(join))}")


def _described(status: Status, head: int) -> Iterator[str]:
    now = time.time()
    if status.failing is not None:
        failing = status.failing
        wait = max(failing.retry_ts / 1000 - now, 0)
        times = "once" if failing.failures == 1 else f"{failing.failures} times"
        yield f"fails since {_ago(now - failing.since_ts / 1000)} ({times}), next attempt in {_ago(wait)}"
        if failing.reason:
            yield failing.reason
    if status.position is not None:
        yield f"behind by up to {max(head - status.position, 0)} entries of the log"
    if status.messages:
        yield f"{status.messages} to-device messages wait"
    if status.set_aside:
        yield f"{status.set_aside} things set aside that it would not take"


def _joining(join: Progress) -> Iterator[str]:
    now = time.time()
    yield f"since {_ago(now - join.started_ts / 1000)}"
    if join.attempts > 1:
        yield f"attempt {join.attempts}"
    if join.destination is not None:
        yield f"by way of {join.destination}"
    if join.is_placed:
        yield "the user is in the room, its members are to come"
    wait = join.leased_until_ts / 1000 - now
    if wait > LEASE_SECONDS:
        yield f"failed, tried again in {_ago(wait)}"
    elif wait < 0:
        yield "nobody is at work on it: it goes on when the server runs"
    else:
        yield f"{join.received} events of its state so far"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


async def retry(database: Database, name: str | None) -> Sequence[ServerName]:
    """Have the running server try a server, or all that it left alone, now. Raises NotFound for one that has all."""
    async with database.read() as tx:
        known = [each.server for each in await destinations.list_status(tx, 1_000_000)]
    servers = known if name is None else [check_server_name(name)]
    if name is not None and servers[0] not in known:
        raise NotFound(f"Nothing waits for {name}, and it is not left alone.")
    if not servers:
        return servers

    async def work(tx: Tx) -> None:
        await destinations.forget_failing(tx, servers)

    log = Log(database, _NobodyFollows(), PostgresBus(database))
    written = log.enqueue(Entry([news_of(server) for server in servers], work))
    await log.close()
    await written
    return servers
