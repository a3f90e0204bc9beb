"""What clients of sliding sync were sent of which rooms (table `sync_connections`; MSC4186, "Connections").

A connection has two states, each with a number that is never given twice: the newest, and the one that it was made
from, from which a client goes on that has not got the newest answer. Nobody else hears of them: they are no part of the
log.
"""

from typing import NamedTuple

from federation.protocol.types import UserID
from storage.database import Tx

MAX_OF_DEVICE = 10
MAX_OF_USER = 100
"""Connections; beyond that those go whose state is oldest."""


class ConnectionKey(NamedTuple):
    """Whose connection it is; `device` is 0 for who has none."""

    user_id: UserID
    device: int
    conn_id: str


def day_of(ts: int) -> int:
    """The day of a time in milliseconds."""
    return ts // 86_400_000


async def find(tx: Tx, key: ConnectionKey) -> dict[int, bytes]:
    """The states that the connection can go on from, by number."""
    row = await tx.fetch_one(
        "select number, state, previous_number, previous_state from sync_connections"
        " where user_id = %s and device = %s and conn_id = %s",
        (key.user_id, key.device, key.conn_id),
    )
    if row is None:
        return {}
    found = {row[0]: row[1]}
    if row[2] is not None:
        found[row[2]] = row[3]
    return found


async def begin(tx: Tx, key: ConnectionKey, state: bytes, today: int) -> int:
    """Begin the connection, anew if there is one of this name; the number of its state.

    What the user has too many of goes: those whose state is oldest.
    """
    row = await tx.fetch_one(
        "with excess as (delete from sync_connections using (select device as of_device, conn_id as named,"
        "   row_number() over (order by number desc) as nth,"
        "   row_number() over (partition by device order by number desc) as nth_of_device"
        "   from sync_connections where user_id = %s and (device, conn_id) <> (%s, %s)) as others"
        "  where user_id = %s and device = of_device and conn_id = named and (nth >= %s or nth_of_device >= %s))"
        " insert into sync_connections (user_id, device, conn_id, state, used_day) values (%s, %s, %s, %s, %s)"
        " on conflict (user_id, device, conn_id) do update set number = excluded.number, state = excluded.state,"
        "  previous_number = null, previous_state = null, used_day = excluded.used_day"
        " returning number",
        (
            *(key.user_id, key.device, key.conn_id, key.user_id, MAX_OF_USER, MAX_OF_DEVICE),
            *(key.user_id, key.device, key.conn_id, state, today),
        ),
    )
    if row is None:
        raise RuntimeError("insert returned nothing")
    number: int = row[0]
    return number


async def advance(tx: Tx, key: ConnectionKey, base: int, state: bytes, today: int) -> int | None:
    """Give the connection a new state, made from the one numbered `base`, which stays; the new one's number.

    None where the connection can no longer go on from `base`: it began anew, or went on without it.
    """
    row = await tx.fetch_one(
        "update sync_connections set number = default, state = %s, previous_number = %s,"
        "  previous_state = case when number = %s then state else previous_state end, used_day = %s"
        " where user_id = %s and device = %s and conn_id = %s and (number = %s or previous_number = %s)"
        " returning number",
        (state, base, base, today, key.user_id, key.device, key.conn_id, base, base),
    )
    return None if row is None else row[0]


async def touch(tx: Tx, key: ConnectionKey, today: int) -> None:
    """Note that the connection is in use."""
    await tx.execute(
        "update sync_connections set used_day = %s where user_id = %s and device = %s and conn_id = %s",
        (today, key.user_id, key.device, key.conn_id),
    )


async def delete_unused(tx: Tx, before_day: int, limit: int) -> int:
    """Delete up to `limit` connections that nobody has used since that day; how many."""
    return await tx.execute(
        "delete from sync_connections where ctid = any(array(select ctid from sync_connections"
        "  where used_day < %s limit %s for update skip locked))",
        (before_day, limit),
    )
