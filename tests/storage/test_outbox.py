"""Which servers were in rooms, at versions of these."""

import random
from collections import defaultdict

from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID
from storage import outbox, rooms
from storage.database import Database
from storage.rooms import Room
from tests.storage.counting import CountingTx

MEMBERS = 1_000
SERVERS = 40
VERSIONS = 3_000

Stays = dict[int, list[tuple[str, int, int | None]]]
"""Room -> who was joined when: a server, since a version and before another."""


async def rooms_of_many(database: Database, chance: random.Random) -> tuple[list[Room], Stays]:
    """Rooms whose members come and go, and stay."""
    stays: Stays = defaultdict(list)
    async with database.transaction() as tx:
        made = [await rooms.create(tx, RoomID(f"!{number}:example.org"), get_rules("11")) for number in range(2)]
        users = [f"@u{number}:s{number % SERVERS}.org" for number in range(MEMBERS)]
        await tx.execute("insert into strings (value) select unnest(%s::text[])", (users,))
        ids: dict[str, int] = dict(await tx.fetch("select value, id from strings where value = any(%s)", (users,)))
        rows = []
        for room in made:
            for user in users:
                times = sorted(chance.sample(range(1, VERSIONS), chance.choice((1, 1, 2, 3, 6))))
                for since, until in zip(times, [*times[1:], None], strict=True):
                    membership = chance.choice((1, 1, 1, 3))
                    rows.append((room.number, since, until, ids[user], membership))
                    if membership == 1:
                        stays[room.number].append((user.partition(":")[2], since, until))
        await tx.execute(
            "insert into room_state (event, room, line, since_version, type, state_key, until_version, membership)"
            " select number, room, 0, since, 3, id, until, membership from unnest(%s::int[], %s::int[], %s::int[],"
            " %s::int[], %s::smallint[]) with ordinality as given (room, since, until, id, membership, number)",
            [list(column) for column in zip(*rows, strict=True)],
        )
    async with database.read() as tx:
        await tx.execute("vacuum analyze room_state, strings")
    return made, stays


async def test_the_servers_of_many_spans_are_found_in_one_look_at_each_rooms_members(conninfo: str) -> None:
    chance = random.Random(1)
    database = Database(conninfo)
    await database.open()
    made, stays = await rooms_of_many(database, chance)
    spans = []
    for _ in range(500):
        low = chance.randrange(VERSIONS)
        spans.append((chance.choice(made).number, low, low + chance.choice((0, 0, 1, 50))))
    async with database.read() as plain:
        tx = CountingTx(plain)
        found = await outbox.servers_between(tx, [*spans, (0, 1, 1)])
    await database.close()

    for room, low, high in spans:
        expected = {server for server, since, until in stays[room] if since <= high and (until is None or until > low)}
        assert found[room, low, high] == expected
    assert found[0, 1, 1] == frozenset()
    assert tx.statements == 1
    assert tx.rows < 3 * sum(map(len, stays.values()))
