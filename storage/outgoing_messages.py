"""Messages that wait to be taken by a mail server or an SMS gateway (table `outgoing_messages`), each for one
recipient."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from storage.database import Tx


class Channel(StrEnum):
    """By which they go."""

    MAIL = "mail"
    SMS = "sms"


class WaitingMessage(Struct, frozen=True, kw_only=True):
    """One."""

    message: int
    recipient: str
    content: bytes
    """Whole: of mail as RFC 5322 has it, of an SMS its text."""
    tries: int
    """How often it was tried, this time included."""


async def insert(tx: Tx, channel: Channel, recipient: str, content: bytes, *, now_ts: int, expires_ts: int) -> None:
    """Have it sent as soon as may be, and given up when it expires."""
    await tx.execute(
        "insert into outgoing_messages (channel, recipient, content, created_ts, expires_ts, next_try_ts)"
        " values (%s, %s, %s, %s, %s, %s)",
        (channel.value, recipient, content, now_ts, expires_ts, now_ts),
    )


async def take_due(tx: Tx, channel: Channel, *, now_ts: int, until_ts: int, limit: int) -> list[WaitingMessage]:
    """What is due, the most overdue first; no other process is given it before `until_ts`."""
    rows = await tx.fetch(
        "update outgoing_messages set next_try_ts = %s, tries = tries + 1 where message in"
        " (select message from outgoing_messages where channel = %s and next_try_ts <= %s order by next_try_ts limit %s"
        " for update skip locked) returning message, recipient, content, tries",
        (until_ts, channel.value, now_ts, limit),
    )
    return [WaitingMessage(message=row[0], recipient=row[1], content=bytes(row[2]), tries=row[3]) for row in rows]


async def postpone(tx: Tx, tries: Sequence[tuple[int, int]]) -> None:
    """Try these again, each (message) not before its time."""
    messages, times = zip(*tries, strict=True)
    await tx.execute(
        "update outgoing_messages set next_try_ts = given.next_try_ts"
        " from unnest(%s::bigint[], %s::bigint[]) as given(message, next_try_ts)"
        " where outgoing_messages.message = given.message",
        (list(messages), list(times)),
    )


async def delete(tx: Tx, messages: Sequence[int]) -> None:
    """They were taken, or never will be."""
    await tx.execute("delete from outgoing_messages where message = any(%s)", (list(messages),))


async def delete_expired(tx: Tx, channel: Channel, now_ts: int) -> int:
    """Give up what nobody took in time; how many there were."""
    return await tx.execute(
        "delete from outgoing_messages where channel = %s and expires_ts <= %s", (channel.value, now_ts)
    )
