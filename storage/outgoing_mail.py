"""Mail that waits to be taken by a mail server (table `outgoing_mail`), each for one recipient."""

from collections.abc import Sequence

from msgspec import Struct

from storage.database import Tx


class WaitingMail(Struct, frozen=True, kw_only=True):
    """One message."""

    mail: int
    recipient: str
    message: bytes
    """Whole, as RFC 5322 has it."""
    tries: int
    """How often it was tried, this time included."""


async def insert(tx: Tx, recipient: str, message: bytes, *, now_ts: int, expires_ts: int) -> None:
    """Have it sent as soon as may be, and given up when it expires."""
    await tx.execute(
        "insert into outgoing_mail (recipient, message, created_ts, expires_ts, next_try_ts)"
        " values (%s, %s, %s, %s, %s)",
        (recipient, message, now_ts, expires_ts, now_ts),
    )


async def take_due(tx: Tx, *, now_ts: int, until_ts: int, limit: int) -> list[WaitingMail]:
    """What is due, the most overdue first; no other process is given it before `until_ts`."""
    rows = await tx.fetch(
        "update outgoing_mail set next_try_ts = %s, tries = tries + 1 where mail in"
        " (select mail from outgoing_mail where next_try_ts <= %s order by next_try_ts limit %s"
        " for update skip locked) returning mail, recipient, message, tries",
        (until_ts, now_ts, limit),
    )
    return [WaitingMail(mail=row[0], recipient=row[1], message=bytes(row[2]), tries=row[3]) for row in rows]


async def postpone(tx: Tx, tries: Sequence[tuple[int, int]]) -> None:
    """Try these again, each (mail) not before its time."""
    mails, times = zip(*tries, strict=True)
    await tx.execute(
        "update outgoing_mail set next_try_ts = given.next_try_ts"
        " from unnest(%s::bigint[], %s::bigint[]) as given(mail, next_try_ts) where outgoing_mail.mail = given.mail",
        (list(mails), list(times)),
    )


async def delete(tx: Tx, mails: Sequence[int]) -> None:
    """They were taken, or never will be."""
    await tx.execute("delete from outgoing_mail where mail = any(%s)", (list(mails),))


async def delete_expired(tx: Tx, now_ts: int) -> int:
    """Give up what nobody took in time; how many there were."""
    return await tx.execute("delete from outgoing_mail where expires_ts <= %s", (now_ts,))
