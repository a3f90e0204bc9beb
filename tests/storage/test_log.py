"""The appender and the tail of its process."""

import asyncio

from federation.protocol.types import UserID
from storage.database import Database
from storage.invalidations import Invalidated, Kind
from storage.log import Entry, Log
from storage.tail import Tail


async def test_nothing_is_visible_before_the_tail_can_be_handed_it(conninfo: str) -> None:
    database = Database(conninfo)
    await database.open()
    tail = Tail(database, (Invalidated,))
    log = Log(database, tail)
    await tail.start()
    running = asyncio.create_task(log.run())

    async with tail.reading:
        appended = log.enqueue(Entry([Invalidated(Kind.PROFILE, UserID("@a:b"))]))
        await asyncio.sleep(0.2)
        async with database.read() as tx:
            assert await tx.fetch_one("select position from log_head") == (0,)

    assert (await appended).position == tail.position == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await log.close()
    await database.close()
