"""Events that clients want to be sent later (table `delayed_events`, MSC4140)."""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.types import RoomID, UserID
from storage.database import Row, Tx


class DelayedEvent(Struct, frozen=True, kw_only=True):
    """An event that waits for its time."""

    delay_id: str
    user_id: UserID
    room_id: RoomID
    type: str
    state_key: str | None
    content: bytes
    """JSON."""
    delay_ms: int
    running_since_ts: int
    """The delay counts from here."""


_COLUMNS = "delay_id, user_id, room_id, type, state_key, content, delay_ms, running_since_ts"


def _event(row: Row) -> DelayedEvent:
    return DelayedEvent(
        delay_id=row[0],
        user_id=row[1],
        room_id=row[2],
        type=row[3],
        state_key=row[4],
        content=row[5],
        delay_ms=row[6],
        running_since_ts=row[7],
    )


async def insert(tx: Tx, event: DelayedEvent, *, at_most: int) -> bool:
    """Keep an event; False when its user has `at_most` already."""
    return (
        await tx.execute(
            f"insert into delayed_events ({_COLUMNS}) select %s, %s, %s, %s, %s, %s, %s, %s"
            " where (select count(*) from delayed_events where user_id = %s) < %s",
            (
                event.delay_id,
                event.user_id,
                event.room_id,
                event.type,
                event.state_key,
                event.content,
                event.delay_ms,
                event.running_since_ts,
                event.user_id,
                at_most,
            ),
        )
        == 1
    )


async def find(tx: Tx, delay_id: str) -> DelayedEvent | None:
    """The event of that ID, while it waits."""
    row = await tx.fetch_one(f"select {_COLUMNS} from delayed_events where delay_id = %s", (delay_id,))
    return None if row is None else _event(row)


async def restart(tx: Tx, delay_id: str, now_ts: int) -> bool:
    """Let the delay count from now; whether the event still waits."""
    return (
        await tx.execute("update delayed_events set running_since_ts = %s where delay_id = %s", (now_ts, delay_id)) == 1
    )


async def delete(tx: Tx, delay_id: str, *, running_since_ts: int | None = None) -> bool:
    """Take an event away; whether it was still there, and where a time is given, its delay has not begun again."""
    return (
        await tx.execute(
            "delete from delayed_events where delay_id = %s and running_since_ts = coalesce(%s, running_since_ts)",
            (delay_id, running_since_ts),
        )
        == 1
    )


async def list_of_user(tx: Tx, user_id: UserID) -> list[DelayedEvent]:
    """What the user has waiting, the first to be sent first."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from delayed_events where user_id = %s order by running_since_ts + delay_ms", (user_id,)
    )
    return [_event(row) for row in rows]


_NOT_AMONG = (
    "not exists (select from unnest(%s::text[], %s::text[]) as left_out(user_id, room_id)"
    " where left_out.user_id = delayed_events.user_id and left_out.room_id = delayed_events.room_id)"
)


async def list_due(
    tx: Tx, now_ts: int, left_out: Collection[tuple[UserID, RoomID]], *, limit: int
) -> list[DelayedEvent]:
    """Events whose time has come, the most overdue first, but for those of these users in these rooms."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from delayed_events where running_since_ts + delay_ms <= %s and {_NOT_AMONG}"
        " order by running_since_ts + delay_ms limit %s",
        (now_ts, *_columns(left_out), limit),
    )
    return [_event(row) for row in rows]


async def find_next_ts(tx: Tx, left_out: Collection[tuple[UserID, RoomID]]) -> int | None:
    """When the next event is due, but for those."""
    row = await tx.fetch_one(
        f"select min(running_since_ts + delay_ms) from delayed_events where {_NOT_AMONG}", _columns(left_out)
    )
    return None if row is None else row[0]


def _columns(places: Collection[tuple[UserID, RoomID]]) -> tuple[list[UserID], list[RoomID]]:
    return [user_id for user_id, _ in places], [room_id for _, room_id in places]


async def rooms_with_state(tx: Tx) -> set[str]:
    """The rooms for which state waits."""
    rows = await tx.fetch("select distinct room_id from delayed_events where state_key is not null")
    return {room_id for (room_id,) in rows}


async def delete_overtaken(tx: Tx, entries: Sequence[tuple[str, str, str, UserID]]) -> None:
    """Take away state that waits for what somebody else has set: (room, type, state key, who set it)."""
    await tx.execute(
        "delete from delayed_events using unnest(%s::text[], %s::text[], %s::text[], %s::text[])"
        " as given(room_id, type, state_key, sender) where delayed_events.room_id = given.room_id"
        " and delayed_events.type = given.type and delayed_events.state_key = given.state_key and user_id <> sender",
        [list(column) for column in zip(*entries, strict=True)],
    )
