"""What a process remembers of a database is what is committed there."""

from contextlib import suppress

from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID
from storage import rooms, strings
from storage.database import Database


class UndoneError(Exception):
    """Ends a transaction without a commit."""


async def test_strings_of_a_transaction_that_is_undone_are_forgotten(database: Database) -> None:
    with suppress(UndoneError):
        async with database.transaction() as tx:
            numbers = await strings.intern(tx, ["@undone:hearth.test"])
            assert list((await strings.values_of(tx, numbers.values())).values()) == ["@undone:hearth.test"]
            raise UndoneError
    async with database.transaction() as tx:
        (number,) = (await strings.intern(tx, ["@undone:hearth.test"])).values()
    async with database.read() as tx:
        assert await tx.fetch("select value from strings where id = %s", (number,)) == [("@undone:hearth.test",)]
        assert await strings.values_of(tx, [number]) == {number: "@undone:hearth.test"}
    assert strings.known(database.memory, "@undone:hearth.test") == number


async def test_rooms_of_a_transaction_that_is_undone_are_forgotten(database: Database) -> None:
    room_id = RoomID("!undone:hearth.test")
    with suppress(UndoneError):
        async with database.transaction() as tx:
            made = await rooms.create(tx, room_id, get_rules("11"))
            assert await rooms.find(tx, room_id) == made
            assert await rooms.get_many(tx, [made.number]) == {made.number: made}
            raise UndoneError
    async with database.read() as tx:
        assert await rooms.find(tx, room_id) is None
        assert await rooms.get_many(tx, [made.number]) == {}
