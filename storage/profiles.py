"""Profiles of local users (table `profiles`): one JSON object each, small by the specification's own limit."""

from collections.abc import Collection
from typing import Any

import orjson

from federation.protocol.types import JsonObject, UserID
from storage.database import Tx


async def find(tx: Tx, user_id: UserID) -> JsonObject | None:
    """The profile's fields; None when there is no such account that is open."""
    row = await tx.fetch_one(
        "select profiles.fields from users left join profiles using (user_id)"
        " where users.user_id = %s and users.deactivated_ts is null",
        (user_id,),
    )
    return None if row is None else _fields(row[0])


async def find_fields(tx: Tx, user_id: UserID) -> JsonObject:
    """A local user's profile, whatever became of the account; empty for who has none."""
    row = await tx.fetch_one("select fields from profiles where user_id = %s", (user_id,))
    return {} if row is None else _fields(row[0])


async def find_many(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, JsonObject]:
    """The profiles of those local users who have one."""
    rows = await tx.fetch("select user_id, fields from profiles where user_id = any(%s)", (list(user_ids),))
    return {UserID(user_id): _fields(fields) for user_id, fields in rows}


async def lock(tx: Tx, user_id: UserID) -> JsonObject:
    """The profile's fields, which nobody else changes until this transaction ends."""
    await tx.execute("insert into profiles (user_id, fields) values (%s, '{}') on conflict do nothing", (user_id,))
    row = await tx.fetch_one("select fields from profiles where user_id = %s for update", (user_id,))
    return {} if row is None else _fields(row[0])


async def put(tx: Tx, user_id: UserID, fields: JsonObject) -> None:
    """Replace the profile, or make it."""
    await tx.execute(
        "insert into profiles (user_id, fields) values (%s, %s)"
        " on conflict (user_id) do update set fields = excluded.fields",
        (user_id, orjson.dumps(fields)),
    )


async def delete(tx: Tx, user_id: UserID) -> None:
    """Forget the profile."""
    await tx.execute("delete from profiles where user_id = %s", (user_id,))


def _fields(data: Any) -> JsonObject:  # noqa: ANN401 - a column that an outer join may leave empty
    fields: JsonObject = {} if data is None else orjson.loads(data)
    return fields
