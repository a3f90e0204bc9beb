"""Transactions of other servers that were answered, with their answers (table `received_transactions`)."""

import orjson

from federation.protocol.types import JsonObject, ServerName
from storage.database import Tx

KEPT_MS = 24 * 3600 * 1000
"""For how long a transaction may be repeated and gets its old answer."""


async def find(tx: Tx, origin: ServerName, txn_id: str) -> JsonObject | None:
    """The answer that this transaction got, if it came before."""
    row = await tx.fetch_one(
        "select answer from received_transactions where origin = %s and txn_id = %s", (origin, txn_id)
    )
    if row is None:
        return None
    answer: JsonObject = orjson.loads(row[0])
    return answer


async def insert(tx: Tx, origin: ServerName, txn_id: str, answer: JsonObject, now_ts: int) -> None:
    """Keep an answer; the first one, should two processes have made one."""
    await tx.execute(
        "insert into received_transactions (origin, txn_id, received_ts, answer) values (%s, %s, %s, %s)"
        " on conflict do nothing",
        (origin, txn_id, now_ts, orjson.dumps(answer)),
    )


async def delete_old(tx: Tx, before_ts: int, limit: int) -> int:
    """Forget up to `limit` transactions that nobody will repeat any longer; how many."""
    return await tx.execute(
        "delete from received_transactions where ctid = any(array("
        " select ctid from received_transactions where received_ts < %s limit %s for update skip locked))",
        (before_ts, limit),
    )
