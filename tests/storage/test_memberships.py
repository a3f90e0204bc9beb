"""What is read of a user's memberships costs what there is of theirs, whatever PostgreSQL knows of its tables."""

import pytest

from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID, UserID
from storage import list_facts, rooms
from storage.database import Database
from storage.memberships import Membership
from storage.strings import MEMBER
from tests.storage.counting import CountingTx

ALICE = UserID("@alice:example.org")
REMOVED, INVITED = RoomID("!removed:example.org"), RoomID("!invited:example.org")


async def fill(database: Database, others: int) -> None:
    """Alice is in one room, was removed from another, and is invited from outside to a third that others are in."""
    async with database.transaction() as tx:
        names = [RoomID("!in:example.org"), REMOVED, INVITED]
        numbers = [(await rooms.create(tx, name, get_rules("11"))).number for name in names]
        await tx.execute(
            "insert into strings (value) select %s union all select '@m' || n || ':x.y' from generate_series(1, %s) n",
            (ALICE, others),
        )
        await tx.execute(
            "insert into room_state select room * 100000 + id, room, 0, 1, %s, id, null, 1"
            " from unnest(%s::int[]) room, strings where value like '@m%%'",
            (MEMBER, numbers),
        )
        for room, version, until, membership in ((0, 1, None, 1), (1, 1, 2, 1), (1, 2, None, 5)):
            await tx.execute(
                "insert into room_state select %s, %s, 0, %s, %s, id, %s::int, %s from strings where value = %s",
                (version, numbers[room], version, MEMBER, until, membership, ALICE),
            )
        await tx.execute(
            "insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender,"
            " notify_total, highlight_total, flags, event_id, json) select 2, 0, %s, 0, 1, 2, %s, id, 0, 0, 0, 'e', ''"
            " from strings where value = '@m1:x.y'",
            (numbers[1], MEMBER),
        )
        await tx.execute(
            "insert into outside_memberships (position, membership, user_id, room_id, room_version, event_id, json,"
            " stripped_state, via) values (9, 2, %s, %s, '11', 'i', '', '', '{}')",
            (ALICE, INVITED),
        )


@pytest.mark.parametrize("others", [10, 5_000])
async def test_what_is_read_of_a_user_does_not_grow_with_others(conninfo: str, others: int) -> None:
    database = Database(conninfo)
    await database.open()
    await fill(database, others)
    async with database.read() as plain:
        tx = CountingTx(plain)
        facts, members, outside = await list_facts.read_with_rooms(tx, ALICE, ["m.push_rules"])
    await database.close()

    assert [(member.membership, member.position) for member in facts.removed.values()] == [(Membership.BAN, 2)]
    assert [member.membership for member in members.values()] == [Membership.JOIN]
    assert {room: member.membership for room, member in outside.items()} == {INVITED: Membership.INVITE}
    assert tx.rows < 30
