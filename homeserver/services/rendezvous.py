"""Sessions by which a device signs another one in that shows or has scanned its QR code (MSC4108, MSC4388).

Each holds one short message, which whoever knows the session's ID may read and replace; the devices encrypt what they
say. Any process answers for each session. None lives long, and there are only so many.
"""

import hashlib
import secrets

from msgspec.structs import replace

from federation.protocol.errors import LimitExceeded, MatrixError, NotFound, TooLarge
from storage import rendezvous
from storage.database import Database
from storage.rendezvous import Session

MAX_BYTES = 4096
"""Of a message."""

MAX_SESSIONS = 5_000
"""Of the whole server, so that all together are 20 MB at most."""

LIFETIME_MS = 180_000
"""From when it began, whatever is said in it: MSC4388 recommends 120 to 300 seconds."""

REMEMBERED = 8
"""Transactions that are answered again as they were."""


class OutOfDateError(MatrixError):
    """A message was sent by who has not seen the last one."""

    def __init__(self, current: Session) -> None:
        super().__init__("M_CONCURRENT_WRITE", "Another message has been left meanwhile", 409)
        self.current = current


class RendezvousService:
    """Keeps the sessions."""

    def __init__(self, database: Database, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._database = database
        self._max_sessions = max_sessions

    async def create(self, data: bytes) -> Session:
        """Begin a session with its first message; raises M_TOO_LARGE, M_LIMIT_EXCEEDED."""
        _check_size(data)
        now_ts = self._database.now_ms()
        session = Session(
            id=secrets.token_urlsafe(24), version=1, data=data, modified_ts=now_ts, expires_ts=now_ts + LIFETIME_MS
        )
        async with self._database.transaction() as tx:
            if not await rendezvous.insert(tx, session, at_most=self._max_sessions):
                raise LimitExceeded(LIFETIME_MS)
        return session

    async def get(self, session_id: str) -> Session:
        """A session with its last message; raises M_NOT_FOUND, also once it has expired."""
        async with self._database.read() as tx:
            session = await rendezvous.find(tx, session_id, self._database.now_ms())
        if session is None:
            raise _unknown()
        return session

    def left_ms(self, session: Session) -> int:
        """For how long it can still be used."""
        return max(0, session.expires_ts - self._database.now_ms())

    async def update(self, session_id: str, seen: str, data: bytes, txn_id: str = "") -> Session:
        """Replace the message that the sender has `seen`, by its version; what was sent as this transaction already is
        not sent again, and has the answer that it had.

        Raises M_NOT_FOUND, M_TOO_LARGE, OutOfDateError.
        """
        _check_size(data)
        now_ts, transaction = self._database.now_ms(), hashlib.sha256(txn_id.encode()).digest()
        async with self._database.transaction() as tx:
            session = await rendezvous.find(tx, session_id, now_ts, lock=True)
            if session is None:
                raise _unknown()
            if txn_id and transaction in session.transactions:
                since = len(session.transactions) - 1 - session.transactions.index(transaction)
                return replace(session, version=session.version - since)
            if seen != str(session.version):
                raise OutOfDateError(session)
            session = replace(
                session,
                version=session.version + 1,
                data=data,
                modified_ts=now_ts,
                transactions=[*session.transactions, transaction if txn_id else b""][-REMEMBERED:],
            )
            await rendezvous.write(tx, session)
        return session

    async def delete(self, session_id: str) -> None:
        """End a session; raises M_NOT_FOUND."""
        async with self._database.transaction() as tx:
            if not await rendezvous.delete(tx, session_id, self._database.now_ms()):
                raise _unknown()


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise TooLarge(f"A message has at most {MAX_BYTES} bytes")


def _unknown() -> NotFound:
    return NotFound("There is no such session, or it has expired")
