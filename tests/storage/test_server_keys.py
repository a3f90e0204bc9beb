"""`server_keys`: a newer list of keys wins over an older one, whichever way and whenever it comes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from federation.protocol.server_keys import ServerKeys
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import KeyID, ServerName
from storage import server_keys
from storage.database import Database, Tx
from storage.server_keys import StoredAnswer

PEER = ServerName("peer.example")
KEY = KeyID("ed25519:a")


@pytest_asyncio.fixture
async def tx(conninfo: str) -> AsyncIterator[Tx]:
    database = Database(conninfo, max_connections=2)
    await database.open()
    async with database.transaction() as tx:
        yield tx
    await database.close()


def a_list(valid_until_ts: int, public_key: bytes = b"k" * 32, **fields: Any) -> ServerKeys:
    key = VerifyKey(public_key=public_key, valid_until_ts=valid_until_ts, **fields)
    json = {"verify_keys": {KEY: {"number": valid_until_ts}}}
    return ServerKeys(server_name=PEER, keys={KEY: key}, valid_until_ts=valid_until_ts, read_ts=7, json=json)


async def test_a_newer_list_replaces_an_older_one(tx: Tx) -> None:
    newer = a_list(200, b"n" * 32, expired_ts=150)

    await server_keys.save(tx, [a_list(100)])
    await server_keys.save(tx, [newer])

    assert await server_keys.find(tx, [(PEER, KEY)]) == {(PEER, KEY): newer.keys[KEY]}
    assert (await server_keys.find_answers(tx, [PEER], 1000))[PEER].valid_until_ts == 200


async def test_an_older_list_that_comes_late_changes_nothing(tx: Tx) -> None:
    """As a notary may have kept it from before a key was retired."""
    newer = a_list(200, expired_ts=150)
    await server_keys.save(tx, [newer])

    await server_keys.save(tx, [a_list(100)])

    assert await server_keys.find(tx, [(PEER, KEY)]) == {(PEER, KEY): newer.keys[KEY]}
    assert (await server_keys.find_answers(tx, [PEER], 1000))[PEER].json == newer.json


async def test_lists_that_are_over_are_forgotten_and_keys_are_not(tx: Tx) -> None:
    await server_keys.save(tx, [a_list(100)])

    assert await server_keys.delete_answers(tx, 100) == 0
    assert await server_keys.delete_answers(tx, 101) == 1

    assert await server_keys.find_answers(tx, [PEER], 1000) == {}
    assert len(await server_keys.find(tx, [(PEER, KEY), (PEER, KeyID("ed25519:b"))])) == 1


@pytest.mark.parametrize(
    ("now_ts", "key_ids", "least_ts", "is_fresh"),
    [
        (149, [KEY], 200, True),
        (149, [], 0, True),
        (150, [KEY], 200, False),  # half of its time is over
        (149, [KEY], 201, False),
        (149, [KEY, KeyID("ed25519:b")], 200, False),
    ],
)
def test_when_a_notary_asks_again(now_ts: int, key_ids: list[KeyID], least_ts: int, *, is_fresh: bool) -> None:
    answer = StoredAnswer(json={"verify_keys": {KEY: {}}}, fetched_ts=100, valid_until_ts=200)

    assert answer.is_fresh(now_ts, key_ids, least_ts) is is_fresh


async def test_long_lists_are_left_out_where_they_do_not_fit(tx: Tx) -> None:
    names = [ServerName(f"s{number}.example") for number in range(3)]
    for number, name in enumerate(names):
        await server_keys.save(tx, [replace(a_list(100), server_name=name, json={"text": "x" * (3 - number)})])

    lengths = [len(b'{"text":"x"}') + number for number in range(3)]
    assert (await server_keys.find_answers(tx, names, sum(lengths))).keys() == set(names)
    assert (await server_keys.find_answers(tx, names, sum(lengths) - 1)).keys() == set(names[1:])
