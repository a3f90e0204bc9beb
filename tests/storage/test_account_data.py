"""Account data and filters in the database."""

import asyncio

from federation.protocol.types import UserID
from storage import account_data
from storage.account_data import AccountDataChanged
from storage.database import Database

ALICE, BOB = UserID("@alice:hearth.test"), UserID("@bob:hearth.test")


async def test_of_changes_in_one_batch_the_last_stays(database: Database) -> None:
    first = AccountDataChanged(ALICE, None, "a", b'{"n":1}')
    second = AccountDataChanged(ALICE, None, "a", b'{"n":2}')
    other = AccountDataChanged(ALICE, 7, "a", b"{}")
    gone = AccountDataChanged(BOB, None, "b", account_data.DELETED)

    async with database.transaction() as tx:
        await AccountDataChanged.insert_many(tx, [(1, first), (2, other), (3, second), (4, gone)])
        assert await AccountDataChanged.read_range(tx, 0, 10) == [(2, other), (3, second), (4, gone)]
        assert await AccountDataChanged.read_range(tx, 2, 3) == [(3, second)]
        assert await account_data.changed_between(tx, ALICE, 0, 2) == [other]
        assert await account_data.find(tx, ALICE, None, "a") == b'{"n":2}'
        assert await account_data.find(tx, BOB, None, "b") is None
        assert await account_data.all_of(tx, BOB) == []
        assert await account_data.changed_between(tx, BOB, 0, 10) == [gone]
        assert gone.client_json == b'{"type":"b","content":{}}'


async def test_filters_stored_at_once_have_numbers_of_their_own(database: Database) -> None:
    async def put(number: int) -> int | None:
        async with database.transaction() as tx:
            return await account_data.put_filter(tx, ALICE, b"%d" % (number % 50), at_most=45)

    numbers = await asyncio.gather(*(put(number) for number in range(100)))

    assert {number for number in numbers if number is not None} == set(range(1, 46))
    assert numbers.count(None) >= 5
    async with database.read() as tx:
        assert await account_data.find_filter(tx, BOB, 1) is None
