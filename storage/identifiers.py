"""Third-party identifiers of accounts, and where they were bound (tables `identifiers`, `identity_server_bindings`)."""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Tx


class Identifier(NamedTuple):
    """An address in the form in which such are compared."""

    medium: str
    address: str


class OwnIdentifier(Struct, frozen=True, kw_only=True):
    """One that belongs to an account."""

    identifier: Identifier
    validated_ts: int
    added_ts: int


async def insert(tx: Tx, user_id: UserID, own: OwnIdentifier) -> bool:
    """Give an account the identifier, or note that it was validated anew; False where it is another account's."""
    row = await tx.fetch_one(
        "insert into identifiers (medium, address, user_id, validated_ts, added_ts) values (%s, %s, %s, %s, %s)"
        " on conflict (medium, address) do update set validated_ts = excluded.validated_ts"
        " where identifiers.user_id = excluded.user_id returning 1",
        (*own.identifier, user_id, own.validated_ts, own.added_ts),
    )
    return row is not None


async def find_user(tx: Tx, identifier: Identifier) -> UserID | None:
    """Whose it is."""
    row = await tx.fetch_one("select user_id from identifiers where medium = %s and address = %s", identifier)
    return None if row is None else UserID(row[0])


async def list_of_user(tx: Tx, user_id: UserID) -> list[OwnIdentifier]:
    """All that an account has, the oldest first."""
    rows = await tx.fetch(
        "select medium, address, validated_ts, added_ts from identifiers where user_id = %s order by added_ts, address",
        (user_id,),
    )
    return [OwnIdentifier(identifier=Identifier(row[0], row[1]), validated_ts=row[2], added_ts=row[3]) for row in rows]


async def delete(tx: Tx, user_id: UserID, identifier: Identifier) -> bool:
    """Take it from the account; whether it was theirs."""
    return (
        await tx.execute(
            "delete from identifiers where user_id = %s and medium = %s and address = %s", (user_id, *identifier)
        )
        == 1
    )


async def delete_of_user(tx: Tx, user_id: UserID) -> None:
    """Take all from an account that ends."""
    await tx.execute("delete from identifiers where user_id = %s", (user_id,))


# --- identity servers


async def insert_binding(tx: Tx, user_id: UserID, identifier: Identifier, id_server: str, *, at_most: int) -> None:
    """Note where the user had it bound, unless so many are noted already."""
    await tx.execute(
        "insert into identity_server_bindings (user_id, medium, address, id_server) select %s, %s, %s, %s"
        " where (select count(*) from identity_server_bindings where user_id = %s) < %s on conflict do nothing",
        (user_id, *identifier, id_server, user_id, at_most),
    )


async def list_bindings(tx: Tx, user_id: UserID) -> Sequence[tuple[Identifier, str]]:
    """All that the user has bound, and where."""
    rows = await tx.fetch(
        "select medium, address, id_server from identity_server_bindings where user_id = %s"
        " order by medium, address, id_server",
        (user_id,),
    )
    return [(Identifier(medium, address), id_server) for medium, address, id_server in rows]


async def delete_binding(tx: Tx, user_id: UserID, identifier: Identifier, id_server: str) -> None:
    """It is bound there no longer."""
    await tx.execute(
        "delete from identity_server_bindings where user_id = %s and medium = %s and address = %s and id_server = %s",
        (user_id, *identifier, id_server),
    )
