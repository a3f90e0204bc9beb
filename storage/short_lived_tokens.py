"""Tokens that prove one thing for a short time (table `short_lived_tokens`), stored as hashes."""

import hashlib
import secrets
from enum import StrEnum

from federation.protocol.types import UserID
from storage.database import Tx


class Purpose(StrEnum):
    """What a token proves."""

    LOGIN = "login"
    """Once: that its user agreed to a login elsewhere ("Token-based login")."""
    OPENID = "openid"
    """To other services: who its user is ("OpenID")."""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def make(tx: Tx, purpose: Purpose, user_id: UserID, expires_ts: int) -> str:
    """A new token."""
    token = secrets.token_urlsafe(32)
    await tx.execute(
        "insert into short_lived_tokens (token_hash, purpose, user_id, expires_ts) values (%s, %s, %s, %s)",
        (_hash(token), purpose.value, user_id, expires_ts),
    )
    return token


async def find_user(tx: Tx, purpose: Purpose, token: str, now_ts: int) -> UserID | None:
    """Whose token this is, unless it has expired or the account has ended."""
    row = await tx.fetch_one(
        "select user_id from short_lived_tokens join users using (user_id)"
        " where token_hash = %s and purpose = %s and expires_ts > %s and deactivated_ts is null",
        (_hash(token), purpose.value, now_ts),
    )
    return None if row is None else UserID(row[0])


async def use_up(tx: Tx, purpose: Purpose, token: str, now_ts: int) -> UserID | None:
    """Whose token this is, unless it has expired; it is gone then."""
    row = await tx.fetch_one(
        "delete from short_lived_tokens where token_hash = %s and purpose = %s returning user_id, expires_ts > %s",
        (_hash(token), purpose.value, now_ts),
    )
    return UserID(row[0]) if row is not None and row[1] else None


async def delete_of_user(tx: Tx, user_id: UserID) -> None:
    """End all of a user's tokens."""
    await tx.execute("delete from short_lived_tokens where user_id = %s", (user_id,))


async def delete_expired(tx: Tx, now_ts: int) -> int:
    """Forget those whose time has passed; how many there were."""
    return await tx.execute("delete from short_lived_tokens where expires_ts <= %s", (now_ts,))
