"""How processes hear of each other at once: PostgreSQL's LISTEN and NOTIFY, or NATS (`nats_bus.py`).

Nothing depends on a message: who misses one, gets it twice or late, finds what it told of in the log (`tail.py`).
"""

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import psycopg
from psycopg import generators

from storage.database import Connection, Database, Statement, is_lost, is_passing, unavailable, wait_before_retry
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

    def is_heard(self, listeners: str) -> bool:
        """Whether `with_commit` would reach anybody else, by what `log_head.listeners` holds under the log's lock."""

    def with_commit(self, subject: str, message: bytes) -> Sequence[Statement]:
        """What to run just before `commit` for the message to be sent by it."""

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


_WAKE_SECONDS = 60.0
_NOBODY = "{}"
_CLASS_ID = 1_751_478_885
"""Of the advisory locks by which listeners are known to live: one that can be had is nobody's any more."""
_HOLD = f"select pg_advisory_lock({_CLASS_ID}, pg_backend_pid())"
_ENTER = f"""update log_head set listeners = array_append(
    array(select each from unnest(listeners) as each where not pg_try_advisory_xact_lock({_CLASS_ID}, each)),
    pg_backend_pid())"""
_TELL = "select pg_notify(%s, %s) from log_head where listeners not in ('{}', %s::integer[])"
_LEAVE = "update log_head set listeners = array_remove(listeners, pg_backend_pid())"


class PostgresBus:
    """One connection that listens; a commit's own notification comes to others with its effects, and in order.

    A lone process would spend a fifth of what a message costs on a notification for nobody. So who listens is written
    in `log_head`, and an appender that finds no others there says nothing. Nobody misses anything: an append takes the
    log's lock before a listener that enters, which then looks at what there was, or after it, and tells it.
    """

    patience_seconds = 0.0

    def __init__(self, database: Database, *, carries: bool = False) -> None:
        """`carries` where other processes are known to be: for nobody it would be wasted."""
        self._database = database
        self._own = secrets.token_hex(4).encode()
        self._is_up = False
        self._alone = _NOBODY
        """`log_head.listeners` where nobody else listens."""
        # PostgreSQL takes less than 8,000 bytes.
        self.carried_bytes = 7_900 if carries else 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"bus_up": self._is_up, "bus_waiting": 0}

    def is_heard(self, listeners: str) -> bool:
        """Whether others are there; those that died count until the next one comes."""
        return listeners not in (_NOBODY, self._alone)

    def with_commit(self, subject: str, message: bytes) -> Sequence[Statement]:
        """The notification."""
        return (("select pg_notify(%s, %s)", (subject, self._signed(message))),)

    def after_commit(self, subject: str, message: bytes) -> None:
        """Nothing: it was sent."""

    async def tell(self, subject: str, message: bytes) -> None:
        """In a transaction of its own; nothing is sent where nobody else listens."""
        async with self._database.read() as tx:
            await tx.execute(_TELL, (subject, self._signed(message), self._alone))

    def _signed(self, message: bytes) -> str:
        return (self._own + b" " + message).decode()

    async def run(self, hear: Mapping[str, Hear], look: Callable[[], None]) -> None:
        """Listen until cancelled; reconnects when the database was away."""
        attempt = 0

        def note(notification: psycopg.Notify) -> None:
            sender, _, message = notification.payload.encode().partition(b" ")
            if sender != self._own:  # what happens here is known here
                hand_on(hear[notification.channel], message)

        while True:
            try:
                async with await self._database.connect() as connection:
                    connection.add_notify_handler(note)
                    for subject in hear:
                        await connection.execute(f"listen {subject}")
                    async with self._entered(connection):
                        attempt = 0
                        look()
                        while True:  # `connection.notifies` would wake ten times a second
                            await connection.wait(generators.notifies(connection.pgconn), interval=_WAKE_SECONDS)
            except (psycopg.Error, OSError) as error:
                if isinstance(error, psycopg.Error) and not is_lost(error) and not is_passing(error):
                    raise
                unavailable(error)
                await self._database.drop_lost()
                await wait_before_retry(attempt)
                attempt += 1

    @asynccontextmanager
    async def _entered(self, connection: Connection) -> AsyncIterator[None]:
        """Count as a listener. It has to listen by now."""
        await connection.execute(_HOLD)
        await connection.execute(_ENTER)
        self._is_up, self._alone = True, f"{{{connection.info.backend_pid}}}"
        try:
            yield
        finally:
            self._is_up, self._alone = False, _NOBODY
            with contextlib.suppress(psycopg.Error):
                await connection.execute(_LEAVE)
