"""What a client is told of rooms besides their events, where it has nothing of them yet: unread counts, account data,
receipts. By one statement: each costs this process about as much as what it reads."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from federation.protocol.types import UserID
from storage import account_data, receipts, unread
from storage.account_data import AccountDataChanged
from storage.arrays import Int4
from storage.database import Later, Row, Tx
from storage.receipts import ReceiptMoved
from storage.unread import Loaded

_DATA, _RECEIPT = unread.PARTS, unread.PARTS + 1
_STATEMENT = (
    "select part, room, thread, position, notify, highlight, notify_before, highlight_before,"
    " null::bytea as content, '' as user_id, '' as receipt_type, '' as event_id, 0::bigint as ts"
    f" from ({unread.STORED}) as counts"
    f" union all select {_DATA}, room, type, 0, 0, 0, 0, 0, content, '', '', '', 0"
    f" from ({account_data.OF_SOME}) as data"
    f" union all select {_RECEIPT}, room, thread, event, 0, 0, 0, 0, null, user_id, receipt_type, event_id, ts"
    f" from ({receipts.AT_EVENTS}) as receipts"
)


@dataclass(slots=True, kw_only=True)
class Wanted:
    """What is wanted of whom."""

    user_id: UserID
    counted: Collection[int] = ()
    """Rooms whose unread counts are."""
    with_data: Collection[int] = ()
    """Rooms whose account data is, or `account_data.GLOBAL`."""
    shown: Mapping[int, Collection[str]] = field(default_factory=dict)
    """Events at which receipts are, by room."""
    upto: int
    """Receipts that moved later are left out."""


Looked = tuple[Wanted, Later]
"""What is being looked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found."""

    unread: Loaded
    account_data: list[AccountDataChanged]
    receipts: list[ReceiptMoved]


def look_for(tx: Tx, wanted: Wanted) -> Looked:
    """Have all that looked for, with whatever is asked for next; `read` answers it."""
    user_id = wanted.user_id
    params = (
        *unread.parameters(user_id, wanted.counted),
        *(user_id, Int4(wanted.with_data)),
        *receipts.parameters_of_events(user_id, wanted.shown, wanted.upto),
    )
    return wanted, tx.later(_STATEMENT, params)


async def read(tx: Tx, looked: Looked) -> Found:
    """As `unread.load`, `account_data.of_some` and `receipts.at_events`."""
    wanted, later = looked
    counted: list[Row] = []
    data: list[AccountDataChanged] = []
    moved: list[Row] = []
    for row in await tx.rows_of(later):
        if row[0] == _DATA:
            data.append(AccountDataChanged(wanted.user_id, row[1] or None, row[2], row[8]))
        elif row[0] == _RECEIPT:
            _, room, thread, event, _, _, _, _, _, reader, receipt_type, event_id, ts = row
            moved.append((room, reader, receipt_type, thread, event_id, event, ts))
        else:
            counted.append(row)
    return Found(await unread.loaded_from(tx, wanted.counted, counted), data, receipts.from_rows(moved))
