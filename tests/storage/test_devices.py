"""When devices were last used, as several processes note it."""

import asyncio

from federation.protocol.types import DeviceID, UserID
from storage import accounts, devices
from storage.database import Database
from storage.devices import Seen

ALICE = UserID("@alice:hearth.test")


async def test_processes_that_note_the_same_devices_at_one_moment_do_not_deadlock(database: Database) -> None:
    async with database.transaction() as tx:
        await accounts.insert(tx, accounts.Account(user_id=ALICE, created_ts=1))
        numbers = [await devices.ensure(tx, ALICE, DeviceID(name), None, 1) for name in "ABC"]

    async def note(order: list[int], ts: int) -> None:
        async with database.transaction() as tx:
            await devices.note_seen(tx, [Seen(number, ts, "127.0.0.1", "Client") for number in order])

    async with database.transaction() as tx:
        await tx.execute("update devices set display_name = 'B' where device_id = 'B'")  # has both stop halfway
        noting = [asyncio.create_task(note(numbers, 5)), asyncio.create_task(note(numbers[::-1], 6))]
        await asyncio.sleep(0.3)
    await asyncio.gather(*noting)

    async with database.read() as tx:
        assert [each.last_seen_ts for each in await devices.list_of_user(tx, ALICE)] == [6, 6, 6]
