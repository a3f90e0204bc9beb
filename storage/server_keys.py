"""Other servers' signing keys, and the lists of keys that they signed (tables `server_keys`, `server_key_answers`).

A newer list wins over an older one, whichever way it came: what is written twice, or late, changes nothing.
"""

from collections.abc import Collection, Iterable, Sequence

import orjson
from msgspec import Struct

from federation.protocol import canonical_json
from federation.protocol.server_keys import ServerKeys
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import JsonObject, KeyID, ServerName
from storage.database import Tx


class StoredAnswer(Struct, frozen=True, kw_only=True):
    """A list of keys as its server signed it."""

    json: JsonObject
    fetched_ts: int
    valid_until_ts: int

    def is_fresh(self, now_ts: int, key_ids: Iterable[KeyID], least_ts: int) -> bool:
        """Whether it has these keys, is valid until then, and less than half of its time is over."""
        keys = {**self.json["verify_keys"], **self.json.get("old_verify_keys", {})}
        half = self.fetched_ts + (self.valid_until_ts - self.fetched_ts) // 2
        return now_ts < half and least_ts <= self.valid_until_ts and all(key_id in keys for key_id in key_ids)


async def find(tx: Tx, wanted: Collection[tuple[ServerName, KeyID]]) -> dict[tuple[ServerName, KeyID], VerifyKey]:
    """Those of these keys that are known."""
    rows = await tx.fetch(
        "select server_name, key_id, public_key, valid_until_ts, expired_ts from server_keys"
        " join unnest(%s::text[], %s::text[]) as wanted (server_name, key_id) using (server_name, key_id)",
        ([name for name, _ in wanted], [key_id for _, key_id in wanted]),
    )
    return {
        (name, key_id): VerifyKey(public_key=public_key, valid_until_ts=valid_until_ts, expired_ts=expired_ts)
        for name, key_id, public_key, valid_until_ts, expired_ts in rows
    }


async def save(tx: Tx, lists: Sequence[ServerKeys]) -> None:
    """Keep these lists, at most one of a server."""
    lists = sorted(lists, key=lambda keys: keys.server_name)  # in one order, so that two who save do not deadlock
    keys = [(each.server_name, key_id, key) for each in lists for key_id, key in sorted(each.keys.items())]
    await tx.execute(
        "insert into server_keys (server_name, key_id, public_key, valid_until_ts, expired_ts)"
        " select * from unnest(%s::text[], %s::text[], %s::bytea[], %s::bigint[], %s::bigint[])"
        " on conflict (server_name, key_id) do update set public_key = excluded.public_key,"
        "  valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts"
        " where server_keys.valid_until_ts <= excluded.valid_until_ts",
        (
            [name for name, _, _ in keys],
            [key_id for _, key_id, _ in keys],
            [key.public_key for _, _, key in keys],
            [key.valid_until_ts for _, _, key in keys],
            [key.expired_ts for _, _, key in keys],
        ),
    )
    await tx.execute(
        "insert into server_key_answers (server_name, json, fetched_ts, valid_until_ts)"
        " select * from unnest(%s::text[], %s::bytea[], %s::bigint[], %s::bigint[])"
        " on conflict (server_name) do update set json = excluded.json, fetched_ts = excluded.fetched_ts,"
        "  valid_until_ts = excluded.valid_until_ts"
        " where server_key_answers.valid_until_ts <= excluded.valid_until_ts",
        (
            [each.server_name for each in lists],
            [canonical_json.encode(each.json) for each in lists],
            [each.read_ts for each in lists],
            [each.valid_until_ts for each in lists],
        ),
    )


async def find_answers(tx: Tx, names: Collection[ServerName], max_bytes: int) -> dict[ServerName, StoredAnswer]:
    """The newest list that each of these servers signed: the shortest first, as long as they fit."""
    rows = await tx.fetch(
        "select server_name, json, fetched_ts, valid_until_ts from ("
        " select *, sum(length(json)) over (order by length(json), server_name) as bytes"
        " from server_key_answers where server_name = any(%s)) as answers where bytes <= %s",
        (list(names), max_bytes),
    )
    return {
        name: StoredAnswer(json=orjson.loads(json), fetched_ts=fetched_ts, valid_until_ts=valid_until_ts)
        for name, json, fetched_ts, valid_until_ts in rows
    }


async def delete_answers(tx: Tx, before_ts: int) -> int:
    """Forget lists that were good until then only; the keys stay. How many there were."""
    return await tx.execute("delete from server_key_answers where valid_until_ts < %s", (before_ts,))
