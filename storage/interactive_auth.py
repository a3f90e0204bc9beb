"""User-interactive authentication in progress (table `interactive_auth_sessions`).

The client's session ID is not stored, only its hash; what the client sent is encrypted with the ID.
"""

from collections.abc import Mapping

import orjson
from msgspec import Struct, field

from storage.database import Tx


class StoredAttempt(Struct, frozen=True, kw_only=True):
    """What the server remembers between the requests of one authentication."""

    session_hash: bytes
    expires_ts: int
    operation: str
    body_hash: bytes
    body: bytes | None
    completed: tuple[str, ...] = ()
    proofs: Mapping[str, str] = field(default_factory=dict)
    """By stage what it proved, where that is of use afterwards."""


async def find(tx: Tx, session_hash: bytes, now_ts: int) -> StoredAttempt | None:
    """The authentication of that session, unless it has expired."""
    row = await tx.fetch_one(
        "select expires_ts, operation, body_hash, body, completed, proofs"
        " from interactive_auth_sessions where session_hash = %s and expires_ts > %s",
        (session_hash, now_ts),
    )
    if row is None:
        return None
    return StoredAttempt(
        session_hash=session_hash,
        expires_ts=row[0],
        operation=row[1],
        body_hash=row[2],
        body=row[3],
        completed=tuple(row[4]),
        proofs=dict(row[5]),
    )


async def put(tx: Tx, attempt: StoredAttempt) -> None:
    """Remember an authentication, in place of what was remembered of its session.

    Completed stages stay so, and so does a body that they were completed for.
    """
    is_free = "known.completed = '{}' or known.body is null"
    await tx.execute(
        "insert into interactive_auth_sessions as known"
        " (session_hash, expires_ts, operation, body_hash, body, completed, proofs)"
        " values (%s, %s, %s, %s, %s, %s, %s::jsonb)"
        " on conflict (session_hash) do update set"
        f" body_hash = case when {is_free} then excluded.body_hash else known.body_hash end,"
        f" body = case when {is_free} then excluded.body else known.body end,"
        " completed = array(select unnest(known.completed) union select unnest(excluded.completed)),"
        " proofs = known.proofs || excluded.proofs",
        (
            attempt.session_hash,
            attempt.expires_ts,
            attempt.operation,
            attempt.body_hash,
            attempt.body,
            list(attempt.completed),
            orjson.dumps(dict(attempt.proofs)).decode(),
        ),
    )


async def delete(tx: Tx, session_hash: bytes) -> None:
    """Forget an authentication that has served its purpose."""
    await tx.execute("delete from interactive_auth_sessions where session_hash = %s", (session_hash,))


async def delete_expired(tx: Tx, now_ts: int) -> int:
    """Forget those that nobody finished; how many there were."""
    return await tx.execute("delete from interactive_auth_sessions where expires_ts <= %s", (now_ts,))
