"""Who sends to which servers, and how far each has what the log holds.

Servers fall into shards by their name. A process that sends keeps a lease (`outbox_processes`) alive; a shard belongs
to the process that its row names while that one's lease is valid. All times are the database's, so the clocks of
machines may differ. What is lost with the last moments before a crash is sent again, which its receivers notice.
"""

from collections.abc import Collection, Mapping
from zlib import crc32

from msgspec import Struct

from federation.protocol.types import ServerName
from storage.database import Tx

SHARDS = 32
LEASE_MS = 3_500
"""A process that has not renewed for so long has died; others look every second."""

_NOW = "(extract(epoch from clock_timestamp()) * 1000)::bigint"


def shard_of(server: ServerName) -> int:
    """Where a server belongs."""
    return crc32(server.encode()) % SHARDS


class Shard(Struct, frozen=True):
    """A shard as the database has it."""

    position: int
    process: str | None
    is_held: bool
    """Whether that process's lease is valid."""


async def prepare(tx: Tx) -> None:
    """Make the shards where there are none: nothing that is in the log by now is sent."""
    await tx.execute(
        "insert into outbox_shards (shard, position) select number, log_head.position"
        " from generate_series(0, %s) as number, log_head on conflict do nothing",
        (SHARDS - 1,),
    )


async def renew(tx: Tx, process: str) -> tuple[list[str], dict[int, Shard]]:
    """Keep this process's lease alive; all processes that send, this one included, and all shards.

    Every process does this once a second: it is one statement, and nothing waits for the disk.
    """
    rows = await tx.fetch(
        "with renewed as (insert into outbox_processes (process, expires_ts)"
        f" values (%s, {_NOW} + %s) on conflict (process) do update set expires_ts = excluded.expires_ts),"
        f" gone as (delete from outbox_processes where expires_ts < {_NOW} - 60000 and process <> %s)"
        f" select shard, position, outbox_shards.process, coalesce(expires_ts > {_NOW}, false),"
        f" array(select process from outbox_processes where expires_ts > {_NOW}),"
        " set_config('synchronous_commit', 'off', true)"
        " from outbox_shards left join outbox_processes on outbox_processes.process = outbox_shards.process",
        (process, LEASE_MS, process),
    )
    processes = {process, *(rows[0][4] if rows else ())}
    return sorted(processes), {shard: Shard(position, holder, is_held) for shard, position, holder, is_held, *_ in rows}


async def take(tx: Tx, process: str, wanted: Collection[int]) -> dict[int, int]:
    """Take those of these shards that nobody holds: shard -> position."""
    rows = await tx.fetch(
        "update outbox_shards set process = %s where shard = any(%s::smallint[]) and (process is null or not exists"
        " (select from outbox_processes held where held.process = outbox_shards.process"
        f"  and held.process <> %s and expires_ts > {_NOW})) returning shard, position",
        (process, list(wanted), process),
    )
    return {shard: position for shard, position in rows}


async def release(tx: Tx, process: str, given: Collection[int]) -> None:
    """Let others have these shards."""
    await tx.execute(
        "update outbox_shards set process = null where process = %s and shard = any(%s::smallint[])",
        (process, list(given)),
    )


async def resign(tx: Tx, process: str) -> None:
    """Give up the lease, and with it all shards."""
    await tx.execute("delete from outbox_processes where process = %s", (process,))


async def save(
    tx: Tx, process: str, positions: Mapping[int, int], behind: Mapping[ServerName, int], caught_up: Collection[str]
) -> None:
    """Note how far everybody is: shards, the servers that are not as far as theirs, those that are again.

    Where a shard has another owner by now, nothing of it is noted.
    """
    tx.later("set local synchronous_commit to off")
    rows = await tx.fetch(
        "update outbox_shards set position = greatest(outbox_shards.position, given.position)"
        " from unnest(%s::smallint[], %s::bigint[]) as given (shard, position)"
        " where outbox_shards.shard = given.shard and process = %s returning outbox_shards.shard",
        (list(positions), list(positions.values()), process),
    )
    own = {shard for (shard,) in rows}
    behind = {server: position for server, position in behind.items() if shard_of(server) in own}
    if behind:
        await tx.execute(
            "insert into destinations (server, position) select * from unnest(%s::text[], %s::bigint[])"
            " on conflict (server) do update set position = excluded.position",
            (list(behind), list(behind.values())),
        )
    caught_up = [server for server in caught_up if shard_of(ServerName(server)) in own]
    if caught_up:
        await tx.execute(
            "update destinations set position = null where server = any(%s::text[]) and position is not null",
            (caught_up,),
        )
        await tx.execute(
            "delete from destinations where server = any(%s::text[]) and position is null and failing_since_ts is null",
            (caught_up,),
        )


async def servers_behind(tx: Tx) -> dict[ServerName, int]:
    """The servers that do not have all that their shard says, and up to where they have it."""
    rows = await tx.fetch("select server, position from destinations where position is not null")
    return {ServerName(server): position for server, position in rows}


async def forget_relayed(tx: Tx) -> int:
    """Delete what every server has of `relayed_events`; how many."""
    return await tx.execute(
        "delete from relayed_events where position <= least((select min(position) from outbox_shards),"
        " (select min(position) from destinations))"
    )


async def give_up_relayed(tx: Tx, before_ts: int, limit: int) -> int:
    """Delete those among the `limit` oldest of `relayed_events` that were made before a time; how many."""
    return await tx.execute(
        "delete from relayed_events using"
        " (select position, created_ts from relayed_events order by position limit %s) as oldest"
        " where relayed_events.position = oldest.position and oldest.created_ts < %s",
        (limit, before_ts),
    )


async def count_processes(tx: Tx) -> int:
    """How many processes send."""
    row = await tx.fetch_one(f"select count(*) from outbox_processes where expires_ts > {_NOW}")
    return 0 if row is None else int(row[0])


async def head(tx: Tx) -> int:
    """The newest position of the log."""
    row = await tx.fetch_one("select position from log_head")
    return 0 if row is None else int(row[0])
