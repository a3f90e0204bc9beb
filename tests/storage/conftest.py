"""What tests of storage share."""

from collections.abc import AsyncIterator

import pytest_asyncio

from storage.database import Database


@pytest_asyncio.fixture
async def database(conninfo: str) -> AsyncIterator[Database]:
    """The server's way to a migrated database."""
    database = Database(conninfo)
    await database.open()
    yield database
    await database.close()
