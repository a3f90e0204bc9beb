"""How many rows statements touch."""

from collections.abc import Sequence
from typing import Any

from federation.protocol.types import JsonObject
from storage.database import Row, Tx


class CountingTx(Tx):
    """Adds up the rows that every plan touches."""

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx.connection, tx.memory)
        self.statements = 0
        self.rows = 0

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """As that of `Tx`."""
        self.statements += 1
        explained = await super().fetch("explain (analyze, format json) " + sql, params)
        self.rows += _rows_of(explained[0][0][0]["Plan"])
        return await super().fetch(sql, params)


def _rows_of(plan: JsonObject) -> int:
    rows = 0
    if "Relation Name" in plan:
        removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        rows = int((plan["Actual Rows"] + removed) * plan["Actual Loops"])
    return rows + sum(_rows_of(child) for child in plan.get("Plans", ()))
