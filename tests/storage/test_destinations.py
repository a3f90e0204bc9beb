"""Servers that fail are remembered for as long as somebody tries them."""

from federation.protocol.types import ServerName
from storage import destinations
from storage.database import Database
from storage.destinations import Failing


async def test_who_is_not_tried_any_more_is_forgotten_unless_something_is_to_be_sent(database: Database) -> None:
    untried, tried, behind = ServerName("untried.test"), ServerName("tried.test"), ServerName("behind.test")
    retries = {untried: 999, tried: 1_000, behind: 999}
    async with database.transaction() as tx:
        await destinations.put_failing(tx, [Failing(name, 1, ts, 2, "away") for name, ts in retries.items()])
        await tx.execute("update destinations set position = 5 where server = %s", (behind,))

        assert await destinations.forget_untried(tx, 1_000, 10) == 1

        assert {each.server for each in await destinations.list_failing(tx)} == {tried, behind}
