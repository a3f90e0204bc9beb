"""Statements, before and after they are prepared."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from federation.protocol.errors import InvalidInput, Unavailable
from storage.arrays import Int8, Texts
from storage.database import Database

TIMES = 5
"""From the third one on a statement is prepared."""


@pytest_asyncio.fixture
async def database(conninfo: str) -> AsyncIterator[Database]:
    database = Database(conninfo, max_connections=1)
    await database.open()
    yield database
    await database.close()


async def test_a_statement_gives_the_same_however_often_it_comes(database: Database) -> None:
    async with database.read() as tx:
        for number in (1, 2**20, 2**40, None, -1, 2**62):
            for _ in range(TIMES):
                rows = await tx.fetch(
                    "select %s::bigint, '%%', any_number, word from unnest(%s::bigint[]) with ordinality"
                    " as numbers(any_number, place) join unnest(%s::text[]) with ordinality as words(word, place)"
                    " using (place) order by place",
                    (number, Int8([3, None]), Texts(["a", "ä"])),
                )
                assert rows == [(number, "%", 3, "a"), (number, "%", None, "ä")]
                assert await tx.fetch_one("select '%' from log_head where false") is None


async def test_a_statement_tells_how_many_rows_it_touched(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute("create temporary table words (word text) on commit drop")
        for number in range(TIMES):
            assert await tx.execute("insert into words select * from unnest(%s::text[])", (["a", "b"],)) == 2
            assert await tx.execute("update words set word = word || %s", ("c",)) == 2 * (number + 1)
            assert await tx.execute("delete from words where word = %s", ("none",)) == 0


async def test_a_connection_goes_on_after_a_statement_failed(database: Database) -> None:
    async with database.read() as tx:
        for _ in range(TIMES):
            assert await tx.fetch("select 12 / %s::int", (4,)) == [(3,)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await tx.fetch("select 12 / %s::int", (0,))
        assert await tx.fetch("select 12 / %s::int", (3,)) == [(4,)]


async def test_a_connection_goes_on_after_a_transaction_was_rolled_back(database: Database) -> None:
    async def refuse() -> None:
        async with database.transaction() as tx:
            assert await tx.fetch("select %s::text", ("a",)) == [("a",)]
            await tx.fetch("select %s::text", ("\0",))

    for _ in range(TIMES):
        with pytest.raises(InvalidInput):
            await refuse()
        async with database.read() as tx:
            for _ in range(TIMES):
                assert await tx.fetch("select %s::text", ("b",)) == [("b",)]


async def test_a_connection_takes_more_statements_than_it_keeps(database: Database) -> None:
    async with database.read() as tx:
        for _ in range(3):
            for number in range(150):
                for _ in range(3):
                    assert await tx.fetch(f"select %s::int + {number}", (1,)) == [(number + 1,)]


async def test_who_is_cancelled_leaves_nothing_to_the_next_one(database: Database) -> None:
    async def fetch(seconds: float, number: int) -> int:
        async with database.read() as tx:
            row = await tx.fetch_one("select %s::int from pg_sleep(%s)", (number, seconds))
        assert row is not None
        return int(row[0])

    for number in range(TIMES):
        assert await fetch(0.0, number) == number
    slow = asyncio.create_task(fetch(60.0, -1))
    await asyncio.sleep(0.2)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow

    assert await fetch(0.0, 7) == 7


async def test_statements_go_together_and_give_the_same_however_often_they_come(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute("create temporary table numbers (number int unique) on commit drop")
        for number in range(TIMES):
            answers = await tx.fetch_each(
                ("insert into numbers values (%s) returning number", (number,)),
                ("delete from numbers where number < %s", (0,)),
                ("select count(*), %s::text from numbers", ("a",)),
                ("select number from numbers order by number", ()),
            )
            assert answers == [[(number,)], [], [(number + 1, "a")], [(each,) for each in range(number + 1)]]
        assert await tx.fetch_each() == []


@pytest.mark.parametrize("is_prepared", [False, True])
async def test_what_comes_after_a_statement_that_failed_is_not_run(database: Database, *, is_prepared: bool) -> None:
    insert = "insert into strings (value) select 'n' || (12 / %s::int)::text on conflict do nothing"
    count = "select count(*)::int from strings where value = any(%s::text[])"
    async with database.read() as tx:
        for _ in range(TIMES if is_prepared else 0):
            await tx.fetch_each((insert, (12,)), (count, (["n1"],)))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await tx.fetch_each((count, ([],)), (insert, (0,)), (insert, (4,)))

        assert await tx.fetch_each((count, (["n3"],)), (insert, (3,)), (count, (["n4"],))) == [[(0,)], [], [(1,)]]


async def test_more_than_fits_into_sockets_goes_and_comes_together(database: Database) -> None:
    large = "x" * 3_000_000
    async with database.read() as tx:
        for _ in range(TIMES):
            answers = await tx.fetch_each(*[("select %s::text, %s::int", (large, number)) for number in range(4)])
            assert answers == [[(large, number)] for number in range(4)]


async def test_a_connection_lost_among_statements_that_go_together_is_noticed_at_once(database: Database) -> None:
    async def fetch(*, is_lost: bool) -> list[list[tuple[object, ...]]]:
        async with database.read() as tx, asyncio.timeout(5):
            return await tx.fetch_each(
                ("select %s::int", (1,)),
                ("select pg_terminate_backend(pg_backend_pid()) where %s", (is_lost,)),
                ("select 2", ()),
            )

    for _ in range(3):
        for _ in range(TIMES):
            assert await fetch(is_lost=False) == [[(1,)], [], [(2,)]]
        with pytest.raises(Unavailable):
            await fetch(is_lost=True)


async def test_who_is_cancelled_among_statements_leaves_nothing_to_the_next_one(database: Database) -> None:
    async def fetch(seconds: float, number: int) -> list[list[tuple[int]]]:
        async with database.read() as tx:
            return await tx.fetch_each(
                ("select %s::int from pg_sleep(%s)", (number, seconds)), ("select %s::int", (number,))
            )

    for number in range(TIMES):
        assert await fetch(0.0, number) == [[(number,)], [(number,)]]
    slow = asyncio.create_task(fetch(60.0, -1))
    await asyncio.sleep(0.2)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow

    assert await fetch(0.0, 7) == [[(7,)], [(7,)]]


async def test_who_is_cancelled_while_sending_keeps_the_connection(database: Database) -> None:
    async def fetch(text: str) -> None:
        async with database.read() as tx:
            await tx.fetch_each(("select length(%s::text)", (text,)), ("select length(%s::text)", (text,)))

    for _ in range(TIMES):
        await fetch("x")
    before = database.figures()["database_connects_total"]
    for _ in range(TIMES):
        sending = asyncio.create_task(fetch("x" * 10_000_000))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await fetch("x")
    assert database.figures()["database_connects_total"] == before


@pytest.mark.parametrize("is_prepared", [False, True])
async def test_who_goes_on_after_a_statement_that_could_not_be_sent_is_within_the_transaction(
    database: Database, *, is_prepared: bool
) -> None:
    insert = "insert into strings (value) values (%s::text) on conflict do nothing"

    async def write() -> None:
        async with database.transaction() as tx:
            with pytest.raises((psycopg.DataError, UnicodeEncodeError)):
                await tx.execute(insert, ("\ud800",))
            await tx.execute(insert, ("kept",))
            raise InvalidInput("no")

    for number in range(TIMES if is_prepared else 0):
        async with database.transaction() as tx:
            await tx.execute(insert, (f"before {number}",))
    with pytest.raises(InvalidInput):
        await write()

    async with database.read() as tx:
        assert await tx.fetch("select 1 from strings where value = 'kept'") == []
