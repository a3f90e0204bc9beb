"""Servers that cannot be reached, and what was set aside for good (tables `destinations`, `undeliverable`)."""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.types import ServerName
from storage.database import Tx


class Failing(Struct, frozen=True):
    """A server that did not answer, or not as it should."""

    server: ServerName
    since_ts: int
    retry_ts: int
    failures: int
    reason: str


class Status(Struct, frozen=True):
    """What an operator wants to know of a server to which something is still to be sent."""

    server: ServerName
    position: int | None
    failing: Failing | None
    messages: int
    """To-device EDUs that wait."""
    set_aside: int


class Undeliverable(Struct, frozen=True):
    """Something that its server would never take."""

    destination: ServerName
    kind: str
    name: str
    reason: str


async def list_failing(tx: Tx, servers: Collection[str] | None = None) -> list[Failing]:
    """Servers that fail: all, or those among these."""
    sql = "select server, failing_since_ts, retry_ts, failures, reason from destinations"
    if servers is None:
        rows = await tx.fetch(f"{sql} where failing_since_ts is not null")
    else:
        rows = await tx.fetch(
            f"{sql} where failing_since_ts is not null and server = any(%s::text[])", (list(servers),)
        )
    return [Failing(ServerName(row[0]), row[1], row[2] or 0, row[3], row[4] or "") for row in rows]


async def put_failing(tx: Tx, failing: Sequence[Failing]) -> None:
    """Note failures."""
    await tx.execute(
        "insert into destinations (server, failing_since_ts, retry_ts, failures, reason)"
        " select * from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::int[], %s::text[])"
        " on conflict (server) do update set failing_since_ts = excluded.failing_since_ts,"
        "  retry_ts = excluded.retry_ts, failures = excluded.failures, reason = excluded.reason",
        (
            [each.server for each in failing],
            [each.since_ts for each in failing],
            [each.retry_ts for each in failing],
            [each.failures for each in failing],
            [each.reason[:500].replace("\0", "") for each in failing],
        ),
    )


async def forget_failing(tx: Tx, servers: Collection[str]) -> None:
    """These servers gave a sign of life."""
    await tx.execute(
        "update destinations set failing_since_ts = null, retry_ts = null, failures = 0, reason = null"
        " where server = any(%s::text[])",
        (list(servers),),
    )
    await tx.execute("delete from destinations where server = any(%s::text[]) and position is null", (list(servers),))


async def forget_untried(tx: Tx, before_ts: int, limit: int) -> int:
    """Forget up to `limit` servers that fail, which nobody has tried since then: to whom there is something to send, is
    tried. How many.
    """
    return await tx.execute(
        "delete from destinations where server = any(array(select server from destinations"
        " where retry_ts < %s and position is null limit %s for update skip locked))",
        (before_ts, limit),
    )


async def list_status(tx: Tx, limit: int) -> list[Status]:
    """Every server that is behind or fails, or for which something waits or was set aside."""
    rows = await tx.fetch(
        "select server, destinations.position, failing_since_ts, retry_ts, coalesce(failures, 0), reason,"
        "  coalesce(waiting.count, 0), coalesce(aside.count, 0)"
        " from destinations"
        " full join (select destination as server, count(*) from outbox_messages group by destination) as waiting"
        "  using (server)"
        " full join (select destination as server, count(*) from undeliverable group by destination) as aside"
        "  using (server) order by server limit %s",
        (limit,),
    )
    return [
        Status(
            server=ServerName(row[0]),
            position=row[1],
            failing=None if row[2] is None else Failing(row[0], row[2], row[3] or 0, row[4], row[5] or ""),
            messages=row[6],
            set_aside=row[7],
        )
        for row in rows
    ]


async def set_aside(tx: Tx, items: Sequence[Undeliverable], now_ts: int) -> None:
    """Keep note of what is not sent any longer."""
    await tx.execute(
        "insert into undeliverable (at_ts, destination, kind, name, reason)"
        " select %s, * from unnest(%s::text[], %s::text[], %s::text[], %s::text[])",
        (
            now_ts,
            [item.destination for item in items],
            [item.kind for item in items],
            [item.name.replace("\0", "")[:500] for item in items],
            [item.reason.replace("\0", "")[:500] for item in items],
        ),
    )
