"""What storage functions speak to: a transaction's statements, and what a process remembers of its database."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from psycopg.pq import TransactionStatus

from storage.statements import Answer, Connection, Row, Statement

Part = TypeVar("Part")


class Memory:
    """What a process remembers of one database because it never changes there; each module keeps a part of its own."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: dict[type, Any] = {}

    def part(self, kind: type[Part]) -> Part:
        """The part of this class, which is made without arguments."""
        part = self._parts.get(kind)
        if part is None:
            part = self._parts[kind] = kind()
        return cast("Part", part)


class Later:
    """A statement that waits for the next one of its transaction."""

    __slots__ = ("rows", "statement")

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.rows: list[Row] | None = None


class Tx:
    """One transaction in progress: the only thing that storage functions speak to."""

    __slots__ = ("_waiting", "connection", "memory")

    def __init__(self, connection: Connection, memory: Memory) -> None:
        self.connection = connection
        self.memory = memory
        self._waiting: list[Later] = []

    @property
    def reads_commits(self) -> bool:
        """Whether all that was just read is committed. Within a transaction it may be its own, and never come to be."""
        return self.connection.pgconn.transaction_status == TransactionStatus.IDLE

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """All rows of the answer."""
        if self._waiting:
            (rows,) = await self.fetch_each((sql, params))
            return rows
        return await self.connection.fetch(sql, params)

    async def fetch_one(self, sql: str, params: Sequence[Any] = ()) -> Row | None:
        """The first row of the answer, if there is one."""
        rows = await self.fetch(sql, params)
        return rows[0] if rows else None

    async def fetch_each(self, *statements: Statement) -> list[list[Row]]:
        """All rows of the answer to each, in one round trip; what comes after one that fails is not run."""
        return [rows for rows, _ in await self._run_each(statements)]

    async def _run_each(self, statements: Sequence[Statement]) -> list[Answer]:
        waiting, self._waiting = self._waiting, []
        try:
            answers = await self.connection.run_each([*(each.statement for each in waiting), *statements])
        except BaseException:  # above all the beginning of the transaction: who goes on is still within it
            self._waiting = waiting
            raise
        for later, (rows, _) in zip(waiting, answers, strict=False):
            later.rows = rows
        return answers[len(waiting) :]

    async def run(self, sql: str) -> None:
        """Run several statements without parameters in one round trip."""
        await self.catch_up()
        await self.connection.run_script(sql)

    async def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement; the number of rows that it touched."""
        if self._waiting:
            ((_, touched),) = await self._run_each(((sql, params),))
            return touched
        return await self.connection.run(sql, params)

    def later(self, sql: str, params: Sequence[Any] = ()) -> Later:
        """Have a statement run before whatever is run next, in the same round trip, at the latest by the commit: where
        it fails, that does."""
        later = Later((sql, params))
        self._waiting.append(later)
        return later

    async def rows_of(self, later: Later) -> list[Row]:
        """All rows of the answer to a statement of `later`."""
        if later.rows is None:
            await self.catch_up()
        return later.rows or []

    async def catch_up(self) -> None:
        """Run what waits."""
        if self._waiting:
            await self.fetch_each()

    def forget_waiting(self) -> bool:
        """Do not run what waits; whether there was anything."""
        waiting, self._waiting = self._waiting, []
        return bool(waiting)
