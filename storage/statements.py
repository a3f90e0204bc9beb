"""Statements on a connection, which psycopg prepares once they have come a few times.

From then on they go around its cursors, which cost as much again as the round trip: above all because each begins by
finding out how values of each type are written and read. Those that do not wait for each other's answers go together,
in one round trip.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import adapt, errors, generators
from psycopg._queries import _query2pg_nocache  # what is prepared is known by the text that this makes
from psycopg.abc import Buffer, PQGen, Transformer
from psycopg.adapt import PyFormat
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Any]]
"""What is sent, and its parameters."""
Answer = tuple[list[Row], int]
"""The rows that were answered, and the number of those that were touched."""

_Prepared = tuple[bytes, Sequence[Buffer | None] | None, Sequence[Format] | None]
"""The name of a statement, its parameters and how they are written."""


class Connection(psycopg.AsyncConnection[Row]):
    """A connection that remembers how values are written and read."""

    _transformer: Transformer | None = None

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """All rows of a statement's answer."""
        async with self.lock:
            result = await self._run_prepared(sql, params)
            if result is not None:
                return self._rows(result)
        return (await self._run_slowly(sql, params))[0]

    async def run_each(self, statements: Sequence[Statement]) -> list[Answer]:
        """The answer to each statement, in one round trip; what comes after one that fails is not run."""
        async with self.lock:
            prepared = [self._as_prepared(*statement) for statement in statements]
            if None not in prepared:
                results = await self._run_together([each for each in prepared if each is not None])
                return [(self._rows(result), result.command_tuples or 0) for result in results]
        return [await self._run_slowly(*statement) for statement in statements]

    async def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement; the number of rows that it touched."""
        async with self.lock:
            result = await self._run_prepared(sql, params)
            if result is not None:
                return result.command_tuples or 0
        return (await self._run_slowly(sql, params))[1]

    async def _run_slowly(self, sql: str, params: Sequence[Any]) -> Answer:
        """By psycopg, which prepares what comes often; what is prepared meanwhile it runs so, too."""
        cursor = self.cursor(binary=True)
        await cursor.execute(sql, params or None)
        return [] if cursor.description is None else await cursor.fetchall(), cursor.rowcount

    async def run_script(self, sql: str) -> None:
        """Run statements without parameters, which are not prepared, in one round trip."""
        async with self.lock:
            self.pgconn.send_query(sql.encode())
            for result in await self.wait(generators.execute(self.pgconn)):
                _check(result)

    def _as_prepared(self, sql: str, params: Sequence[Any]) -> _Prepared | None:
        """A statement as it is sent; None where it is not prepared."""
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
        return name, values, value_formats

    def _send(self, prepared: _Prepared) -> None:
        name, values, formats = prepared
        self.pgconn.send_query_prepared(name, values, param_formats=formats, result_format=Format.BINARY)

    async def _run_prepared(self, sql: str, params: Sequence[Any]) -> PGresult | None:
        """The answer to a statement; None where it is not prepared, so that it was not sent."""
        prepared = self._as_prepared(sql, params)
        if prepared is None:
            return None
        self._send(prepared)
        result: PGresult
        (result,) = await self.wait(generators.execute(self.pgconn))
        _check(result)
        return result

    async def _run_together(self, statements: Sequence[_Prepared]) -> list[PGresult]:
        self.pgconn.enter_pipeline_mode()
        try:
            for prepared in statements:
                self._send(prepared)
            self.pgconn.pipeline_sync()
            results = await self.wait(_answers(self.pgconn))
        finally:
            try:
                self.pgconn.exit_pipeline_mode()
            except psycopg.Error:  # answers are still to come, of which nobody knows any more
                self.pgconn.finish()
        for result in results:
            _check(result)
        return results

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


def _check(result: PGresult) -> None:
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise errors.error_from_result(result, encoding="utf-8")


def _answers(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """The answers to all that was sent before the pipeline's end, for psycopg to wait for."""
    while pgconn.flush():
        ready = yield Wait.RW
        if not ready or ready & Ready.R:  # else both sides might wait for the other to read; nothing: it was cancelled
            pgconn.consume_input()
    results: list[PGresult] = []
    is_separated = True
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            if is_separated:
                raise psycopg.OperationalError("the connection was lost before all was answered")
        elif result.status == ExecStatus.PIPELINE_SYNC:
            return results
        else:
            results.append(result)
        is_separated = result is None
