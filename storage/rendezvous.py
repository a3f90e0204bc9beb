"""Where devices leave messages for each other while one signs the other in (table `rendezvous`, lost in a crash)."""

from collections.abc import Sequence

from msgspec import Struct

from storage.database import Row, Tx


class Session(Struct, frozen=True, kw_only=True):
    """What one of the two has left last."""

    id: str
    version: int
    """Counts the messages."""
    data: bytes
    modified_ts: int
    expires_ts: int
    transactions: Sequence[bytes] = ()
    """What the newest messages were sent as; the last one made `version`, the one before it that before, and so on."""


_COLUMNS = "id, version, data, modified_ts, expires_ts, transactions"


def _session(row: Row) -> Session:
    return Session(
        id=row[0],
        version=row[1],
        data=bytes(row[2]),
        modified_ts=row[3],
        expires_ts=row[4],
        transactions=[bytes(each) for each in row[5]],
    )


async def insert(tx: Tx, session: Session, *, at_most: int) -> bool:
    """Begin a session; false where there are as many as may be. Those that have expired go."""
    await tx.execute("delete from rendezvous where expires_ts <= %s", (session.modified_ts,))
    return (
        await tx.execute(
            f"insert into rendezvous ({_COLUMNS}) select %s, %s, %s, %s, %s, '{{}}' from rendezvous"
            " having count(*) < %s",
            (session.id, session.version, session.data, session.modified_ts, session.expires_ts, at_most),
        )
        == 1
    )


async def find(tx: Tx, session_id: str, now_ts: int, *, lock: bool = False) -> Session | None:
    """A session that has not expired; with `lock`, nobody else changes it until the transaction ends."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from rendezvous where id = %s and expires_ts > %s{' for update' if lock else ''}",
        (session_id, now_ts),
    )
    return None if row is None else _session(row)


async def write(tx: Tx, session: Session) -> None:
    """Leave another message in a session."""
    await tx.execute(
        "update rendezvous set version = %s, data = %s, modified_ts = %s, transactions = %s where id = %s",
        (session.version, session.data, session.modified_ts, list(session.transactions), session.id),
    )


async def delete(tx: Tx, session_id: str, now_ts: int) -> bool:
    """End a session; false where it has ended."""
    return await tx.execute("delete from rendezvous where id = %s and expires_ts > %s", (session_id, now_ts)) == 1
