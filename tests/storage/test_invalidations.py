"""What every process must forget: of what is alike the newest row is all there is."""

import asyncio

from federation.protocol.types import UserID
from storage.bus import PostgresBus
from storage.database import Database
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry
from storage.tail import Tail

PHONE = Invalidated(Kind.KEY_COUNTS, UserID("@alice:example.org"), "PHONE")
TABLET = Invalidated(Kind.KEY_COUNTS, UserID("@alice:example.org"), "TABLET")


async def test_what_came_again_since_is_found_there_and_stale_where_it_was(database: Database) -> None:
    async with database.write() as tx:
        await Invalidated.insert_many(tx, [(10, PHONE), (11, TABLET), (12, PHONE)])
        assert await Invalidated.read_range(tx, 9, 20) == [(11, TABLET), (12, PHONE)]

        await Invalidated.insert_many(tx, [(30, PHONE)])

        assert await Invalidated.read_range(tx, 9, 20) == [(11, TABLET)]
        assert await Invalidated.read_stale(tx, 9, 20) == [(11, TABLET), (20, PHONE)]
        assert await Invalidated.read_range(tx, 20, 40) == await Invalidated.read_stale(tx, 20, 40) == [(30, PHONE)]
        assert await tx.fetch("select count(*) from invalidations") == [(2,)]


async def test_who_reads_the_log_back_hears_of_all_that_is_stale(database: Database) -> None:
    near, far = Tail(database, [Invalidated]), Tail(database, [Invalidated])
    log = Log(database, near, PostgresBus(database))
    heard: list[tuple[int, Change]] = []
    far.add_view(lambda position, change: heard.append((position, change)))
    await near.start()
    await far.start()
    writing = asyncio.create_task(log.run())
    try:
        for changes in ([PHONE, TABLET], [PHONE, PHONE]):
            await log.append(Entry(list(changes)))
        async with database.write() as tx:  # comes again once more, when the end of the log was looked up by now
            await tx.execute("update invalidations set position = 30 where detail = 'PHONE'")
        await far.catch_up()
    finally:
        writing.cancel()
        await log.close()

    assert sorted(heard) == heard == [(2, TABLET), (4, PHONE)]
    assert far.position == near.position
