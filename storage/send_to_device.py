"""Inboxes: to-device messages until their device has proved that it has them ("Send-to-Device messaging").

A message's place in its device's inbox is its position in the log. One entry holds at most one message for a device,
so `(device, position)` names a message. Devices are called by their number, which is never given twice.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Self

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.types import DeviceID, ServerName, UserID
from storage.database import Tx
from storage.log_entries import Change

KEPT_BYTES = 4096
"""Messages of one entry that are together larger than this are not kept in memory, only that they exist."""

KEPT_RECEIVED_MS = 30 * 24 * 3600 * 1000
"""For how long a server may repeat a message that we answered for: it may have been away."""


class ToDeviceMessage(Struct, frozen=True):
    """One message to one device."""

    user_id: UserID
    device_id: DeviceID
    device: int
    json: bytes | None
    """The event as /sync shows it; None in memory when it is too large to be kept there."""


class ToDeviceMessages(Struct):
    """What one request (or one EDU) sends: at most one message for each device."""

    messages: tuple[ToDeviceMessage, ...]
    origin: ServerName | None = None
    """The other server that sent them; None for our own users', and where they are read again."""

    kind: ClassVar[int] = 4
    width: ClassVar[int] = 1
    """One position for all: their devices differ."""
    rooms: ClassVar[Collection[int]] = ()
    """It belongs to no room."""

    @property
    def users(self) -> Collection[UserID]:
        """Who receives."""
        return {message.user_id for message in self.messages}

    def to_device(self, device: int) -> ToDeviceMessage | None:
        """The message for this device, if there is one."""
        for message in self.messages:
            if message.device == device:
                return message
        return None

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        messages = [(position, message, change.origin) for position, change in rows for message in change.messages]
        await tx.execute(
            "insert into to_device_messages (device, position, json, origin, received_ts)"
            " select *, case when origin is not null then (extract(epoch from clock_timestamp()) * 1000)::bigint end"
            " from unnest(%s::int[], %s::bigint[], %s::bytea[], %s::text[]) as given (device, position, json, origin)",
            (
                [message.device for _, message, _ in messages],
                [position for position, _, _ in messages],
                [message.json for _, message, _ in messages],
                [origin for _, _, origin in messages],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto] that have not been delivered yet; contents only where they are small."""
        rows = await tx.fetch(
            "select position, user_id, device_id, to_device_messages.device,"
            " case when octet_length(json) <= %s then json end"
            " from to_device_messages join devices using (device)"
            " where position > %s and position <= %s order by position",
            (KEPT_BYTES, after, upto),
        )
        found: dict[int, list[ToDeviceMessage]] = {}
        for position, user_id, device_id, device, json in rows:
            found.setdefault(position, []).append(ToDeviceMessage(UserID(user_id), DeviceID(device_id), device, json))
        return [(position, cls(tuple(messages))) for position, messages in found.items()]


def drop_large_contents(_position: int, change: Change) -> None:
    """A view of the tail: keep the window from holding what only the database should."""
    if isinstance(change, ToDeviceMessages):
        size = sum(len(message.json) for message in change.messages if message.json is not None)
        if size > KEPT_BYTES:
            change.messages = tuple(replace(message, json=None) for message in change.messages)


def from_window(
    changes: Iterable[tuple[int, Change]], device: int, *, upto: int, limit: int = 100
) -> tuple[list[bytes], int | None] | None:
    """The messages for a device, up to a position, among changes of the tail's window (such as `tail.for_user(...)`).

    Answers (raw events, the position of the last one, or None when there is none), without a query. Answers None when
    the window does not hold what is needed, or there are more than `limit`: then `pending` must be asked.
    """
    found: list[bytes] = []
    last: int | None = None
    for position, change in changes:
        if position > upto:
            break
        if isinstance(change, ToDeviceMessages):
            message = change.to_device(device)
            if message is None:
                continue
            if message.json is None or len(found) == limit:
                return None
            found.append(message.json)
            last = position
    return found, last


async def pending(tx: Tx, device: int, after: int, upto: int, limit: int = 100) -> tuple[list[bytes], int]:
    """The oldest undelivered messages of a device in positions (after, upto], and where to go on.

    The second value is `upto` when these are all, else the position of the last one: a token from there finds the rest.
    """
    rows = await tx.fetch(
        "select json, position from to_device_messages where device = %s and position > %s and position <= %s"
        " order by position limit %s",
        (device, after, upto, limit + 1),
    )
    if len(rows) <= limit:
        return [json for json, _ in rows], upto
    return [json for json, _ in rows[:limit]], rows[limit - 1][1]


async def delete_upto(tx: Tx, device: int, position: int) -> int:
    """Delete what a device has proved to have, by a later token: all up to `position`; how many that were."""
    return await tx.execute("delete from to_device_messages where device = %s and position <= %s", (device, position))


async def drop_excess(
    tx: Tx, devices: Collection[int], origin: ServerName, *, max_messages: int, max_bytes: int
) -> dict[int, int]:
    """Delete a server's oldest messages where a device has more of them than this: how many of each device."""
    rows = await tx.fetch(
        "with excess as (select device, max(position) as upto from"
        "  (select device, position, row_number() over newest as number,"
        "    sum(octet_length(json)) over newest as size"
        "   from to_device_messages where device = any(%s::int[]) and origin = %s"
        "   window newest as (partition by device order by position desc)) as inbox"
        "  where number > %s or size > %s group by device),"
        " gone as (delete from to_device_messages where ctid = any(array("
        "  select messages.ctid from to_device_messages messages join excess on messages.device = excess.device"
        "   and messages.position <= excess.upto where messages.origin = %s for update of messages skip locked))"
        "  returning device)"
        " select device, count(*) from gone group by device",
        (list(devices), origin, max_messages, max_bytes, origin),
    )
    return dict(rows)


async def give_up(tx: Tx, before_ts: int, limit: int) -> dict[ServerName, int]:
    """Delete up to `limit` messages that other servers sent before a time: how many of each server."""
    rows = await tx.fetch(
        "with gone as (delete from to_device_messages where ctid = any(array("
        "  select ctid from to_device_messages where received_ts < %s limit %s for update skip locked))"
        "  returning origin) select origin, count(*) from gone group by origin",
        (before_ts, limit),
    )
    return {ServerName(origin): count for origin, count in rows}


async def devices_of(tx: Tx, users: Collection[UserID]) -> dict[UserID, dict[DeviceID, int]]:
    """All devices of these users with their numbers: whom a message can reach."""
    found: dict[UserID, dict[DeviceID, int]] = {}
    rows = await tx.fetch(
        "select user_id, device_id, device from devices where user_id = any(%s::text[])", (list(users),)
    )
    for user_id, device_id, device in rows:
        found.setdefault(UserID(user_id), {})[DeviceID(device_id)] = device
    return found


async def note_transaction(tx: Tx, device: int, event_type: str, txn_id: str, now_ts: int) -> bool:
    """Remember a client's transaction; False when this device has sent it before."""
    inserted = await tx.execute(
        "insert into to_device_transactions (device, txn_id, event_type, sent_ts) values (%s, %s, %s, %s)"
        " on conflict do nothing",
        (device, txn_id, event_type, now_ts),
    )
    return inserted == 1


async def note_received(tx: Tx, sender: UserID, message_id: str, now_ts: int) -> bool:
    """Remember a message of another server's user; False when it came before."""
    inserted = await tx.execute(
        "insert into received_to_device (sender, message_id, received_ts) values (%s, %s, %s) on conflict do nothing",
        (sender, message_id, now_ts),
    )
    return inserted == 1


async def delete_old_received(tx: Tx, before_ts: int, limit: int) -> int:
    """Forget up to `limit` messages that no server will repeat any longer; how many."""
    return await tx.execute(
        "delete from received_to_device where ctid = any(array("
        " select ctid from received_to_device where received_ts < %s limit %s for update skip locked))",
        (before_ts, limit),
    )


async def delete_old_transactions(tx: Tx, before_ts: int, limit: int) -> int:
    """Forget up to `limit` transactions that nobody will repeat any longer; how many."""
    return await tx.execute(
        "delete from to_device_transactions where ctid = any(array("
        " select ctid from to_device_transactions where sent_ts < %s limit %s for update skip locked))",
        (before_ts, limit),
    )


async def abandoned_inboxes(tx: Tx) -> list[int]:
    """The devices that have messages although they are deleted; one look-up for each device that has messages."""
    rows = await tx.fetch(
        "with recursive inbox (device) as ((select min(device) from to_device_messages)"
        "  union all select (select min(device) from to_device_messages where device > inbox.device) from inbox"
        "  where inbox.device is not null)"
        " select device from inbox where device is not null"
        "  and not exists (select from devices where devices.device = inbox.device)"
    )
    return [device for (device,) in rows]


async def delete_some(tx: Tx, device: int, limit: int) -> int:
    """Delete up to `limit` messages of a device; how many."""
    return await tx.execute(
        "delete from to_device_messages where device = %s and position = any(array("
        " select position from to_device_messages where device = %s order by position limit %s))",
        (device, device, limit),
    )
