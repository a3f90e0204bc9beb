"""Reading a room's state costs what is asked for, not what the room has or had."""

import pytest

from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID, StateKey
from storage import room_state, rooms
from storage.database import Database
from storage.rooms import Room
from tests.storage.counting import CountingTx


async def a_big_room(database: Database, members: int) -> Room:
    """A room's state as storage keeps it, with many members and a topic that changed often."""
    async with database.transaction() as tx:
        room = await rooms.create(tx, RoomID("!big:example.org"), get_rules("11"))
        await tx.execute("insert into strings (value) select '@m' || n || ':x.y' from generate_series(1, 20000) n")
        await tx.execute(
            "insert into room_state select n, %s, 0, n, 3, strings.id, null, 1 from generate_series(1, %s) n"
            " join strings on strings.value = '@m' || n || ':x.y'",
            (room.number, members),
        )
        await tx.execute(
            "insert into room_state select 20000 + n, %s, 0, %s + n, 13, 1, case when n < 500 then %s + n + 1 end, null"
            " from generate_series(1, 500) n",
            (room.number, members, members),
        )
        await tx.execute(
            "insert into room_lines (room, line, parent_line, parent_version, version)"
            " select %s, n, 0, n, 1 from generate_series(1, 1000) n",
            (room.number,),
        )
        await tx.execute(
            "insert into room_state select 1, %s, n, 1, 13, 1, null, null from generate_series(1, 1000) n",
            (room.number,),
        )
    async with database.read() as tx:
        await tx.execute("vacuum analyze room_state, room_lines, strings")
    return room


@pytest.mark.parametrize("members", [300, 20_000])
async def test_what_is_read_does_not_grow_with_the_room(conninfo: str, members: int) -> None:
    database = Database(conninfo)
    await database.open()
    room = await a_big_room(database, members)
    keys: list[StateKey] = [("m.room.topic", ""), ("m.room.member", "@m7:x.y"), ("m.room.name", "")]
    end = members + 500
    async with database.read() as plain:
        tx = CountingTx(plain)
        assert len(await room_state.current(tx, room.number, keys)) == 2
        assert len((await room_state.at(tx, room.number, [(0, end - 250), (900, 1)], keys))[0, end - 250]) == 2
        assert await room_state.keys_changed(tx, room.number, [(0, end - 4, end)]) == {keys[0]}
        assert await room_state.changed_between(tx, {room.number: (end - 4, end)})
        assert len(await room_state.lines(tx, room.number, [900])) == 1
        assert len(await room_state.history(tx, room.number, [keys[1]])) == 1
    await database.close()

    assert tx.rows < 60
