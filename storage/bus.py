"""How processes hear of each other at once: PostgreSQL's LISTEN and NOTIFY, or NATS (`nats_bus.py`).

Nothing depends on a message: who misses one, gets it twice or late, finds what it told of in the log (`tail.py`).
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Protocol

import psycopg

from storage.database import Database, is_lost, unavailable, wait_before_retry
from storage.figures import Figures

logger = logging.getLogger(__name__)

Hear = Callable[[bytes], None]


class Bus(Protocol):
    """Messages to all other processes of this database, each under a subject."""

    carried_bytes: int
    """How large a message may be that brings entries along; 0: they are read from the database anyway."""
    patience_seconds: float
    """How long to wait for a message that others have overtaken."""

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""

    def with_commit(self, subject: str, message: bytes) -> str:
        """What to run just before `commit`, ending in a semicolon, for the message to be sent by it; or nothing."""

    def after_commit(self, subject: str, message: bytes) -> None:
        """Send, without waiting, what `with_commit` did not."""

    async def tell(self, subject: str, message: bytes) -> None:
        """Send something that belongs to no transaction."""

    async def run(self, hear: Mapping[str, Hear], look: Callable[[], None]) -> None:
        """Hand on what other processes send, by subject, until cancelled; `look` when something may have been missed.

        Comes back by itself when what carries the messages was away.
        """


def hand_on(handle: Hear, message: bytes) -> None:
    """Have a message heard; one that cannot be read, as of another release, is left."""
    try:
        handle(message)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("a message of another process cannot be read: %r", error)


class PostgresBus:
    """One connection that listens; a commit's own notification comes to others with its effects, and in order."""

    patience_seconds = 0.0

    def __init__(self, database: Database, *, carries: bool = False) -> None:
        """`carries` where other processes are known to be: for nobody it would be wasted."""
        self._database = database
        self._own = secrets.token_hex(4).encode()
        self._is_up = False
        # PostgreSQL takes less than 8,000 bytes.
        self.carried_bytes = 7_900 if carries else 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"bus_up": self._is_up, "bus_waiting": 0}

    def with_commit(self, subject: str, message: bytes) -> str:
        """The notification; the connection has to have `standard_conforming_strings`, which is PostgreSQL's default."""
        return f"notify {subject}, '{self._signed(message).replace(chr(39), chr(39) * 2)}';"

    def after_commit(self, subject: str, message: bytes) -> None:
        """Nothing: it was sent."""

    async def tell(self, subject: str, message: bytes) -> None:
        """In a transaction of its own."""
        async with self._database.read() as tx:
            await tx.execute("select pg_notify(%s, %s)", (subject, self._signed(message)))

    def _signed(self, message: bytes) -> str:
        return (self._own + b" " + message).decode()

    async def run(self, hear: Mapping[str, Hear], look: Callable[[], None]) -> None:
        """Listen until cancelled; reconnects when the database was away."""
        attempt = 0
        while True:
            try:
                async with await self._database.connect() as connection:
                    for subject in hear:
                        await connection.execute(f"listen {subject}")
                    attempt = 0
                    self._is_up = True
                    look()
                    async for notification in connection.notifies():
                        sender, _, message = notification.payload.encode().partition(b" ")
                        if sender != self._own:  # what happens here is known here
                            hand_on(hear[notification.channel], message)
            except (psycopg.Error, OSError) as error:
                self._is_up = False
                if isinstance(error, psycopg.Error) and not is_lost(error):
                    raise
                unavailable(error)
                await self._database.drop_lost()
                await wait_before_retry(attempt)
                attempt += 1
