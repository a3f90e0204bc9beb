"""What users reported to the administrators (table `reports`)."""

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Row, Tx


class Report(Struct, frozen=True, kw_only=True):
    """A report of a room, of an event in a room, or of a user."""

    report: int = 0
    """Its number; 0 for one that is not stored yet."""
    received_ts: int
    reporter: UserID
    reason: str
    score: int | None = None
    room_id: str | None = None
    event_id: str | None = None
    user_id: str | None = None
    """The user reported, or the event's sender."""


_COLUMNS = "report, received_ts, reporter, reason, score, room_id, event_id, user_id"


def _report(row: Row) -> Report:
    return Report(
        report=row[0],
        received_ts=row[1],
        reporter=row[2],
        reason=row[3],
        score=row[4],
        room_id=row[5],
        event_id=row[6],
        user_id=row[7],
    )


async def insert(tx: Tx, report: Report) -> int:
    """Store a report; its number."""
    row = await tx.fetch_one(
        "insert into reports (received_ts, reporter, reason, score, room_id, event_id, user_id)"
        " values (%s, %s, %s, %s, %s, %s, %s) returning report",
        (
            report.received_ts,
            report.reporter,
            report.reason,
            report.score,
            report.room_id,
            report.event_id,
            report.user_id,
        ),
    )
    if row is None:
        raise RuntimeError("an insert returned nothing")
    number: int = row[0]
    return number


async def list_newest(tx: Tx, *, offset: int, limit: int) -> list[Report]:
    """Reports, the newest first."""
    rows = await tx.fetch(f"select {_COLUMNS} from reports order by report desc offset %s limit %s", (offset, limit))
    return [_report(row) for row in rows]


async def count(tx: Tx) -> int:
    """How many there are."""
    row = await tx.fetch_one("select count(*) from reports")
    return 0 if row is None else int(row[0])


async def find(tx: Tx, number: int) -> Report | None:
    """One report."""
    row = await tx.fetch_one(f"select {_COLUMNS} from reports where report = %s", (number,))
    return None if row is None else _report(row)


async def delete(tx: Tx, number: int) -> bool:
    """Forget a report; whether there was one."""
    return await tx.execute("delete from reports where report = %s", (number,)) == 1
