"""Proofs that somebody has a third-party identifier (table `identifier_validations`).

The client's secret and what was sent are kept as hashes: nobody who reads the table can complete a validation.
"""

import hashlib
from enum import StrEnum

from msgspec import Struct

from federation.protocol.errors import Unavailable
from storage.database import Row, Tx
from storage.identifiers import Identifier


class Purpose(StrEnum):
    """What the proof is for, and for nothing else: the mail says so."""

    REGISTER = "register"
    RESET_PASSWORD = "password"  # noqa: S105  # the name of a purpose
    ADD = "add"


class Validation(Struct, frozen=True, kw_only=True):
    """One."""

    sid: str
    purpose: Purpose
    identifier: Identifier
    next_link: str | None
    validated_ts: int | None


_COLUMNS = "sid, purpose, medium, address, next_link, validated_ts"
# In one statement, so that of tries at once none is made without being counted.
_TRY = (
    "update identifier_validations set failures = failures + case when %s = any(token_hashes) then 0 else 1 end"
    " where sid = %s and expires_ts > %s and failures < %s and"
)


def _validation(row: Row) -> Validation:
    return Validation(
        sid=row[0],
        purpose=Purpose(row[1]),
        identifier=Identifier(row[2], row[3]),
        next_link=row[4],
        validated_ts=row[5],
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Asked(Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    client_secret: str
    purpose: Purpose
    identifier: Identifier
    send_attempt: int
    next_link: str | None


async def begin(tx: Tx, sid: str, asked: Asked, *, now_ts: int, expires_ts: int, max_failures: int) -> tuple[str, bool]:
    """The validation that the client asks for, new or going on: its ID, and whether something is to be sent for it.

    Only a higher `send_attempt` than before has something sent again, and nothing is once no token would be right.
    """
    key = (_hash(asked.client_secret), asked.purpose.value, *asked.identifier)
    await tx.execute(
        "delete from identifier_validations where secret_hash = %s and purpose = %s and medium = %s and address = %s"
        " and expires_ts <= %s",
        (*key, now_ts),
    )
    row = await tx.fetch_one(
        "insert into identifier_validations as known"
        " (secret_hash, purpose, medium, address, sid, send_attempt, next_link, token_hashes, expires_ts)"
        " values (%s, %s, %s, %s, %s, %s, %s, '{}', %s)"
        " on conflict (secret_hash, purpose, medium, address) do update"
        " set send_attempt = excluded.send_attempt, next_link = excluded.next_link, expires_ts = excluded.expires_ts"
        " where known.send_attempt < excluded.send_attempt and known.validated_ts is null and known.failures < %s"
        " returning sid",
        (*key, sid, asked.send_attempt, asked.next_link, expires_ts, max_failures),
    )
    if row is not None:
        return str(row[0]), True
    row = await tx.fetch_one(
        "select sid from identifier_validations"
        " where secret_hash = %s and purpose = %s and medium = %s and address = %s",
        key,
    )
    if row is None:
        raise Unavailable("The validation has just ended")
    return str(row[0]), False


async def add_token(tx: Tx, sid: str, token: str) -> None:
    """Note what was sent; what was sent before stays good."""
    await tx.execute(
        "update identifier_validations set token_hashes = token_hashes || %s where sid = %s", (_hash(token), sid)
    )


async def set_code(tx: Tx, sid: str, code: str) -> None:
    """Note what was sent, which can be guessed: what was sent before is void, and failures go on counting."""
    await tx.execute("update identifier_validations set token_hashes = %s where sid = %s", ([_hash(code)], sid))


async def find_by_token(tx: Tx, sid: str, token: str, *, now_ts: int, max_failures: int) -> Validation | None:
    """The validation for which this link was mailed; a wrong token counts, and after too many no token is right."""
    row = await tx.fetch_one(
        f"{_TRY} medium = 'email' returning %s = any(token_hashes), {_COLUMNS}",
        (_hash(token), sid, now_ts, max_failures, _hash(token)),
    )
    return _validation(row[1:]) if row is not None and row[0] else None


async def try_code(tx: Tx, sid: str, client_secret: str, code: str, *, now_ts: int, max_failures: int) -> bool | None:
    """Whether this is what was sent by SMS; None where none is awaited (any longer). Wrong ones count as above."""
    row = await tx.fetch_one(
        f"{_TRY} medium = 'msisdn' and secret_hash = %s returning %s = any(token_hashes)",
        (_hash(code), sid, now_ts, max_failures, _hash(client_secret), _hash(code)),
    )
    return None if row is None else bool(row[0])


async def set_validated(tx: Tx, sid: str, now_ts: int) -> None:
    """The identifier is theirs."""
    await tx.execute(
        "update identifier_validations set validated_ts = coalesce(validated_ts, %s) where sid = %s", (now_ts, sid)
    )


async def find_validated(
    tx: Tx, sid: str, client_secret: str | None, purpose: Purpose, *, now_ts: int
) -> Validation | None:
    """What was proven; the secret is left out by who was shown it before."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from identifier_validations where sid = %s and purpose = %s and expires_ts > %s"
        " and validated_ts is not null and (%s::bytea is null or secret_hash = %s)",
        (sid, purpose.value, now_ts, *(2 * [None if client_secret is None else _hash(client_secret)])),
    )
    return None if row is None else _validation(row)


async def delete(tx: Tx, sid: str) -> bool:
    """The proof is used up; whether it was still there."""
    return await tx.execute("delete from identifier_validations where sid = %s", (sid,)) == 1


async def delete_expired(tx: Tx, now_ts: int) -> int:
    """Forget what nobody finished; how many there were."""
    return await tx.execute("delete from identifier_validations where expires_ts <= %s", (now_ts,))
