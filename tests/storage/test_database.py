"""The pool of connections."""

import asyncio
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from storage.database import Database


async def test_who_is_cancelled_when_a_connection_has_just_come_ends(conninfo: str) -> None:
    database = Database(conninfo, max_connections=1)
    await database.open()
    for turns in range(12):  # in some of these turns of the loop the pool loses the cancellation
        has_connection, may_go = asyncio.Event(), asyncio.Event()

        async def hold(has_connection: asyncio.Event = has_connection, may_go: asyncio.Event = may_go) -> None:
            async with database.read():
                has_connection.set()
                await may_go.wait()

        async def go_on_for_ever() -> None:
            async with database.read() as tx:
                await tx.fetch("select 1")
            await asyncio.sleep(60)

        holding = asyncio.create_task(hold())
        await has_connection.wait()
        waiting = asyncio.create_task(go_on_for_ever())
        await asyncio.sleep(0.02)
        may_go.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()

        await asyncio.wait([waiting], timeout=2)
        assert waiting.done()
        await holding
    await database.close()


async def test_while_there_is_little_to_do_one_connection_does_all_of_it(conninfo: str) -> None:
    database = Database(conninfo, max_connections=3)
    await database.open()

    async def who(seconds: float = 0.05) -> int:
        async with database.read() as tx:
            rows = await tx.fetch("select pg_backend_pid() from pg_sleep(%s)", (seconds,))
        number: int = rows[0][0]
        return number

    while len(set(await asyncio.gather(who(), who(), who()))) < 3:
        pass  # the pool grows
    first, second = await asyncio.gather(who(), who(0.3))  # the second one comes back last

    assert first != second
    assert {await who() for _ in range(6)} == {first}
    await database.close()


async def test_who_opens_waits_for_a_database_that_is_not_there_yet(conninfo: str, tmp_path: Path) -> None:
    told = conninfo_to_dict(conninfo)
    database = Database(make_conninfo(conninfo, host=str(tmp_path)))
    opening = asyncio.create_task(database.open())
    await asyncio.sleep(4)  # longer than the pool tries by itself
    assert not opening.done()
    name = f".s.PGSQL.{told['port']}"
    (tmp_path / name).symlink_to(Path(str(told["host"])) / name)

    await asyncio.wait_for(opening, 5)

    async with database.read() as tx:
        assert await tx.fetch("select 1") == [(1,)]
    await database.close()
