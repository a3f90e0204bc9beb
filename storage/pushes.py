"""What push gateways still have to be told (table `pushes`): a row for each pusher and event, until it was told.

Rows are written in bulk by who evaluates events, and deleted in bulk by who tells the gateways. Each belongs to the
shard of its user, which one process sees to at a time.
"""

from collections.abc import Collection, Iterable, Sequence
from zlib import crc32

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Tx

SHARDS = 4
"""Parts of all users that processes share among them."""
BADGE = 0
"""In place of an event's position: only the count is to be told."""


def shard_of(user_id: UserID) -> int:
    """Where a user belongs."""
    return crc32(user_id.encode()) % SHARDS


class Push(Struct, frozen=True, kw_only=True):
    """One thing that one pusher's gateway is to be told."""

    pusher: int
    position: int
    """Of the event in the log, or `BADGE`."""
    room: int
    """0 for an invite to a room that this server is not in."""
    shard: int
    thread: str
    """Of the event: `main`, or the thread's root."""
    tweaks: str
    """A JSON object."""
    created_ts: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What the row is called by."""
        return self.shard, self.pusher, self.position

    def is_read(self, room: int, thread: str, upto: int) -> bool:
        """Whether who has read a room, or a thread of it, up to a place has read the event."""
        return self.room == room and BADGE < self.position <= upto and thread in ("", self.thread)


_COLUMNS = "shard, pusher, position, room, thread, tweaks, created_ts"


async def insert(tx: Tx, new: Sequence[Push]) -> None:
    """Write what is to be told; what waits already stays as it is."""
    await tx.execute(
        f"insert into pushes ({_COLUMNS}) select * from unnest(%s::smallint[], %s::bigint[], %s::bigint[], %s::int[],"
        " %s::text[], %s::text[], %s::bigint[]) on conflict do nothing",
        (
            [push.shard for push in new],
            [push.pusher for push in new],
            [push.position for push in new],
            [push.room for push in new],
            [push.thread for push in new],
            [push.tweaks for push in new],
            [push.created_ts for push in new],
        ),
    )


async def delete(tx: Tx, keys: Iterable[tuple[int, int, int]]) -> None:
    """They were told, or need not be."""
    shards, pushers, positions = zip(*keys, strict=True)
    await tx.execute(
        "delete from pushes using unnest(%s::smallint[], %s::bigint[], %s::bigint[]) as given (shard, pusher, position)"
        " where pushes.shard = given.shard and pushes.pusher = given.pusher and pushes.position = given.position",
        (list(shards), list(pushers), list(positions)),
    )


async def delete_read(tx: Tx, shard: int, pushers: Collection[int], room: int, thread: str, upto: int) -> None:
    """Their user has read the room, or with `thread` that part of it, up to there."""
    await tx.execute(
        "delete from pushes where shard = %s and pusher = any(%s::bigint[]) and room = %s"
        " and position > 0 and position <= %s and (%s = '' or thread = %s)",
        (shard, list(pushers), room, upto, thread, thread),
    )


async def delete_of(tx: Tx, shard: int, pusher: int) -> None:
    """Nothing is to be told there any longer."""
    await tx.execute("delete from pushes where shard = %s and pusher = %s", (shard, pusher))


async def waiting(tx: Tx, shard: int, *, after: int, limit: int) -> list[int]:
    """The pushers of a shard for whose gateways something waits, from the next higher number on."""
    rows = await tx.fetch(
        "select distinct pusher from pushes where shard = %s and pusher > %s order by pusher limit %s",
        (shard, after, limit),
    )
    return [pusher for (pusher,) in rows]


async def of_pusher(tx: Tx, shard: int, pusher: int, *, limit: int) -> list[Push]:
    """What waits for one pusher, the oldest first."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from pushes where shard = %s and pusher = %s order by position limit %s",
        (shard, pusher, limit),
    )
    return [
        Push(shard=row[0], pusher=row[1], position=row[2], room=row[3], thread=row[4], tweaks=row[5], created_ts=row[6])
        for row in rows
    ]


async def give_up(tx: Tx, *, before_ts: int, keep: int) -> int:
    """Delete what was to be told before a time, what no pusher is for any longer, and of each pusher all but the newest
    so many; how many there were."""
    gone = await tx.execute("delete from pushes where created_ts < %s", (before_ts,))
    gone += await tx.execute(
        "delete from pushes where not exists (select from pushers where pushers.pusher = pushes.pusher)"
    )
    return gone + await tx.execute(
        "delete from pushes using (select shard, pusher, position,"
        "  row_number() over (partition by shard, pusher order by position desc) as place from pushes) as ranked"
        " where pushes.shard = ranked.shard and pushes.pusher = ranked.pusher and pushes.position = ranked.position"
        " and place > %s",
        (keep,),
    )
