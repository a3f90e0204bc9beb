"""Messages to users: kept in the database until who is to deliver them has taken them.

Who writes one puts it into their own transaction, so that there is no message of what was not committed, and no
request waits for a delivery. Any process sends what is due; one that dies leaves it to the others. What is refused for
good is dropped, the rest tried until it expires.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum

from federation.protocol.errors import Unavailable
from storage import outgoing_messages
from storage.database import Database, Tx
from storage.figures import Figures
from storage.outgoing_messages import Channel, WaitingMessage

logger = logging.getLogger(__name__)

AT_ONCE = 20
POLL_SECONDS = 5.0
"""How soon a process sees what others have put there, and did not send."""
TURN_SECONDS = 240.0
"""For all that a process takes at once."""
LEASE_MS = 300_000
"""More than a turn: then others may have it."""
FIRST_PAUSE_MS = 30_000
LONGEST_PAUSE_MS = 30 * 60_000


class Outcome(StrEnum):
    """What became of one for good."""

    SENT = "sent"
    REFUSED = "refused"


Done = dict[int, Outcome]
Send = Callable[[Sequence[WaitingMessage], Done], Awaitable[None]]
"""Hands messages over, and notes each that was taken or refused for good; what it does not note is tried again."""


class OutgoingMessages:
    """The messages of one channel."""

    def __init__(self, database: Database, channel: Channel, send: Send) -> None:
        self._database = database
        self._channel = channel
        self._send = send
        self._wake = asyncio.Event()
        self._results = dict.fromkeys(("sent", "refused", "postponed", "expired"), 0)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {f"{self._channel}_total": self._results}

    async def put(self, tx: Tx, recipient: str, content: bytes, *, lifetime_ms: int) -> None:
        """Have it sent once the transaction is committed; `wake` after that, so that it is sent at once."""
        now_ts = self._database.now_ms()
        await outgoing_messages.insert(
            tx, self._channel, recipient, content, now_ts=now_ts, expires_ts=now_ts + lifetime_ms
        )

    def wake(self) -> None:
        """Send what is due."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        task = asyncio.current_task()
        while True:
            self._wake.clear()
            is_done = True
            try:
                is_done = await self._send_due()
            except Unavailable:  # logged where it arose
                pass
            except Exception:
                logger.exception("%s could not be sent; the next turn tries again", self._channel)
            if task is not None and task.cancelling():  # `asyncio.wait_for`, which aiosmtplib uses, may have lost it
                raise asyncio.CancelledError
            try:
                async with asyncio.timeout(POLL_SECONDS if is_done else 0):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _send_due(self) -> bool:
        """Send some of what is due; whether that was all."""
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:
            self._results["expired"] += await outgoing_messages.delete_expired(tx, self._channel, now_ts)
            due = await outgoing_messages.take_due(
                tx, self._channel, now_ts=now_ts, until_ts=now_ts + LEASE_MS, limit=AT_ONCE
            )
        if not due:
            return True
        done: Done = {}
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._send(due, done)
        except TimeoutError:
            logger.warning("%s takes too long to be handed over", self._channel)
        finally:
            await self._note(due, done)
        return len(due) < AT_ONCE

    async def _note(self, due: Sequence[WaitingMessage], done: Done) -> None:
        now_ts = self._database.now_ms()
        left = [(each.message, now_ts + _pause_ms(each.tries)) for each in due if each.message not in done]
        self._results["postponed"] += len(left)
        for outcome in done.values():
            self._results[outcome] += 1
        async with self._database.transaction() as tx:
            if done:
                await outgoing_messages.delete(tx, list(done))
            if left:
                await outgoing_messages.postpone(tx, left)


def _pause_ms(tries: int) -> int:
    """Of chance, too: one message that a server breaks off at shall not come before the same others each time."""
    pause_ms = min(FIRST_PAUSE_MS << min(tries - 1, 10), LONGEST_PAUSE_MS)
    return round(pause_ms * random.uniform(0.5, 1.5))  # noqa: S311  # nothing is secret about it
