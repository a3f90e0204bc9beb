"""Statements on a connection, which psycopg prepares once they have come a few times.

From then on they go around its cursors, which cost as much again as the round trip: above all because each begins by
finding out how values of each type are written and read.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import adapt, errors, generators
from psycopg._queries import _query2pg_nocache  # what is prepared is known by the text that this makes
from psycopg.abc import Buffer, Transformer
from psycopg.adapt import PyFormat
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

Row = tuple[Any, ...]


class Connection(psycopg.AsyncConnection[Row]):
    """A connection that remembers how values are written and read."""

    _transformer: Transformer | None = None

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """All rows of a statement's answer."""
        async with self.lock:
            result = await self._run_prepared(sql, params)
            if result is not None:
                return self._rows(result)
        cursor = self.cursor(binary=True)
        await cursor.execute(sql, params or None)
        return await cursor.fetchall()

    async def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement; the number of rows that it touched."""
        async with self.lock:
            result = await self._run_prepared(sql, params)
            if result is not None:
                return result.command_tuples or 0
        cursor = self.cursor(binary=True)
        await cursor.execute(sql, params or None)
        return cursor.rowcount

    async def _run_prepared(self, sql: str, params: Sequence[Any]) -> PGresult | None:
        """The answer to a statement; None where it is not prepared, so that it was not sent."""
        transformer = self._conversions()
        if params:
            query, formats = _converted(sql)
            values: Sequence[Buffer | None] | None = transformer.dump_sequence(params, formats)
            key, value_formats = (query, transformer.types or ()), transformer.formats
        else:
            key, values, value_formats = (sql.encode(), ()), None, None
        names = self._prepared._names
        name = names.get(key)
        if name is None:
            return None
        names.move_to_end(key)  # psycopg drops those that were not used for longest
        self.pgconn.send_query_prepared(name, values, param_formats=value_formats, result_format=Format.BINARY)
        result: PGresult
        (result,) = await self.wait(generators.execute(self.pgconn))
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise errors.error_from_result(result, encoding="utf-8")
        return result

    def _conversions(self) -> Transformer:
        if self._transformer is None:
            self._transformer = adapt.Transformer(self)
        return self._transformer

    def _rows(self, result: PGresult) -> list[Row]:
        transformer = self._conversions()
        transformer.set_pgresult(result)
        rows: list[Row] = transformer.load_rows(0, result.ntuples, tuple)
        transformer.set_pgresult(None)  # an answer may be large, and a connection lives long
        return rows


@lru_cache(maxsize=1000)
def _converted(sql: str) -> tuple[bytes, Sequence[PyFormat]]:
    query, formats, _, _ = _query2pg_nocache(sql.encode(), "utf-8")
    return query, formats
